"""What a training worker does and keeps of an epoch, without Ray."""

import errno
import hashlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from test_training import TINY, make_trainer, some_batches

from effnet_batch.config import FinetuneConfig, OptimisationSettings
from effnet_batch.errors import FingerprintError, JobError, OutageError
from effnet_batch.media.distortions import PARAMETERS, Distortion
from effnet_batch.pipelines.stored_material import _check_agrees
from effnet_batch.storage import Storage, atomic, local
from effnet_batch.training import worker
from effnet_batch.training.trainer import Trainer
from effnet_batch.training.worker import (
    BEST_FILE,
    JUDGED_FILE,
    METRICS_FILE,
    TrainTask,
    _History,
    _keep,
    _latest_state,
    _read_lines,
    best_epoch,
    epochs_of,
    train_worker,
)


def no_gpus() -> list[tuple[float, float]]:
    return [(2.0, 0.0)]


def task_in(folder: Path, fingerprint: str = "a" * 16) -> TrainTask:
    objective: Any = types.SimpleNamespace(fingerprint=fingerprint, checkpoint=checkpoint_of)
    return TrainTask(
        objective=objective, folder=str(folder), device="cpu", nodes=no_gpus, messages=None
    )


def checkpoint_of(model: torch.nn.Module) -> bytes:
    return safetensors.torch.save(dict(model.state_dict()))


def line_of(epoch: int, auc: float, log_loss: float) -> dict[str, Any]:
    return {"epoch": epoch, "unix_seconds": 1.0, "val_auc": auc, "val_log_loss": log_loss}


def keep_epoch(task: TrainTask, trainer: Trainer, metric: float) -> None:
    """Does what a worker does when an epoch is done."""
    trainer.epoch += 1
    history = _History("auc", [line_of(trainer.epoch, metric, 0.5)])
    _keep(Storage(), task, trainer, history, [metric])


def test_what_was_judged_says_of_which_checkpoint(tmp_path: Path) -> None:
    trainer, task = make_trainer(TINY), task_in(tmp_path)
    keep_epoch(task, trainer, 0.6)
    said = json.loads((tmp_path / JUDGED_FILE).read_text())
    sha256 = hashlib.sha256((tmp_path / BEST_FILE).read_bytes()).hexdigest()
    assert said == {"sha256": sha256, "judged": [0.6]}


def test_a_full_disk_leaves_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, task = make_trainer(TINY), task_in(tmp_path)
    keep_epoch(task, trainer, 0.6)
    best, state = (tmp_path / BEST_FILE).read_bytes(), _latest_state(Storage(), task)
    assert state is not None

    def replace_file(path: Path, data: bytes) -> None:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        atomic.replace_file(path, data)

    monkeypatch.setattr(local, "replace_file", replace_file)
    with pytest.raises(OutageError, match="no space is left on the disk; free some or choose"):
        keep_epoch(task, trainer, 0.7)
    assert (tmp_path / BEST_FILE).read_bytes() == best
    assert _latest_state(Storage(), task) == state
    again = make_trainer(TINY)
    again.load(Path(state).read_bytes())
    assert again.epoch == 1


def test_states_of_other_settings_do_not_outlive_their_best_checkpoint(tmp_path: Path) -> None:
    mine, other = task_in(tmp_path), task_in(tmp_path, "b" * 16)
    trainer = make_trainer(TINY)
    keep_epoch(mine, trainer, 0.6)
    assert _latest_state(Storage(), other) is None
    keep_epoch(other, make_trainer(TINY), 0.6)
    assert _latest_state(Storage(), mine) is None
    keep_epoch(mine, trainer, 0.7)
    keep_epoch(mine, trainer, 0.8)
    keep_epoch(mine, trainer, 0.9)
    assert sorted(path.name for path in tmp_path.glob("state-*")) == [
        f"state-{'a' * 16}-{epoch:06}.pt" for epoch in (3, 4)
    ]


