"""Metrics passed on to the tools themselves, with stores on a disk."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_events import LINES

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError
from effnet_batch.pipelines.finetune import finetune
from effnet_batch.storage import Storage, canonical_uri
from effnet_batch.training.tracking import tracked

SECRET = "SENTINELsecret42"


def write(path: Path, lines: list[dict[str, Any]], fingerprint: str = "f1") -> None:
    ends = {"training_fingerprint": fingerprint}
    path.write_text(
        "".join(json.dumps(line if "step" in line else {**line, **ends}) + "\n" for line in lines)
    )


def follow(name: str, path: Path, warnings: list[str]) -> Any:
    config = FinetuneConfig.from_flat({"weights": "https://host/w?X-Amz-Signature=abcdef"})
    return tracked(
        name,
        Storage(),
        canonical_uri(str(path)),
        fingerprint="f1",
        settings={"manifest": f"s3://me:{SECRET}@bucket/videos.csv", **config.to_flat()},
        warn=warnings.append,
    )


def mlflow_in(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Returns a client of a store on the disk, where runs of this process are kept."""
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    import mlflow

    return mlflow.MlflowClient()


def test_mlflow_is_told_of_every_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_in(tmp_path / "runs", monkeypatch)
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    write(path, LINES, "of a run with other settings")
    with contextlib.suppress(RuntimeError), follow("mlflow", path, warnings):
        write(path, LINES[:3])
        raise RuntimeError("training failed")
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FAILED"
    assert run.data.params["learning_rate"] == "0.0001"
    assert "abcdef" not in run.data.params["weights"]
    assert SECRET not in str(run.to_dictionary())

    # The same command again goes on with the same run.
    with follow("mlflow", path, warnings):
        write(path, LINES)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    curves = {
        name: [
            (metric.timestamp, metric.step, metric.value)
            for metric in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    assert curves == {
        "step/loss": [(100_000, 1, 0.5), (101_000, 2, 0.25), (103_000, 3, 0.125)],
        "epoch/mean_loss": [(102_000, 1, 0.375), (104_000, 2, 0.125)],
        "val/auc": [(102_000, 1, 0.75), (104_000, 2, 1.0)],
    }
    assert not warnings

    # What goes wrong later is said, and training goes on.
    with follow("mlflow", path, warnings):
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        write(path, [*LINES, {**LINES[-1], "epoch": 3}])
    assert "MLflow was not told of the metrics" in warnings[0]


def test_a_run_that_cannot_be_set_up_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_in(tmp_path / "runs", monkeypatch)
    import mlflow

    def refuse(params: dict[str, str]) -> None:
        raise RuntimeError("no room")

    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_params", refuse)
        with (
            pytest.raises(ConfigError, match="--track mlflow: no room"),
            follow("mlflow", path, warnings),
        ):
            pytest.fail("nothing may start")
    assert mlflow.active_run() is None
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FAILED"
    # The next try takes the same one, and says what it missed.
    with follow("mlflow", path, warnings):
        write(path, LINES)
    (run,) = client.search_runs(["0"])
    assert (run.info.status, run.data.params["learning_rate"]) == ("FINISHED", "0.0001")
    assert not warnings


def test_wandb_is_told_of_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is large, and not of the test extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["effnet-batch", f"s3://me:{SECRET}@bucket/videos.csv"])
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    with follow("wandb", path, warnings):
        write(path, LINES)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    data = log.read_bytes()
    for name in ("step/loss", "epoch/mean_loss", "val/auc", "learning_rate"):
        assert name.encode() in data
    assert not any(
        SECRET.encode() in each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()
    )
    assert not warnings


def test_a_tool_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"not installed: pip install .*\[{name}\]"):
            finetune("videos.csv", str(tmp_path / "out"), track=name)
    assert not (tmp_path / "out").exists()


def test_a_tool_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow_in(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://host")
    with (
        pytest.raises(ConfigError, match=r"--track mlflow: .*nowhere"),
        follow("mlflow", tmp_path / "metrics.jsonl", []),
    ):
        pytest.fail("nothing may start")
