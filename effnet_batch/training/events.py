"""Metrics as curves that other tools draw, and the event files that TensorBoard reads them from."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

_PLACES: Final = ("epoch", "step", "unix_seconds")
"""Of a line of metrics: when it was, not what was measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One line of metrics, as points of curves."""

    epoch: int
    """From 1."""
    step: int
    """Where it stands: a step's number over all epochs, from 1; an epoch's number."""
    unix_seconds: float
    values: dict[str, float]
    """By curve: ``step/loss`` of a step, ``epoch/NAME`` and ``val/NAME`` of an epoch."""


def points_of(lines: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Returns a point for each line of metrics, from the first of a run on."""
    points = []
    num_steps = 0
    for line in lines:
        is_step = "step" in line
        num_steps += is_step
        points.append(
            Point(
                epoch=line["epoch"],
                step=num_steps if is_step else line["epoch"],
                unix_seconds=line["unix_seconds"],
                values={
                    _curve(name, is_step=is_step): float(value)
                    for name, value in line.items()
                    if name not in _PLACES and isinstance(value, int | float)
                },
            )
        )
    return points


def event_file_name(epoch: int) -> str:
    """Returns the name of an epoch's file; TensorBoard reads a folder's in the order of names."""
    return f"events.out.tfevents.{epoch:06}.effnet_batch"


def event_file(points: Sequence[Point]) -> bytes:
    """Returns an event file; the same points always give the same bytes."""
    events = [Event(wall_time=points[0].unix_seconds, file_version="brain.Event:2")]
    for point in points:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
        summary = Summary(value=values)
        events.append(Event(wall_time=point.unix_seconds, step=point.step, summary=summary))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        writer = RecordWriter(str(path))
        for event in events:
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def _curve(name: str, *, is_step: bool) -> str:
    if is_step:
        return f"step/{name}"
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"epoch/{name}"
