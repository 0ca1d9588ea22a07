"""What runs on the workers of the rescoring job: parts with frames in, committed verdicts out."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from effnet_batch.config import RescoreConfig
from effnet_batch.errors import DecodeError, JobError, OutageError, RecordError
from effnet_batch.ledger import read_frames_of, reading
from effnet_batch.models.weights_file import check_sha256
from effnet_batch.pipelines.progress import ProgressBoard, UnitProgress
from effnet_batch.pipelines.rescore_resolve import ResolvedRescoring
from effnet_batch.pipelines.score_resolve import load_checkpoints
from effnet_batch.pipelines.units import Task, part_writer, receipt
from effnet_batch.schema import videos_schema
from effnet_batch.sink import FRAMES_KEY, frame_parts, read_metadata
from effnet_batch.stages.frames import StoredSegment, stored_segments
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.rescore import KEPT_COLUMNS, rescore_row
from effnet_batch.stages.score import Member, Scorer
from effnet_batch.storage import Storage

_SCHEMA: Final = videos_schema()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RescoreTask(Task):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: RescoreConfig
    resolved: ResolvedRescoring


class RescoreWorker:
    """Actor: reads a part and its frames, judges and commits.

    It holds the part, one file of frames (some 64 MB) and the embeddings of a segment; of a whole
    video where checkpoints now share a view that were stored with views of their own.
    """

    def __init__(self, task: RescoreTask, board: ProgressBoard) -> None:
        self._task = task
        self._board = board
        self._storage = Storage(task.storage)
        self._scorer = build_scorer(task)

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Does one unit; returns its receipt."""
        task, clock = self._task, StageClock()
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        try:
            for row in self._rows(unit, clock):
                table = pa.Table.from_pylist([row], _SCHEMA)
                writer.add(table)
                progress.count(table)
        except DecodeError as error:
            raise JobError(f"stored frames cannot be read: {error}") from error
        except RecordError as error:
            raise OutageError(
                f"stored frames cannot be read: {error}; run the same command again"
            ) from error
        writer.close()
        progress.finish()
        return receipt(writer, clock, ("read", "model", "write"))

    def _rows(self, unit: pa.Table, clock: StageClock) -> Iterator[dict[str, Any]]:
        """Yields the verdicts of the unit's records."""
        part, records = unit["part"][0].as_py(), unit["record"].combine_chunks()
        with clock.measure("read"):
            data = pa.BufferReader(self._storage.read(part))
            with reading(part):
                file = pq.ParquetFile(data)
                names = [name for name in KEPT_COLUMNS if name in file.schema_arrow.names]
                rows = file.read(names)
            rows = rows.filter(pc.is_in(rows["record_id"], value_set=records))
        num_frame_parts = read_metadata(file.schema_arrow).get(FRAMES_KEY, {}).get("num_parts", 0)
        frames = read_frames_of(self._storage, frame_parts(part, num_frame_parts), records=records)
        # Frames stand in the order of their records.
        groups = itertools.groupby(
            stored_segments(clock.measure_each(frames, "read")),
            key=lambda segment: segment.record_id,
        )
        ahead = next(groups, None)
        for row in rows.to_pylist():
            segments: Iterable[StoredSegment] = ()
            is_mine = ahead is not None and ahead[0] == row["record_id"]
            if ahead is not None and is_mine:
                segments = ahead[1]
            yield rescore_row(row, segments, self._scorer, self._task.stamp, clock)
            if is_mine:
                ahead = next(groups, None)


def build_scorer(task: RescoreTask) -> Scorer:
    """Loads the checkpoints; their encoders are not needed.

    Raises:
        FingerprintError: the checkpoints on this node are not those of the run.
    """
    torch.set_num_threads(1)
    resolved = task.resolved
    members = []
    for loaded, wanted, frames in zip(
        load_checkpoints(task.config), resolved.checkpoints, resolved.stored, strict=True
    ):
        check_sha256(wanted.info.name, loaded.sha256, wanted.sha256)
        view = resolved.view(wanted)
        members.append(
            Member(info=wanted.info, view=view, model=loaded.model, encoder=None, frames=frames)
        )
    return Scorer(members=members, thresholds=resolved.thresholds, min_frames=resolved.min_frames)
