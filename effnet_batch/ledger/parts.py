"""One part's ledger rows, from its last bytes."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import DecodeError, InputError
from effnet_batch.schema import LEDGER_COLUMNS, STATUSES
from effnet_batch.sink import METADATA_KEY
from effnet_batch.storage import Storage

ID: Final = pa.binary(16)
ROWS_SCHEMA: Final = pa.schema(
    [
        pa.field("source", ID),
        pa.field("record", ID),
        pa.field("version", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("status", pa.int8()),
        pa.field("need", pa.int64()),
        pa.field("part", pa.int32()),
    ]
)
"""The columns of a ledger; ``part`` is the part's place in its list."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One committed file as the listing shows it."""

    uri: str
    size_bytes: int


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Says which file of an output it is whose bytes are damaged.

    Raises:
        DecodeError: Parquet could not be read inside.
    """
    try:
        yield
    except pa.ArrowMemoryError:
        raise  # which says nothing of the file
    # pyarrow says OSError where the bytes themselves are damaged.
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DecodeError(
            f"{uri} is damaged ({reason}); move it away and run the job that wrote it again, which "
            "redoes what it held"
        ) from error


def check_columns(uri: str, schema: pa.Schema, columns: Sequence[str] | None) -> None:
    """Raises InputError where a file of an output has not all of the wanted columns."""
    unknown = [name for name in columns or () if name.partition(".")[0] not in schema.names]
    if unknown:
        raise InputError(f"{uri} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")


def list_parts(storage: Storage, data_uri: str) -> list[Part]:
    """Returns the parts of an output, sorted by name; none when it does not exist yet."""
    parts = [
        Part(info.uri, info.size_bytes or 0)
        for page in storage.list(data_uri)
        for info in page
        if info.uri.rsplit("/", 1)[-1].startswith("part-") and info.uri.endswith(".parquet")
    ]
    return sorted(parts, key=lambda part: part.uri)


def read_rows(storage: Storage, part: Part, tail: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Reads a part's rows of `ROWS_SCHEMA` but ``part``, and its metadata.

    Args:
        storage: gives the rest of the part where the tail is too short.
        part: which one.
        tail: its last bytes, as many as `tail_size` says or more.

    Raises:
        pa.ArrowException, OSError, KeyError, ValueError: it is no part of an output.
        RecordError: the rest of it cannot be read.
    """
    if _footer_size(tail) > len(tail):
        tail = storage.read(part.uri)
    file, start = _open_tail(part, tail)
    if file.metadata.num_row_groups and _ledger_offset(file.metadata) < start:
        file, _ = _open_tail(part, storage.read(part.uri))
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
        names=ROWS_SCHEMA.names[:-1],
    ).cast(pa.schema(list(ROWS_SCHEMA)[:-1]))
    return rows, dict(metadata)


def _status_codes(column: pa.ChunkedArray) -> pa.Array:
    codes = pc.index_in(column.cast(pa.string()), pa.array(STATUSES))
    if codes.null_count:
        raise ValueError("unknown status")
    return codes.cast(pa.int8())


def tail_size(size_bytes: int) -> int:
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


def ids_from_hex(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns 32-digit hex ids as 16-byte values, a quarter of the memory of strings.

    Raises:
        ValueError: an id is not of 32 hex digits.
    """
    chunks = []
    for chunk in ids.chunks:
        if not len(chunk):
            continue
        _, offsets, text = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(bounds) != 32).any():
            raise ValueError("ids must have 32 hex digits")
        data = bytes.fromhex(str(memoryview(text)[bounds[0] : bounds[-1]], "ascii"))
        if len(data) != 16 * len(chunk):  # fromhex passes over spaces
            raise ValueError("ids must have 32 hex digits")
        buffers = [None, pa.py_buffer(data)]
        chunks.append(pa.FixedSizeBinaryArray.from_buffers(ID, len(chunk), buffers))
    return pa.chunked_array(chunks, ID)
