"""What is done: the committed parts themselves, read back.

*Live rows* are those of a source's highest complete attempt, else of its highest; where a record
stands twice in an attempt, the part of the smallest name wins. A source is done when its live
attempt holds as many distinct records as its last record says, none of them failed for a passing
reason, and its version is unchanged.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import FetchError, OutageError, RecordError
from effnet_batch.schema import LEDGER_COLUMNS, STATUS_OK, STATUSES, TRANSIENT_STATUSES
from effnet_batch.sink import METADATA_KEY
from effnet_batch.storage import ReadRequest, Storage

_ID = pa.binary(16)
_ROWS_SCHEMA: Final = pa.schema(
    [
        pa.field("source", _ID),
        pa.field("record", _ID),
        pa.field("version", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("status", pa.int8()),
        pa.field("need", pa.int64()),
        pa.field("part", pa.int32()),
    ]
)
_TRANSIENT: Final = pa.array([STATUSES.index(name) for name in TRANSIENT_STATUSES], pa.int8())
_PARTS_PER_REQUEST: Final = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """One committed file as the listing shows it."""

    uri: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class SourceStates:
    """What the ledger knows of every source it has seen, one row each."""

    table: pa.Table
    """source (16 bytes); of its live attempt: attempt, is_complete, is_transient, version,
    num_records; of its highest attempt: last_attempt, last_version."""
    is_live: np.ndarray
    """bool, one per ledger row: whether readers see the row."""


class Ledger:
    """The rows of `LEDGER_COLUMNS` of every part of one output.

    Memory grows with the committed records, some 100 bytes each.
    """

    def __init__(self, storage: Storage, data_uri: str) -> None:
        self.storage = storage
        self.data_uri = data_uri
        self.parts: list[Part] = []
        self.unreadable: dict[str, str] = {}
        """Parts that cannot be read, with the reason; their records count as absent."""
        self.fingerprints: set[str] = set()
        """Every fingerprint found in a part."""
        self._tables: list[pa.Table] = []
        self._states: SourceStates | None = None

    @classmethod
    def scan(cls, storage: Storage, data_uri: str) -> "Ledger":
        """Reads the ledger of an output that may not exist yet."""
        ledger = cls(storage, data_uri)
        ledger.refresh()
        return ledger

    def refresh(self) -> None:
        """Takes in the parts that were committed since the last look.

        Raises:
            OutageError: storage does not give a part that is there.
        """
        known = {part.uri for part in self.parts} | self.unreadable.keys()
        new = [part for part in list_parts(self.storage, self.data_uri) if part.uri not in known]
        for start in range(0, len(new), _PARTS_PER_REQUEST):
            self._take(new[start : start + _PARTS_PER_REQUEST])
        self._states = None

    def _take(self, parts: list[Part]) -> None:
        sizes = {part.uri: _tail_size(part.size_bytes) for part in parts}
        tails = self.storage.read_tails([part.uri for part in parts], max(sizes.values()))
        for part, tail in zip(parts, tails, strict=True):
            if isinstance(tail, FetchError):
                if tail.is_transient:
                    raise OutageError(f"a part cannot be read now: {tail}")
                self.unreadable[part.uri] = str(tail)
                continue
            try:
                rows, fingerprint = self._read_rows(part, tail)
            # pyarrow says OSError where the bytes themselves are damaged.
            except (pa.ArrowException, OSError, KeyError, ValueError, RecordError) as error:
                self.unreadable[part.uri] = f"not a part: {error}"
                continue
            self.fingerprints.add(fingerprint)
            number = pa.array(np.full(rows.num_rows, len(self.parts), np.int32))
            self._tables.append(rows.append_column("part", number))
            self.parts.append(part)

    def _read_rows(self, part: Part, tail: bytes) -> tuple[pa.Table, str]:
        if _footer_size(tail) > len(tail):
            tail = self.storage.read(part.uri)
        file, start = _open_tail(part, tail)
        if file.metadata.num_row_groups and _ledger_offset(file.metadata) < start:
            file, _ = _open_tail(part, self.storage.read(part.uri))
        table = file.read(columns=list(LEDGER_COLUMNS), use_threads=False).combine_chunks()
        metadata = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
        rows = pa.table(
            [
                ids_from_hex(table["source_id"]),
                ids_from_hex(table["record_id"]),
                table["source_version"],
                table["attempt"],
                _status_codes(table["status"]),
                table["num_source_records"],
            ],
            names=_ROWS_SCHEMA.names[:-1],
        )
        return rows, str(metadata["fingerprint"])

    @property
    def rows(self) -> pa.Table:
        """Every committed row: source, record, version, attempt, status, need, part."""
        return pa.concat_tables(self._tables) if self._tables else _ROWS_SCHEMA.empty_table()

    def states(self) -> SourceStates:
        """Returns the state of every source, and which rows are live."""
        if self._states is None:
            self._states = _states(self.rows, self._part_order())
        return self._states

    def _part_order(self) -> np.ndarray:
        """Returns the rank of every part's name; refreshes may have found names out of order."""
        order = np.empty(len(self.parts), np.int64)
        names = [part.uri for part in self.parts]
        order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        return order

    def count_live_by_status(self) -> dict[str, int]:
        """Returns how many live records have each status, without the zeros."""
        codes = np.asarray(self.rows["status"])[self.states().is_live]
        counts = np.bincount(codes, minlength=len(STATUSES))
        return {STATUSES[code]: int(count) for code, count in enumerate(counts) if count}

    def sources_with_status(self, statuses: Iterable[str]) -> pa.Array:
        """Returns the ids (16 bytes) of the sources with a live record of one of these statuses."""
        codes = pa.array([STATUSES.index(name) for name in statuses], pa.int8())
        rows = self.rows.filter(pa.array(self.states().is_live))
        return pc.unique(rows.filter(pc.is_in(rows["status"], codes))["source"]).cast(_ID)

    def live(
        self, columns: Sequence[str] | None = None, *, only_ok: bool = False
    ) -> Iterator[pa.Table]:
        """Yields the live rows part by part, in the order of the parts' names.

        Args:
            columns: which columns, in this order; all when None.
            only_ok: leave out the records that failed.

        Raises:
            RecordError: a part vanished or broke since the scan.
        """
        is_live = self.states().is_live
        if only_ok:
            is_live = is_live & (np.asarray(self.rows["status"]) == STATUSES.index(STATUS_OK))
        starts = np.cumsum([0, *(table.num_rows for table in self._tables)])
        order = np.argsort(self._part_order())
        wanted = [int(i) for i in order if is_live[starts[i] : starts[i + 1]].any()]
        for chunk in (wanted[i : i + 8] for i in range(0, len(wanted), 8)):
            requests = [ReadRequest(self.parts[i].uri) for i in chunk]
            for i, data in zip(chunk, self.storage.read_many(requests), strict=True):
                if isinstance(data, RecordError):
                    raise data
                table = pq.read_table(
                    pa.BufferReader(data), columns=None if columns is None else list(columns)
                )
                mask = is_live[starts[i] : starts[i + 1]]
                yield table if mask.all() else table.filter(pa.array(mask))


