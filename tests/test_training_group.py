"""Where training workers run, and what they leave for making ready what they train on."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from test_finetune import losses
from test_image_training import planted

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError
from effnet_batch.pipelines.finetune import _check, finetune
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, ray_session
from effnet_batch.pipelines.training_group import _frequent_checks, choose_device
from effnet_batch.training.feed import PIXELS_SCHEMA, feed_cpus, stream_batches
from effnet_batch.training.plan import Step


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        ({}, [(4, 0), (4, 0)], "cpu"),
        ({}, [(4, 2), (4, 0)], "cuda"),
        ({}, [(4, 1), (4, 0)], "a GPU each, the cluster has 1; lower"),
        ({"device": "cpu"}, [(4, 2)], "cpu"),
        ({"device": "cuda"}, [(4, 2)], "cuda"),
        (
            {"device": "cuda"},
            [(4, 0)],
            "a GPU each, the cluster has 0; lower --num-workers, or use --device cpu",
        ),
        (
            {"num_workers": 16},
            [(2, 0)],
            r"16 .* 0.25 CPUs .* room for 8 \(nodes: 2 CPUs and 0 GPUs",
        ),
        ({"num_workers": 8}, [(2, 0)], r"leave no CPU for making ready .* lower --num-workers"),
        ({"num_workers": 3}, [(1, 0)], "cpu"),
        ({"num_workers": 4}, [(1, 0)], "leave no CPU for making ready"),
        ({}, [(0, 2), (4, 0)], "2 training workers of 0.25 CPUs and 1 GPUs do not fit: .* for 0 "),
        # Spot nodes that are not there yet may come later.
        ({"num_workers": 4, "min_workers": 2}, [(4, 2), (4, 0)], "cuda"),
        ({"num_workers": 4, "min_workers": 3}, [(4, 2)], "3 .* has 2; lower --min-workers"),
        ({"num_workers": 1}, [], r"room for 0 \(nodes: none\)"),
    ],
)
def test_where_it_is_trained(
    settings: dict[str, Any], nodes: list[tuple[float, float]], expected: str
) -> None:
    config = FinetuneConfig.from_flat({"num_workers": 2, **settings})
    if expected in ("cpu", "cuda"):
        assert choose_device(config, nodes) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        choose_device(config, nodes)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "gpus", "expected"),
    [
        ([(2, 0)], 1, 0, 1.0),
        ([(1, 0)], 1, 0, 0.75),
        ([(1, 0)], 2, 0, 0.5),
        ([(1, 0)], 3, 0, 0.25),
        ([(1, 0)], 4, 0, None),
        ([(2, 0)], 8, 0, None),
        ([(1, 1)], 1, 1, 0.75),
        # All that has GPUs may be full: the other node makes ready.
        ([(1, 4), (1, 0)], 4, 1, 1.0),
        # Two may stand on one node or on both.
        ([(1, 0), (1, 0)], 1, 0, 1.0),
        ([(1, 0), (1, 0)], 2, 0, 0.75),
    ],
)
def test_a_cpu_is_shared_with_what_makes_clips_ready(
    nodes: list[tuple[float, float]], num_workers: int, gpus: float, expected: float | None
) -> None:
    assert feed_cpus(nodes, num_workers, gpus=gpus) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 5}, "clips-per-step 4 is less than --num-workers 5: every worker needs"),
        ({"num_workers": 2, "min_workers": 3}, "--min-workers 3 is more than --num-workers 2"),
        (
            {"num_workers": 2, "min_workers": 1, "mixup": 0.2},
            "--mixup mixes pairs of a fixed number of workers; leave --min-workers out",
        ),
    ],
)
def test_groups_that_cannot_share_a_step(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune("videos.csv", str(tmp_path), **{"clips_per_step": 4, **settings})


def test_a_step_need_not_be_divided_evenly() -> None:
    for settings in ({"num_workers": 3}, {"num_workers": 4, "min_workers": 1}):
        _check(FinetuneConfig.from_flat({"clips_per_step": 4, **settings}))


def test_how_often_ray_train_looks_is_said_for_a_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    monkeypatch.delenv(name, raising=False)
    with _frequent_checks():
        assert get_env_vars_to_propagate()[name] == "0.2"
    assert name not in os.environ
    monkeypatch.setenv(name, "7")
    with _frequent_checks():
        assert os.environ[name] == "7"
    assert os.environ[name] == "7"


@pytest.mark.slow
def test_a_single_cpu_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_pixel_each(samples: pa.Table) -> pa.Table:
        rows = [row | {"pixels": b"p", "shape": [1]} for row in samples.to_pylist()]
        return pa.Table.from_pylist(rows, PIXELS_SCHEMA)

    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / f"images/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(planted(generator, number % 2)).save(path)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')
    settings: dict[str, Any] = {
        "label_from": "parent",
        "network": "efficientnet_lite0",
        "weights": "package:efficientnet-lite0",
        "image_size": 32,
        "freeze_backbone": True,
        "clips_per_step": 4,
        "epochs": 1,
    }
    with ray_session(None):
        assert cluster_cpus_and_gpus() == [(1.0, 0.0)]

        # Workers may come to fill the nodes that are left of a cluster: their batches are made.
        filling: Any = ray.remote(num_cpus=1)(type("Filling", (), {})).remote()
        ray.get(filling.__ray_ready__.remote())
        labels, steps = [0, 1, 1, 0, 1, 0], [Step(sample=each, counts=True) for each in range(6)]
        batches = stream_batches(
            pa.table({"label": labels}), steps, one_pixel_each, {0: 1.0, 1: 1.0}, batch_size=2,
            num_cpus=0.0, per_task=2,
        )  # fmt: skip
        assert [label for batch in batches for label in batch.labels] == labels
        ray.kill(filling)

        found = finetune(str(tmp_path / "images"), str(tmp_path / "out"), **settings)
        curve = losses(tmp_path / "out")
        assert (found.num_epochs, found.num_samples, found.num_validated) == (1, 6, 2)
        assert len(curve) == 2

        # Three workers, of whom one would do, have two, one and one of the four images of a step.
        (state,) = (tmp_path / "out/training").glob("state-*.pt")
        state.unlink()
        settings |= {"num_workers": 3, "min_workers": 1}
        finetune(str(tmp_path / "images"), str(tmp_path / "out"), **settings)
    assert losses(tmp_path / "out") == pytest.approx(curve, abs=1e-3)
    assert state.exists()
