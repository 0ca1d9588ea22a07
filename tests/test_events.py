"""Event files, as TensorBoard's own reader finds them."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from effnet_batch.training.events import event_file, event_file_name, points_of

LINES: list[dict[str, Any]] = [
    {"epoch": 1, "step": 1, "loss": 0.5, "unix_seconds": 100.0},
    {"epoch": 1, "step": 2, "loss": 0.25, "unix_seconds": 101.0},
    {"epoch": 1, "mean_loss": 0.375, "val_auc": 0.75, "name": "x", "unix_seconds": 102.0},
    {"epoch": 2, "step": 1, "loss": 0.125, "unix_seconds": 103.0},
    {"epoch": 2, "mean_loss": 0.125, "val_auc": 1.0, "name": "x", "unix_seconds": 104.0},
]


def write(folder: Path, epoch: int, lines: list[dict[str, Any]]) -> None:
    points = [point for point in points_of(lines) if point.epoch == epoch]
    (folder / event_file_name(epoch)).write_bytes(event_file(points))


def curves(reader: EventAccumulator) -> dict[str, list[tuple[float, int, float]]]:
    reader.Reload()
    return {
        tag: [(one.wall_time, one.step, one.value) for one in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_reads_epoch_after_epoch(tmp_path: Path) -> None:
    reader = EventAccumulator(str(tmp_path))
    write(tmp_path, 1, LINES[:3])
    first = {
        "step/loss": [(100.0, 1, 0.5), (101.0, 2, 0.25)],
        "epoch/mean_loss": [(102.0, 1, 0.375)],
        "val/auc": [(102.0, 1, 0.75)],
    }
    assert curves(reader) == first
    # It goes on where it is while training does.
    write(tmp_path, 2, LINES)
    assert curves(reader) == {
        "step/loss": [*first["step/loss"], (103.0, 3, 0.125)],
        "epoch/mean_loss": [*first["epoch/mean_loss"], (104.0, 2, 0.125)],
        "val/auc": [*first["val/auc"], (104.0, 2, 1.0)],
    }
    assert curves(EventAccumulator(str(tmp_path))) == curves(reader)