@pytest.mark.parametrize(
    ("name", "keep"),
    [(METRICS_FILE, 30), (METRICS_FILE, 0), (METRICS_FILE, None), (BEST_FILE, None)],
)
def test_what_stands_beside_a_state_and_is_damaged_is_named_with_the_way_out(
    tmp_path: Path, name: str, keep: int | None
) -> None:
    task = task_in(tmp_path)
    keep_epoch(task, make_trainer(TINY), 0.6)
    assert [line["epoch"] for line in _read_lines(Storage(), task, 1)] == [1]
    path = tmp_path / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(JobError, match=rf"{name} is damaged or gone .*; delete {tmp_path} and run"):
        _read_lines(Storage(), task, 1)


def test_of_equal_epochs_the_surest_is_kept() -> None:
    step = {"epoch": 1, "step": 1, "loss": 0.1}
    lines = [step, line_of(1, 0.9, 0.1), line_of(2, 1.0, 0.6), line_of(3, 1.0, 0.2)]
    later = [line_of(4, 1.0, 0.2), line_of(5, 0.9, 0.0)]
    assert best_epoch(epochs_of(lines), "auc")["epoch"] == 3
    assert best_epoch(epochs_of(lines + later), "auc")["epoch"] == 3
    assert _History("auc", lines).epochs_since_best == 0
    history = _History("auc", lines + later)
    assert [history.is_exhausted(patience) for patience in (None, 1, 2, 3)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not _History("auc", []).is_exhausted(1)


class Cluster:
    """Stands for Ray and the driver of one worker: what it is told, and on which device it trains.

    Its epochs have a step; of the validation of each the figures are the same.
    """

    def __init__(self, folder: Path, *, epochs: int, patience: int | None) -> None:
        self.told: list[str] = []
        self.devices: list[str] = []
        self.num_reports = 0
        ours: Any = types.SimpleNamespace(
            METRIC="auc",
            fingerprint="a" * 16,
            checkpoint=checkpoint_of,
            optimisation=OptimisationSettings(epochs=epochs, patience=patience, clips_per_step=4),
            storage=Storage().options,
            samples=pa.table({"label": [0, 1, 0, 1]}),
            validation=pa.table({"label": [0, 1]}),
            make_trainer=self.make_trainer,
            open=lambda storage, feed_cpus: self,
            measure=lambda judged: {"auc": 1.0, "log_loss": 0.5},
        )
        board: Any = types.SimpleNamespace(
            tell=types.SimpleNamespace(remote=self.told.append),
            reason=types.SimpleNamespace(remote=lambda: None),
        )
        self.task = TrainTask(
            objective=ours, folder=str(folder), device="cpu", nodes=no_gpus, messages=board
        )

    def make_trainer(self, storage: Storage, *, device: str, **sizes: Any) -> Trainer:
        self.devices.append(device)
        return make_trainer(TINY, epochs=self.task.objective.optimisation.epochs)

    def batches(self, *arguments: Any, **sizes: Any) -> Iterator[Any]:
        return iter(some_batches(1))

    def judge(self, model: torch.nn.Module, rows: pa.Table, *, device: str) -> list[float]:
        self.devices.append(device)
        return [0.0] * len(rows)

    def get(self, found: Any) -> Any:
        return found

    @property
    def train(self) -> Any:
        context = types.SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        return types.SimpleNamespace(get_context=lambda: context, report=self.report)

    def report(self, metrics: dict[str, Any]) -> None:
        self.num_reports += 1


def test_training_that_has_ended_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray shows the GPUs of a node to workers that have none of them.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for epochs, patience, expected in ((9, 1, 2), (9, 1, 0), (3, 2, 1), (3, 2, 0)):
        cluster = Cluster(tmp_path, epochs=epochs, patience=patience)
        monkeypatch.setattr(worker, "ray", cluster)
        train_worker({"task": cluster.task})
        assert cluster.num_reports == expected
        assert set(cluster.devices) == {"cpu"}
        ended = "no better epoch for 1 epochs: training ends"
        assert cluster.told[expected:] == ([ended] if patience == 1 else [])


def test_distorted_frames_are_not_trained_on() -> None:
    fields = {"distortion": str(Distortion(next(iter(PARAMETERS)), 3))}
    with pytest.raises(FingerprintError, match=r"stored distorted \(\w+:3\), .* without --dist"):
        _check_agrees(FinetuneConfig(), fields, {}, {}, "name")
