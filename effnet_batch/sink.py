"""Writing an output: where its files lie, and how a part is committed.

A part is built in memory and put under its name in one atomic step, so that a reader sees all of
it or none. Its name holds the run and the task, so that a retried task overwrites only its own part
and no run ever writes another run's name.

Where records have frame embeddings, those lie beside in ``frames/``, in one or more parts under the
name of the records' part. They are written first and are invisible without it: it says how many
they are, and frames that no part speaks of are what a killed writer left.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.schema import STATUS_OK
from effnet_batch.storage import Storage, join

METADATA_KEY: Final = b"effnet_batch"
"""Key of our JSON in a part's schema metadata."""

FRAMES_KEY: Final = "frames"
"""Key, in a part's metadata, of what its frames are: ``num_parts`` and ``num_rows``."""

_FRAME_PART_BYTES: Final = 64 << 20
"""Bytes of frame rows, before compression, that a writer holds before it commits them."""

_DICTIONARY_COLUMNS: Final = (
    "uri",
    "label",
    "group",
    "split",
    "error_type",
    "error_message",
    "run_id",
    "fingerprint",
    "source_id",
    "source_version",
    "attempt",
    "status",
    "num_source_records",
)


@dataclasses.dataclass(frozen=True)
class OutputPaths:
    """Where the files of an output lie."""

    root: str
    """Canonical URI of the output folder."""

    @property
    def data(self) -> str:
        """Folder of the committed parts."""
        return join(self.root, "data")

    @property
    def frames(self) -> str:
        """Folder of the frame embeddings, if the job stores any."""
        return frame_folder(self.data)

    @property
    def manifest(self) -> str:
        """Folder of the manifest."""
        return join(self.root, "manifest")

    @property
    def run(self) -> str:
        """The record of the latest run."""
        return join(self.root, "run.json")

    @property
    def lock(self) -> str:
        """The lock that keeps a second run out."""
        return join(self.root, "_lock.json")

    @property
    def runs(self) -> str:
        """Folder of the records of all runs."""
        return join(self.root, "runs")

    @property
    def quarantine(self) -> str:
        """Folder of damaged parts that were moved out of the way."""
        return join(self.root, "quarantine")

    @property
    def tmp(self) -> str:
        """Folder where a disk has files while they are written; a crash may leave some."""
        return join(self.root, "_tmp")

    @property
    def forgotten(self) -> str:
        """Ids of the sources that were erased and must not come back."""
        return join(self.root, "forgotten.json")

    def part(self, run_id: str, task_index: int, sub_index: int = 0) -> str:
        """Returns the URI of the part of one task; ``sub_index`` counts parts of a large shard."""
        return join(self.data, f"part-{run_id}-{task_index:06}-{sub_index:04}.parquet")


def frame_parts(part: str, num_parts: int) -> list[str]:
    """Returns the URIs of the frame embeddings of a part."""
    data, _, name = part.rpartition("/")
    stem = join(frame_folder(data), name.removesuffix(".parquet"))
    return [f"{stem}-{index:04}.parquet" for index in range(num_parts)]


def frame_folder(data: str) -> str:
    """Returns the folder of the frame embeddings beside the folder of the parts."""
    return join(data.rpartition("/")[0], "frames")


def commit_part(storage: Storage, uri: str, table: pa.Table, metadata: dict[str, Any]) -> int:
    """Writes one part atomically.

    Args:
        storage: where to.
        uri: from `OutputPaths.part`.
        table: rows of the output's schema.
        metadata: JSON values for the schema metadata; readers find them under ``effnet_batch``.

    Returns:
        The part's size in bytes.
    """
    data = part_bytes(table, metadata)
    storage.write(uri, data)
    return len(data)


