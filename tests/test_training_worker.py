"""What a training worker keeps of an epoch, without Ray."""

import errno
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_training import TINY, make_trainer

from effnet_batch.errors import OutageError
from effnet_batch.storage import Storage, atomic, local
from effnet_batch.training.trainer import Trainer
from effnet_batch.training.worker import BEST_FILE, TrainTask, _History, _keep, _latest_state


def task_in(folder: Path, fingerprint: str = "a" * 16) -> TrainTask:
    objective: Any = types.SimpleNamespace(fingerprint=fingerprint, checkpoint=checkpoint_of)
    return TrainTask(objective=objective, folder=str(folder), messages=None)


def checkpoint_of(model: torch.nn.Module) -> bytes:
    return safetensors.torch.save(dict(model.state_dict()))


def keep_epoch(task: TrainTask, trainer: Trainer, metric: float) -> None:
    """Does what a worker does when an epoch is done."""
    trainer.epoch += 1
    line = {"epoch": trainer.epoch, "unix_seconds": 1.0, "val_auc": metric}
    history = _History("val_auc", [line])
    _keep(Storage(), task, trainer, history)


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
