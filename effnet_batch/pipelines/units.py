"""What the workers of every job share: a unit's sources in, its committed parts out."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import InputSettings, JobConfig
from effnet_batch.pipelines.metrics import publish_clock, publish_written
from effnet_batch.pipelines.progress import ProgressBoard
from effnet_batch.pipelines.resolution import Resolution
from effnet_batch.schema import KIND_IMAGE
from effnet_batch.sink import OutputPaths, PartWriter
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item, OutageGuard, read_items, sources_from_table
from effnet_batch.stages.records import Stamp
from effnet_batch.storage import Storage, StorageOptions

STAGES: Final = ("read", "decode", "model", "write")
"""What a worker measures that does everything itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: JobConfig
    storage: StorageOptions
    output: str
    run_id: str
    resolved: Resolution
    num_lanes: int
    rows_per_part: int

    @property
    def stamp(self) -> Stamp:
        """What every row carries."""
        return Stamp(self.run_id, self.resolved.fingerprint.digest)

    def part_metadata(self) -> dict[str, Any]:
        """Returns what a part's schema metadata says of its numbers."""
        return {
            "run_id": self.run_id,
            "fingerprint": self.resolved.fingerprint.digest,
            "weights": self.resolved.model_names,
            "fingerprint_fields": self.resolved.fingerprint.to_dict(),
            "versions": self.resolved.versions,
        }


def read_unit(
    task: Task,
    unit: pa.Table,
    storage: Storage,
    guard: OutageGuard,
    board: ProgressBoard,
    *,
    max_bytes: int,
    medium: str = KIND_IMAGE,
) -> Iterator[Item]:
    """Yields what the sources of a unit hold; the board hears of shards that break off."""
    return read_items(
        sources_from_table(unit),
        storage,
        guard,
        max_bytes=max_bytes,
        media_column=task.config.group(InputSettings).media_column,
        on_incomplete=lambda source, error: board.incomplete(source.uri, str(error)),
        medium=medium,
    )


def part_writer(
    task: Task, storage: Storage, unit: int, clock: StageClock, first_index: int = 0
) -> PartWriter:
    """Returns the writer of a unit's parts."""
    return PartWriter(
        storage,
        OutputPaths(task.output),
        task.run_id,
        unit,
        rows_per_part=task.rows_per_part,
        metadata=task.part_metadata(),
        measure=lambda: clock.measure("write"),
        first_index=first_index,
    )


def receipt(writer: PartWriter, clock: StageClock, stages: tuple[str, ...] = STAGES) -> pa.Table:
    """Returns one row: what was committed and how long each of the measured stages took.

    The same is published as metrics.
    """
    seconds = {stage: float(clock.seconds[stage]) for stage in stages}
    publish_clock(clock, stages)
    publish_written(writer.totals["size_bytes"])
    named = {f"{stage}_seconds": value for stage, value in seconds.items()}
    return pa.table({name: [value] for name, value in {**writer.totals, **named}.items()})
