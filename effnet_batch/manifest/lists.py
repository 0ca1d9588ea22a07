"""Lists of URIs: text, CSV, TSV, JSON lines, Parquet; read entry by entry, believed in nothing."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import InputError
from effnet_batch.manifest.columns import METADATA_KEY, as_utf8
from effnet_batch.schema import MEDIA
from effnet_batch.shards import find_media_column
from effnet_batch.vocabulary import URI_COLUMNS

LIST_EXTENSIONS: Final = {
    ".txt": "text",
    ".lst": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
"""Extension of a list -> its format."""

MAX_LINE_BYTES: Final = 65_536
_CHUNK_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 4096
_OTHER_COLUMNS: Final = ("label", "group", "split")
_MANIFEST_COLUMNS: Final = ("kind", "size_bytes", "etag", "mtime", "is_signed")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line or row of a list, as it stands there."""

    line: int
    """Number of the line, or of the row of a Parquet file, from 1."""
    text: str = ""
    """The URI; bytes that are not UTF-8 are surrogates, as `os.fsdecode` gives them."""
    label: str | None = None
    group: str | None = None
    split: str | None = None
    problem: str | None = None
    """Why the entry has no URI."""
    kind: str | None = None
    size_bytes: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    is_signed: bool = False
    """From here on, as `kind`: only a manifest says it."""


def look_at_parquet(
    stream: BinaryIO, media: Sequence[str], media_column: str | None = None
) -> tuple[bool, str | None]:
    """Looks at the schema of a Parquet file.

    A file that cannot be read is no list: as a shard it becomes a record that says so.

    Args:
        stream: of the file.
        media: what a shard would hold.
        media_column: a file that has this column is a shard.

    Returns:
        Whether the file is a list or manifest rather than a shard; and the medium that a manifest
        was listed for.
    """
    try:
        columns = pq.ParquetFile(stream, pre_buffer=False).schema_arrow
    except (pa.ArrowException, OSError, ValueError):
        return False, None
    if (notes := (columns.metadata or {}).get(METADATA_KEY)) is not None:
        medium = json.loads(notes).get("medium")
        return True, medium if medium in MEDIA else None
    is_shard = any(find_media_column(columns, medium, media_column) for medium in media)
    return _find(columns.names, URI_COLUMNS) is not None and not is_shard, None


def read_entries(stream: BinaryIO, uri: str, form: str) -> Iterator[Entry]:
    """Yields the entries of a list, blank lines and comments left out.

    Args:
        stream: the list.
        uri: its canonical URI, for messages.
        form: a value of `LIST_EXTENSIONS`.

    Raises:
        InputError: the list as a whole is not what its name says.
    """
    if form == "parquet":
        return _read_parquet(stream, uri)
    lines = _read_lines(stream, uri)
    if form == "text":
        return _read_text(lines)
    if form == "jsonl":
        return _read_json(lines)
    return _read_csv(lines, uri, "\t" if form == "tsv" else ",")


def _read_lines(stream: BinaryIO, uri: str) -> Iterator[tuple[int, str | None]]:
    """Yields (number, line without its end); None for a line over the bound."""
    chunk = stream.read(_CHUNK_BYTES)
    if chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{uri}: is UTF-16; save the list as UTF-8")
    chunk = chunk.removeprefix(b"\xef\xbb\xbf")
    rest, number, is_long = b"", 0, False
    while True:
        # Without its last piece, which goes on in the next chunk.
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and (rest or is_long):
            lines, rest = [rest], b""
        for line in lines:
            number += 1
            if is_long or len(line) > MAX_LINE_BYTES:
                yield number, None
                is_long = False
            else:
                yield number, line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if len(rest) > MAX_LINE_BYTES:
            rest, is_long = b"", True
        if not chunk:
            return
        chunk = stream.read(_CHUNK_BYTES)


def _too_long(number: int) -> Entry:
    return Entry(number, problem=f"is longer than {MAX_LINE_BYTES} bytes")


def _read_text(lines: Iterator[tuple[int, str | None]]) -> Iterator[Entry]:
    for number, line in lines:
        if line is None:
            yield _too_long(number)
        elif (text := line.strip(" \t")) and not text.startswith("#"):
            yield Entry(number, text)


