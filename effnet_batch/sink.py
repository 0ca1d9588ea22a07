"""Writing an output: where its files lie, and how a part is committed.

A part is built in memory and put under its name in one atomic step, so that a reader sees all of
it or none. Its name holds the run and the task, so that a retried task overwrites only its own part
and no run ever writes another run's name.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.schema import STATUS_OK
from effnet_batch.storage import Storage, join

METADATA_KEY: Final = b"effnet_batch"
"""Key of our JSON in a part's schema metadata."""

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

    Parts are cut by rows alone, so that doing a unit again writes the same parts.

    Attributes:
        totals: counts of what is committed: num_parts, num_records, num_failed, size_bytes.
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
        self.totals = {"num_parts": 0, "num_records": 0, "num_failed": 0, "size_bytes": 0}

    def add(self, table: pa.Table) -> None:
        """Takes rows of the output's schema."""
        self._tables.append(table)
        self._num_waiting += len(table)
        if self._num_waiting >= self._rows_per_part:
            self.close()

    def close(self) -> None:
        """Commits what is waiting."""
        if not self._num_waiting:
            return
        table = pa.concat_tables(self._tables)
        uri = self._paths.part(self._run_id, self._unit, self._index)
        with self._measure():
            size = commit_part(self._storage, uri, table, self._metadata)
        self.totals["num_parts"] += 1
        self.totals["num_records"] += len(table)
        self.totals["num_failed"] += num_failed(table)
        self.totals["size_bytes"] += size
        self._index += 1
        self._tables, self._num_waiting = [], 0


def num_failed(table: pa.Table) -> int:
    """Returns how many rows have a status other than ok."""
    return int(pc.sum(pc.not_equal(table["status"], STATUS_OK)).as_py() or 0)
