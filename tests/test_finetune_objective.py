"""What training starts from, is done on and leaves behind, without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_finetune import Told
from tiny_checkpoint import tiny_checkpoint

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError, InputError
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.pipelines.finetune_videos import _fitted
from effnet_batch.pipelines.material import split_videos
from effnet_batch.storage import Storage
from effnet_batch.training.network import build_network


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "resnet50_lstm"}, "--network resnet50_lstm: the detector to start from has t"),
        ({"network": "vgg"}, "allowed are "),
        ({"lstm_layers": 3}, "--lstm-layers 3: the detector to start from has 1"),
        ({"lstm_dim": 77}, "--lstm-dim 77: the detector to start from has 8"),
        ({"dropout": 0.5}, "--dropout 0.5: the detector to start from has "),
        ({"image_size": 512}, "--image-size 512: the detector to start from has 64; leave it out"),
        # A file of settings may name the weights of another start.
        ({"weights": "efficientnet_b1", "lstm_dim": 8, "image_size": 64}, None),
    ],
)
def test_a_detector_is_started_from_as_it_is(
    tmp_path: Path, settings: dict[str, Any], message: str | None
) -> None:
    path = str(tmp_path / "start.safetensors")
    save_checkpoint(path, *tiny_checkpoint())
    config = FinetuneConfig.from_flat({"start": path, **settings})
    if message is None:
        _, info, _ = build_network(config.network, config.optimisation, Storage())
        assert info.sequence.lstm_dim == 8
        return
    with pytest.raises(ConfigError, match=message):
        build_network(config.network, config.optimisation, Storage())


@pytest.mark.parametrize(
    ("settings", "scale", "offset", "threshold"),
    [
        ({}, True, False, 0.5),
        ({"calibration": "platt"}, True, True, 0.5),
        ({"calibration": "none"}, False, False, 0.5),
        ({"calibration": "none", "target_fpr": 0.25}, False, False, 1 / (1 + np.exp(-1))),
    ],
)
def test_what_is_fitted_to_validation(
    settings: dict[str, Any], scale: bool, offset: bool, threshold: float
) -> None:
    config = FinetuneConfig.from_flat(settings)
    _, info = tiny_checkpoint()
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    logits = np.array([-3.0, -2, -1, 2, 1, 2, 3, 5])
    told = Told()
    fitted = _fitted(info, logits, labels, config, told)
    assert not told.warnings
    assert (fitted.calibration is not None) == scale
    if fitted.calibration is not None:
        assert fitted.calibration.scale > 0
        assert (fitted.calibration.offset != 0) == offset
    assert fitted.thresholds.fake == pytest.approx(threshold)
    # One of four reals may pass: the one that scores like a fake.
    found = [fitted.calibrated(logit)[2] == "fake" for logit in logits[labels == 0]]
    assert sum(found) <= 1
    if scale:
        inverted = _fitted(info, -logits, labels, config, told)
        assert inverted.calibration is None
        (warning,) = told.warnings
        assert warning.startswith(
            "the checkpoint is not calibrated: higher scores do not go with f"
        )


def test_what_is_trained_on_of_reals_alone() -> None:
    rows = [
        {"label": 0, "group": "a", "split": "train", "record_id": "1"},
        {"label": 0, "group": "b", "split": "val", "record_id": "2"},
        {"label": 1, "group": "c", "split": "val", "record_id": "3"},
        {"label": 1, "group": "d", "split": None, "record_id": "4"},
        {"label": 1, "group": "e", "split": "test", "record_id": "5"},
    ]
    videos = pa.Table.from_pylist(rows)
    blended = FinetuneConfig.from_flat({"self_blended": 0.5})
    train, validation, left_out = split_videos(videos, blended)
    assert train["record_id"].to_pylist() == ["1"]
    assert validation["record_id"].to_pylist() == ["2", "3"]
    assert left_out == {"no split, while others have one": 1}
    with pytest.raises(InputError, match=r"train has no fake .* both classes are needed there"):
        split_videos(videos, FinetuneConfig())
    with pytest.raises(InputError, match=r"train has no real .*\); reals are needed there"):
        split_videos(videos.slice(1), blended)
    with pytest.raises(InputError, match=r"val has no fake .*\); both classes are needed there"):
        split_videos(videos.slice(0, 2), blended)