def _read_csv(lines: Iterator[tuple[int, str | None]], uri: str, delimiter: str) -> Iterator[Entry]:
    names: list[str] | None = None
    for number, line in lines:
        if line is None:
            yield _too_long(number)
            continue
        if not line.strip():
            continue
        try:
            # Line by line, so that a quote left open cannot swallow the lines below it.
            cells = next(csv.reader([line], delimiter=delimiter, strict=True))
        except csv.Error as error:
            yield Entry(number, problem=f"is not CSV: {error}")
            continue
        if names is None:
            names = [cell.strip().lower() for cell in cells]
            if _find(names, URI_COLUMNS) is None:
                raise _no_uri_column(uri, names)
            continue
        yield _entry(number, dict(zip(names, cells, strict=False)))


def _read_json(lines: Iterator[tuple[int, str | None]]) -> Iterator[Entry]:
    for number, line in lines:
        if line is None:
            yield _too_long(number)
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Entry(number, problem=f"is not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield _entry(number, {str(name).lower(): value for name, value in row.items()})
            else:
                yield Entry(number, problem="is not a JSON object")


def _entry(number: int, row: dict[str, Any]) -> Entry:
    name = _find(list(row), URI_COLUMNS)
    text = row[name] if name is not None else None
    if not isinstance(text, str) or not text.strip():
        return Entry(number, problem=f"has no text in {' or '.join(URI_COLUMNS)}")
    label, group, split = (_text(row.get(name)) for name in _OTHER_COLUMNS)
    return Entry(number, text.strip(), label=label, group=group, split=split)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else as_utf8(str(value))


def _read_parquet(stream: BinaryIO, uri: str) -> Iterator[Entry]:
    try:
        file = pq.ParquetFile(stream, pre_buffer=False)
        columns = file.schema_arrow
        uri_column = _find(columns.names, URI_COLUMNS)
        if uri_column is None:
            raise _no_uri_column(uri, columns.names)
        wanted = {"text": uri_column}
        for name in _OTHER_COLUMNS:
            if (found := _find(columns.names, (name,))) is not None:
                wanted[name] = found
        if METADATA_KEY in (columns.metadata or {}):
            wanted |= {name: name for name in _MANIFEST_COLUMNS if name in columns.names}
        number = 0
        for batch in file.iter_batches(
            _BATCH_ROWS, columns=list(wanted.values()), use_threads=False
        ):
            values = {name: _values(batch.column(column), name) for name, column in wanted.items()}
            for row in zip(*values.values(), strict=True):
                number += 1
                cells = dict(zip(values, row, strict=True))
                text = cells.pop("text")
                if not text or len(text) > MAX_LINE_BYTES:
                    yield Entry(number, problem=f"has no text, or too much, in {uri_column}")
                else:
                    yield Entry(number, text, **cells)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{uri}: the Parquet list cannot be read: {error}") from None


def _values(column: pa.Array, name: str) -> list[Any]:
    if name == "size_bytes":
        return list(pc.cast(column, pa.int64()).to_pylist())
    if name == "mtime":
        return list(pc.cast(column, pa.timestamp("us", tz="UTC")).to_pylist())
    if name == "is_signed":
        return [bool(value) for value in pc.cast(column, pa.bool_()).to_pylist()]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = pc.cast(column, pa.string())
    # As bytes: one cell that is not UTF-8 must not fail the whole list.
    cells = pc.cast(column, pa.large_binary()).to_pylist()
    if name == "text":
        return [cell and cell.decode("utf-8", "surrogateescape") for cell in cells]
    return [cell.decode("utf-8", "backslashreplace") if cell else None for cell in cells]


def _find(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """Returns the name that comes first among ``wanted``, whatever its case."""
    for lowered in wanted:
        for name in names:
            if name.lower() == lowered:
                return name
    return None


def _no_uri_column(uri: str, names: list[str]) -> InputError:
    got = as_utf8(", ".join(names))[:500]
    return InputError(f"{uri}: no column {', '.join(URI_COLUMNS)}; got: {got}")
