"""Rows by the prefix of their source's id, so that many sources are gone over a few at a time.

A prefix is the first byte of an id. Ids are hashes, so every prefix holds its share of a listing,
and all that is known of a source stands under one prefix: whatever joins rows by their source works
on one range of prefixes after the other, which is called a pass, and needs the memory of one. What
fits one pass is held in memory as it is; beyond, rows wait in a temporary file of this machine,
which has no name and so goes with the process, however that ends.
"""

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.errors import StorageError

ROWS_PER_PASS = 10_000_000
"""So many sources or records are held in memory at once, but for chance."""

_NUM_PREFIXES: Final = 256
EVERY: Final = range(_NUM_PREFIXES)
"""All prefixes."""

_ROWS_PER_CHUNK: Final = 262_144
_NUMBER: Final = "_number"
_HEX: Final = pa.array([f"{prefix:02x}" for prefix in EVERY])
_BYTES: Final = pa.array([bytes([prefix]) for prefix in EVERY], pa.binary(1))


class RowsByPrefix:
    """Rows of one schema that are read back by ranges of prefixes.

    Attributes:
        schema: of the rows, its metadata included.
        num_rows: how many there are.
    """

    def __init__(self, schema: pa.Schema, id_column: str = "source_id") -> None:
        """Makes one without rows.

        Args:
            schema: of the rows.
            id_column: holds the ids of sources, as hex strings or as 16 bytes.
        """
        self.schema = schema
        self.num_rows = 0
        self._id_column = id_column
        self._held: list[pa.Table] = []
        self._num_held = 0
        self._file: Any = None
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in EVERY]  # offset and size in bytes
        self._num_spilled = np.zeros(_NUM_PREFIXES, np.int64)

    def add(self, table: pa.Table) -> None:
        """Takes rows.

        Raises:
            StorageError: the disk of the temporary file is full.
        """
        self._held.append(table)
        self._num_held += table.num_rows
        self.num_rows += table.num_rows
        if self._num_held > (ROWS_PER_PASS if self._file is None else _ROWS_PER_CHUNK):
            self._spill()

    def read(self, prefixes: range = EVERY) -> pa.Table:
        """Returns the rows of a range of prefixes; those of one source stand as they came."""
        return self.read_numbered(prefixes)[0]

    def read_numbered(self, prefixes: range = EVERY) -> tuple[pa.Table, np.ndarray]:
        """Returns the rows of a range of prefixes, and the place at which each came, from 0."""
        if self._file is None:
            tables = [self.schema.empty_table(), *self._held]
            table = pa.concat_tables(tables).replace_schema_metadata(self.schema.metadata)
            if prefixes == EVERY:
                return table, np.arange(table.num_rows)
            found = _prefixes_of(table[self._id_column])
            places = np.flatnonzero((found >= prefixes.start) & (found < prefixes.stop))
            return table.take(places), places
        self._spill()
        schema = self.schema.append(pa.field(_NUMBER, pa.int64()))
        tables = [schema.empty_table(), *(self._load(prefix) for prefix in prefixes)]
        table = pa.concat_tables(tables).replace_schema_metadata(self.schema.metadata)
        return table.drop_columns([_NUMBER]), np.asarray(table[_NUMBER])

    def count_by_prefix(self) -> np.ndarray:
        """Returns how many rows every prefix has, as int64 [256]."""
        counts = self._num_spilled.copy()
        for table in self._held:
            counts += np.bincount(_prefixes_of(table[self._id_column]), minlength=_NUM_PREFIXES)
        return counts

    def tables(self) -> Iterator[pa.Table]:
        """Yields all rows, a pass at a time."""
        for prefixes in cut_passes(self):
            yield self.read(prefixes)

    def _spill(self) -> None:
        """Moves what is held in memory to the file, every prefix in chunks of its own."""
        if not self._num_held:
            return
        held = pa.concat_tables(self._held)
        first = self.num_rows - self._num_held
        self._held, self._num_held = [], 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="effnet-batch-")  # noqa: SIM115
            for start in range(0, held.num_rows, _ROWS_PER_CHUNK):
                self._write(held.slice(start, _ROWS_PER_CHUNK).combine_chunks(), first + start)
        except OSError as error:
            raise StorageError(
                f"temporary files in {tempfile.gettempdir()}: {error}; "
                "set TMPDIR to a folder of a larger disk"
            ) from error

    def _write(self, table: pa.Table, first: int) -> None:
        found = _prefixes_of(table[self._id_column])
        order = np.argsort(found, kind="stable")
        numbers = pa.array(np.arange(first, first + table.num_rows))
        table = table.append_column(_NUMBER, numbers).take(order)
        self._num_spilled += np.bincount(found, minlength=_NUM_PREFIXES)
        bounds = np.searchsorted(found[order], np.arange(_NUM_PREFIXES + 1))
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._file.seek(0, 2)
        for prefix, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if start < stop:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                    writer.write_table(table.slice(start, stop - start))
                data = sink.getvalue()
                self._chunks[prefix].append((self._file.tell(), data.size))
                self._file.write(data)

    def _load(self, prefix: int) -> pa.Table:
        """Returns the rows of one prefix and their places."""
        tables = []
        for offset, size in self._chunks[prefix]:
            self._file.seek(offset)
            tables.append(pa.ipc.open_stream(self._file.read(size)).read_all())
        schema = self.schema.append(pa.field(_NUMBER, pa.int64()))
        # Thousands of small tables cost more memory than what is in them.
        return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def cut_passes(*rows: RowsByPrefix) -> list[range]:
    """Returns ranges of prefixes, together all of them, none of which holds more than a pass.

    What is to be joined is given together, so that the same ranges serve for all of it. Only where
    one prefix alone holds more than a pass, which takes billions of sources, a range does too.
    """
    if max(one.num_rows for one in rows) <= ROWS_PER_PASS:
        return [EVERY]
    totals = np.cumsum([one.count_by_prefix() for one in rows], axis=1)
    bounds = [0]
    before = np.zeros(len(rows), np.int64)
    for prefix in EVERY[1:]:
        if (totals[:, prefix] - before > ROWS_PER_PASS).any():
            bounds.append(prefix)
            before = totals[:, prefix - 1]
    return [range(start, stop) for start, stop in itertools.pairwise([*bounds, _NUM_PREFIXES])]


def _prefixes_of(ids: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(ids.type):
        found = pc.index_in(pc.utf8_slice_codeunits(ids, 0, 2), _HEX)
    else:
        found = pc.index_in(pc.binary_slice(ids, 0, 1).cast(_BYTES.type), _BYTES)
    # A damaged id is refused where ids are joined.
    return np.asarray(pc.fill_null(found, 0)).astype(np.uint8)