def list_parts(storage: Storage, data_uri: str) -> list[Part]:
    """Returns the parts of an output, sorted by name; none when it does not exist yet."""
    parts = [
        Part(info.uri, info.size_bytes or 0)
        for page in storage.list(data_uri)
        for info in page
        if info.uri.rsplit("/", 1)[-1].startswith("part-") and info.uri.endswith(".parquet")
    ]
    return sorted(parts, key=lambda part: part.uri)


def ids_from_hex(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns 32-digit hex ids as 16-byte values, a quarter of the memory of strings.

    Raises:
        ValueError: an id is not of 32 hex digits.
    """
    chunks = []
    for chunk in ids.chunks:
        for start in range(0, len(chunk), 65_536):
            values = chunk.slice(start, 65_536).to_pylist()
            if any(len(value) != 32 for value in values):
                raise ValueError("ids must have 32 hex digits")
            data = pa.py_buffer(bytes.fromhex("".join(values)))
            chunks.append(pa.FixedSizeBinaryArray.from_buffers(_ID, len(values), [None, data]))
    return pa.chunked_array(chunks, _ID)


def _status_codes(column: pa.ChunkedArray) -> pa.Array:
    codes = pc.index_in(column.cast(pa.string()), pa.array(STATUSES))
    if codes.null_count:
        raise ValueError("unknown status")
    return codes.cast(pa.int8())


def _tail_size(size_bytes: int) -> int:
    """Returns a guess, in bytes, at what holds the footer and the ledger columns of a part."""
    return min(size_bytes, 32_768 + size_bytes // 48)


def _footer_size(tail: bytes) -> int:
    """Returns the size in bytes of the footer that a tail ends with, its length field included."""
    return int.from_bytes(tail[-8:-4], "little") + 8


def _open_tail(part: Part, tail: bytes) -> tuple[pq.ParquetFile, int]:
    """Opens a part of which only the last bytes are known; also returns where those start."""
    # Zero pages that nobody touches cost no memory, so the file may stand in its full size.
    start = max(0, part.size_bytes - len(tail))
    whole = np.zeros(part.size_bytes, np.uint8)
    whole[start:] = np.frombuffer(tail[-part.size_bytes :], np.uint8)
    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(whole)), pre_buffer=False), start


def _ledger_offset(metadata: pq.FileMetaData) -> int:
    """Returns the first byte of the ledger columns of the first row group."""
    group = metadata.row_group(0)
    offsets = []
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema in LEDGER_COLUMNS:
            offsets.append(column.data_page_offset)
            if column.has_dictionary_page:
                offsets.append(column.dictionary_page_offset)
    if not offsets:
        raise ValueError("the ledger columns are missing")
    return int(min(offsets))


def _states(rows: pa.Table, part_order: np.ndarray) -> SourceStates:
    parts = np.asarray(rows["part"])
    # Rank by (name of part, place in part): the first of equal records is the live one.
    rank = np.empty(len(parts), np.int64)
    rank[np.lexsort((np.arange(len(parts)), part_order[parts]))] = np.arange(len(parts))
    rows = rows.append_column("rank", pa.array(rank)).append_column(
        "is_transient", pc.is_in(rows["status"], _TRANSIENT)
    )
    firsts = rows.group_by(["source", "attempt", "record"], use_threads=False).aggregate(
        [("rank", "min")]
    )
    first = np.zeros(len(parts), bool)
    first[np.asarray(firsts["rank_min"])] = True
    is_first = first[rank]
    attempts = (
        rows.filter(pa.array(is_first))
        .group_by(["source", "attempt"], use_threads=False)
        .aggregate(
            [([], "count_all"), ("need", "max"), ("is_transient", "any"), ("version", "max")]
        )
    )
    is_complete = pc.fill_null(pc.equal(attempts["count_all"], attempts["need_max"]), False)
    attempts = pa.table(
        {
            "source": attempts["source"],
            "attempt": attempts["attempt"],
            "is_complete": is_complete,
            "is_transient": attempts["is_transient_any"],
            "version": attempts["version_max"],
            "num_records": attempts["count_all"],
            # Complete attempts stand above all others, then the higher number wins.
            "order": pc.add(
                attempts["attempt"].cast(pa.int64()),
                pc.multiply(is_complete.cast(pa.int64()), 1 << 32),
            ),
        }
    )
    best = attempts.group_by("source", use_threads=False).aggregate(
        [("order", "max"), ("attempt", "max")]
    )
    if best.num_rows == attempts.num_rows:  # one attempt each, the usual case
        table = attempts.append_column("last_attempt", attempts["attempt"])
        table = table.append_column("last_version", attempts["version"])
        return SourceStates(table.drop_columns(["order"]), is_first)
    best = best.rename_columns({"order_max": "order", "attempt_max": "last_attempt"})
    last = attempts.select(["source", "attempt", "version"]).rename_columns(
        ["source", "last_attempt", "last_version"]
    )
    table = attempts.join(best, ["source", "order"], join_type="inner", use_threads=False)
    table = table.join(last, ["source", "last_attempt"], join_type="inner", use_threads=False)
    live = table.select(["source", "attempt"]).append_column(
        "is_live", pa.array(np.ones(table.num_rows, bool))
    )
    marked = rows.select(["source", "attempt", "rank"]).join(
        live, ["source", "attempt"], use_threads=False
    )
    by_rank = np.asarray(pc.fill_null(marked.sort_by("rank")["is_live"], False))
    is_live = by_rank[rank] & is_first
    return SourceStates(table.drop_columns(["order"]), is_live)


def describe(parts: dict[str, Any], limit: int = 20) -> str:
    """Returns the first ``limit`` entries of a mapping as lines, and how many more there are."""
    lines = [f"  {name}: {reason}" for name, reason in list(parts.items())[:limit]]
    more = len(parts) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