def part_bytes(table: pa.Table, metadata: dict[str, Any]) -> bytes:
    """Returns a table as Parquet: zstd, no dictionary and no statistics on the vectors."""
    merged = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(metadata).encode()}
    table = table.replace_schema_metadata(merged)
    scalar = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=[name for name in scalar if name in _DICTIONARY_COLUMNS],
        write_statistics=scalar,
    )
    return bytes(buffer.getvalue())


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Returns what `commit_part` put into the schema metadata; empty when it is not ours."""
    value = (schema.metadata or {}).get(METADATA_KEY)
    return dict(json.loads(value)) if value else {}


class PartWriter:
    """Gathers the rows of one unit and commits a part whenever there are enough.

    Parts are cut by rows alone, so that doing a unit again writes the same parts. Frames are
    committed as they come, so that no more than `_FRAME_PART_BYTES` of them are held.

    Attributes:
        totals: counts of what is committed: num_parts, num_records, num_failed, size_bytes.
        num_bytes: before compression, of the rows that are gathered for the next part, and of their
            frames, committed or not.
    """

    def __init__(
        self,
        storage: Storage,
        paths: OutputPaths,
        run_id: str,
        unit: int,
        *,
        rows_per_part: int,
        metadata: dict[str, Any],
        measure: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        first_index: int = 0,
    ) -> None:
        """Opens the writer; nothing is written yet.

        Args:
            storage: where to.
            paths: of the output.
            run_id: of this run.
            unit: number of the unit.
            rows_per_part: a part has at least as many, but for the last.
            metadata: for `commit_part`.
            measure: entered around every commit, to time it.
            first_index: number of the unit's first part.
        """
        self._storage, self._paths, self._run_id, self._unit = storage, paths, run_id, unit
        self._rows_per_part, self._metadata, self._measure = rows_per_part, metadata, measure
        self._index = first_index
        self._tables: list[pa.Table] = []
        self._num_waiting = 0
        self._frames: list[pa.Table] = []
        self._frame_bytes = 0
        self._frame_sizes: list[int] = []  # rows of each part of frames
        self.num_bytes = 0
        self.totals = {"num_parts": 0, "num_records": 0, "num_failed": 0, "size_bytes": 0}

    def add(self, table: pa.Table, frames: Iterable[pa.Table] = ()) -> None:
        """Takes rows of the output's schema, and rows of `schema.frames_schema` that are theirs."""
        for rows in frames:
            self._frames.append(rows)
            self._frame_bytes += rows.nbytes
            self.num_bytes += rows.nbytes
            if self._frame_bytes >= _FRAME_PART_BYTES:
                self._commit_frames()
        self._tables.append(table)
        self._num_waiting += len(table)
        self.num_bytes += table.nbytes
        if self._num_waiting >= self._rows_per_part:
            self.close()

    def close(self) -> None:
        """Commits what is waiting."""
        if not self._num_waiting:
            return
        if self._frames:
            self._commit_frames()
        metadata = self._metadata
        if self._frame_sizes:
            frames = {"num_parts": len(self._frame_sizes), "num_rows": sum(self._frame_sizes)}
            metadata = {**metadata, FRAMES_KEY: frames}
        # What is joined may have been written by releases that knew fewer columns.
        table = pa.concat_tables(self._tables, promote_options="default")
        self._commit(self._uri(), table, metadata)
        self.totals["num_parts"] += 1
        self.totals["num_records"] += len(table)
        self.totals["num_failed"] += num_failed(table)
        self._index += 1
        self._tables, self._num_waiting, self._frame_sizes, self.num_bytes = [], 0, [], 0

    def _commit_frames(self) -> None:
        table = pa.concat_tables(self._frames, promote_options="default")
        uri = frame_parts(self._uri(), len(self._frame_sizes) + 1)[-1]
        self._commit(uri, table, self._metadata)
        self._frame_sizes.append(len(table))
        self._frames, self._frame_bytes = [], 0

    def _commit(self, uri: str, table: pa.Table, metadata: dict[str, Any]) -> None:
        with self._measure():
            self.totals["size_bytes"] += commit_part(self._storage, uri, table, metadata)

    def _uri(self) -> str:
        return self._paths.part(self._run_id, self._unit, self._index)


def num_failed(table: pa.Table) -> int:
    """Returns how many rows have a status other than ok."""
    return int(pc.sum(pc.not_equal(table["status"], STATUS_OK)).as_py() or 0)
