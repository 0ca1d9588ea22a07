"""The ledger of one output: found by listing, read from the parts' tails, kept up to date."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import FetchError, InputError, OutageError, RecordError
from effnet_batch.ledger.parts import (
    ID,
    ROWS_SCHEMA,
    Part,
    check_columns,
    list_parts,
    read_rows,
    reading,
    tail_size,
)
from effnet_batch.ledger.states import SourceStates, group_states
from effnet_batch.prefixes import EVERY, RowsByPrefix, cut_passes
from effnet_batch.schema import STATUSES
from effnet_batch.sink import FRAMES_KEY, frame_folder, frame_parts
from effnet_batch.storage import ReadRequest, Storage

_PARTS_PER_REQUEST: Final = 128


@dataclasses.dataclass(frozen=True)
class LedgerPass:
    """What is committed of the sources of one pass."""

    rows: pa.Table
    """Of `ROWS_SCHEMA`."""
    numbers: np.ndarray
    """int64, one per row: its place among all rows of the ledger."""
    states: SourceStates
    """The state of every source, and which rows are live."""

    def count_live_by_status(self) -> dict[str, int]:
        """Returns how many live records have each status, without the zeros."""
        codes = np.asarray(self.rows["status"])[self.states.is_live]
        counts = np.bincount(codes, minlength=len(STATUSES))
        return {STATUSES[code]: int(count) for code, count in enumerate(counts) if count}

    def sources_with_status(self, statuses: Iterable[str]) -> pa.Array:
        """Returns the ids (16 bytes) of the sources with a live record of one of these statuses."""
        is_wanted = self.states.is_live & self.has_status(statuses)
        return pc.unique(self.rows["source"].filter(pa.array(is_wanted))).cast(ID)

    def has_status(self, statuses: Iterable[str]) -> np.ndarray:
        """Returns which rows have one of these statuses, as bool [number of rows]."""
        codes = pa.array([STATUSES.index(name) for name in statuses], pa.int8())
        return np.asarray(pc.is_in(self.rows["status"], codes))


class Ledger:
    """The rows of `LEDGER_COLUMNS` of every part of one output, some 100 bytes each.

    Attributes:
        rows: every committed row, of `ROWS_SCHEMA`.
    """

    def __init__(self, storage: Storage, data_uri: str) -> None:
        self.storage = storage
        self.data_uri = data_uri
        self.parts: list[Part] = []
        self.unreadable: dict[str, str] = {}
        """Parts that cannot be read, with the reason; their records count as absent."""
        self.fingerprints: set[str] = set()
        """Every fingerprint found in a part."""
        self.frames: dict[str, list[str]] = {}
        """The parts of frame embeddings of every part that has any, by its URI."""
        self.rows = RowsByPrefix(ROWS_SCHEMA, "source")
        self._num_rows: list[int] = []  # of every part
        self._listed_frames: set[str] | None = None

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
        self._listed_frames = None
        groups = [
            new[start : start + _PARTS_PER_REQUEST]
            for start in range(0, len(new), _PARTS_PER_REQUEST)
        ]
        # One group is on its way while the one before it is parsed.
        with ThreadPoolExecutor(1, thread_name_prefix="ledger") as ahead:
            coming = [ahead.submit(self._fetch, group) for group in groups[:1]]
            for index, group in enumerate(groups):
                tails = coming.pop().result()
                coming += [ahead.submit(self._fetch, each) for each in groups[index + 1 :][:1]]
                self._take(group, tails)

    def _fetch(self, parts: list[Part]) -> list[bytes | FetchError]:
        num_bytes = max(tail_size(part.size_bytes) for part in parts)
        return self.storage.read_tails([part.uri for part in parts], num_bytes)

    def _take(self, parts: list[Part], tails: list[bytes | FetchError]) -> None:
        tables: list[pa.Table] = []
        readable: list[Part] = []
        for part, tail in zip(parts, tails, strict=True):
            if isinstance(tail, FetchError):
                if tail.is_transient:
                    raise OutageError(f"a part cannot be read now: {tail}")
                self.unreadable[part.uri] = str(tail)
                continue
            try:
                rows, metadata = read_rows(self.storage, part, tail)
                fingerprint = str(metadata["fingerprint"])
                num_frame_parts = int(metadata.get(FRAMES_KEY, {}).get("num_parts", 0))
            # pyarrow says OSError where the bytes themselves are damaged.
            except (pa.ArrowException, OSError, KeyError, ValueError, RecordError) as error:
                self.unreadable[part.uri] = f"not a part: {error}"
                continue
            if num_frame_parts:
                frames = frame_parts(part.uri, num_frame_parts)
                if missing := [uri for uri in frames if uri not in self._frame_names()]:
                    self.unreadable[part.uri] = f"its frames {missing[0]} are missing"
                    continue
                self.frames[part.uri] = frames
            self.fingerprints.add(fingerprint)
            number = np.full(rows.num_rows, len(self.parts) + len(readable), np.int32)
            tables.append(rows.append_column("part", pa.array(number)))
            readable.append(part)
        if readable:
            self.parts += readable
            self._num_rows += [table.num_rows for table in tables]
            # Thousands of small tables cost more memory than what is in them.
            self.rows.add(pa.concat_tables(tables).combine_chunks())

    def _frame_names(self) -> set[str]:
        """Returns the frames that are there; listed after the parts, which are committed later."""
        if self._listed_frames is None:
            folder = frame_folder(self.data_uri)
            self._listed_frames = {i.uri for page in self.storage.list(folder) for i in page}
        return self._listed_frames

    def check_readable(self) -> None:
        """Refuses an output of which a part cannot be read: what is made of the rest is wrong.

        Raises:
            InputError: names a part.
        """
        if self.unreadable:
            uri, why = next(iter(self.unreadable.items()))
            raise InputError(
                f"{len(self.unreadable)} parts cannot be read, such as {uri}: {why}; "
                f"run the job again, which redoes them"
            )

    def read(self, prefixes: range = EVERY) -> LedgerPass:
        """Returns what is committed of the sources of a pass, by default of all."""
        rows, numbers = self.rows.read_numbered(prefixes)
        return LedgerPass(rows, numbers, group_states(rows, self._part_order()))

    def _part_order(self) -> np.ndarray:
        """Returns the rank of every part's name; refreshes may have found names out of order."""
        order = np.empty(len(self.parts), np.int64)
        names = [part.uri for part in self.parts]
        order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        return order

    def live(
        self,
        columns: Sequence[str] | None = None,
        *,
        statuses: Sequence[str] = STATUSES,
        records: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Yields the live rows part by part, as `live_parts` does."""
        return (table for _, table in self.live_parts(columns, statuses=statuses, records=records))

    def live_parts(
        self,
        columns: Sequence[str] | None = None,
        *,
        statuses: Sequence[str] = STATUSES,
        records: Sequence[str] | None = None,
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yields the URI and the live rows of every part with any, in the order of their names.

        Args:
            columns: which columns, in this order; all when None.
            statuses: only records of these; parts without any are not read.
            records: only those of these ids, in hex; parts without any are not read.

        Raises:
            RecordError: a part vanished or broke since the scan.
        """
        ids = None
        if records is not None:
            ids = pa.array([bytes.fromhex(record) for record in records], ID)
        is_wanted = np.zeros(self.rows.num_rows, bool)
        for prefixes in cut_passes(self.rows):
            found = self.read(prefixes)
            is_found = found.states.is_live & found.has_status(statuses)
            if ids is not None:
                is_found &= np.asarray(pc.is_in(found.rows["record"], value_set=ids))
            is_wanted[found.numbers] = is_found
        starts = np.cumsum([0, *self._num_rows])
        order = np.argsort(self._part_order())
        wanted = [int(i) for i in order if is_wanted[starts[i] : starts[i + 1]].any()]
        for chunk in (wanted[i : i + 8] for i in range(0, len(wanted), 8)):
            requests = [ReadRequest(self.parts[i].uri) for i in chunk]
            for i, data in zip(chunk, self.storage.read_many(requests), strict=True):
                if isinstance(data, RecordError):
                    raise data
                uri = self.parts[i].uri
                with reading(uri):
                    check_columns(uri, pq.read_schema(pa.BufferReader(data)), columns)
                    table = pq.read_table(
                        pa.BufferReader(data), columns=None if columns is None else list(columns)
                    )
                mask = is_wanted[starts[i] : starts[i + 1]]
                rows = table if mask.all() else table.filter(pa.array(mask))
                yield uri, rows
