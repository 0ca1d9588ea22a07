import pytest

from effnet_batch.config import EmbedConfig, load_toml
from effnet_batch.errors import ConfigError


def test_flat_names_reach_their_groups_and_come_back():
    config = EmbedConfig.from_flat(
        {"model": "efficientnet_b4", "batch_size": 8, "mean": [0, 0.5, 1]}
    )
    assert config.model.model == "efficientnet_b4"
    assert config.engine.batch_size == 8
    assert config.model.mean == (0.0, 0.5, 1.0)
    assert EmbedConfig.from_flat(config.to_flat()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 8}, "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        ({"zzz": 8}, "unknown setting 'zzz'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be int, got True"),
        ({"batch_size": "8"}, "batch_size must be int, got '8'"),
        ({"model": None}, "model cannot be empty"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"max_failures": 1.5}, "max_failures must be at most 1, got 1.5"),
        ({"mean": [1, 2]}, "mean must be 3 numbers, got [1, 2]"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be float, got nan"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ConfigError) as caught:
        EmbedConfig.from_flat(values)
    assert str(caught.value) == message


def test_toml_is_flat(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('model = "efficientnet_b1"\ntop_k = 5\n')
    assert load_toml(str(path)) == {"model": "efficientnet_b1", "top_k": 5}
    path.write_text("[engine]\nbatch_size = 2\n")
    with pytest.raises(
        ConfigError, match=r"settings are flat, so write its keys without \[engine\]"
    ):
        load_toml(str(path))
    path.write_text("x = = 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_toml(str(path))
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_toml(str(tmp_path / "missing.toml"))
