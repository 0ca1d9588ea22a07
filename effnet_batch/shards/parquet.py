"""Parquet shards: a column of images or videos, read in batches of few rows."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import DecodeError, RecordError, TooLargeError, UnsupportedError
from effnet_batch.schema import KIND_IMAGE, KIND_VIDEO
from effnet_batch.shards.member import Census, Member, Source, is_spooled, member_name
from effnet_batch.storage import spool

IMAGE_COLUMNS: Final = ("image", "img", "bytes", "jpg", "png", "content")
"""Names under which a binary column is taken for the images."""

VIDEO_COLUMNS: Final = (
    "video", "bytes", "mp4", "mov", "mkv", "webm", "avi", "content"
)  # fmt: skip
"""The same for videos."""

_COLUMNS: Final = {KIND_IMAGE: IMAGE_COLUMNS, KIND_VIDEO: VIDEO_COLUMNS}
_STRUCT_COLUMNS: Final = {KIND_IMAGE: ("image", "img"), KIND_VIDEO: ("video",)}
_LABEL_COLUMN: Final = "label"
_BATCH_BYTES: Final = 16 << 20
# A dictionary page can make every row as large as the largest value, so rows are bounded too.
_MAX_BATCH_ROWS: Final = 8
_NAME_BATCH_ROWS: Final = 4096
# No member is smaller; a footer that declares more rows than fit would make records without end.
_MIN_ROW_BYTES: Final = 32
_FREE_ROWS: Final = 1000
_BUFFER_BYTES: Final = 8 << 20
_DAMAGE: Final = (pa.ArrowException, OSError, ValueError, EOFError, OverflowError)


@dataclasses.dataclass(frozen=True, slots=True)
class MediaColumn:
    """Where a Parquet file keeps its images or videos."""

    name: str
    """Name of the top-level column."""
    is_struct: bool
    """Whether it is Hugging Face's struct of ``bytes`` and ``path``."""
    has_path: bool
    """Whether that struct names its members."""


def find_media_column(
    columns: pa.Schema, medium: str, wanted: str | None = None
) -> MediaColumn | None:
    """Returns the column that holds images, or videos, or None.

    Only plain binary types count, so that a file cannot bring in an extension type whose values
    Python would unpickle.

    Args:
        columns: schema of the file.
        medium: one of `schema.MEDIA`.
        wanted: the column to take; None recognises the structs ``image`` and ``img``, or
            ``video``, then the one binary column that is called as in `IMAGE_COLUMNS` or
            `VIDEO_COLUMNS`.
    """
    for name in (wanted,) if wanted is not None else _STRUCT_COLUMNS[medium]:
        column = _as_struct(columns, name)
        if column is not None:
            return column
    plain = (wanted,) if wanted is not None else _COLUMNS[medium]
    found = [name for name in plain if _has(columns, name, _is_binary)]
    return MediaColumn(found[0], is_struct=False, has_path=False) if len(found) == 1 else None


def iter_parquet(
    source: Source, census: Census, max_bytes: int, medium: str, media_column: str | None
) -> Iterator[Member | None]:
    """Yields a Parquet file's images, or videos, row by row; None for each that is not wanted.

    Row groups without a wanted row are not read. Rows of a damaged row group are records of
    their own, and the next row group is tried.

    Raises:
        DecodeError: the footer cannot be read.
        UnsupportedError: no column holds the medium.
        TooLargeError: the footer declares more rows than the file has bytes.
    """
    try:
        file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        columns = file.schema_arrow
    except _DAMAGE as error:
        raise DecodeError(f"{source.uri}: no readable Parquet footer: {error}") from None
    column = find_media_column(columns, medium, media_column)
    if column is None:
        expected = media_column or "one of " + ", ".join(_COLUMNS[medium])
        raise UnsupportedError(
            f"{source.uri}: no single column of {medium} bytes; got: "
            f"{', '.join(columns.names)[:1000]}; expected: {expected}; choose one with "
            "--media-column"
        )
    group_rows = [
        max(file.metadata.row_group(group).num_rows, 0)
        for group in range(file.metadata.num_row_groups)
    ]
    if sum(group_rows) > _FREE_ROWS + source.size_bytes // _MIN_ROW_BYTES:
        raise TooLargeError(
            f"{source.uri}: declares {sum(group_rows)} rows in {source.size_bytes} bytes"
        )
    first_row = 0
    for group, num_rows in enumerate(group_rows):
        yield from _iter_group(
            file, group, first_row, num_rows, column, source, census, max_bytes, medium
        )
        first_row += num_rows


def _iter_group(
    file: pq.ParquetFile,
    group: int,
    first_row: int,
    num_rows: int,
    column: MediaColumn,
    source: Source,
    census: Census,
    max_bytes: int,
    medium: str,
) -> Iterator[Member | None]:
    names = [f"row-{first_row + row}" for row in range(num_rows)]
    if column.has_path:
        names = _read_names(file, group, column, names, source)
    occurrences = [census.admit(name) for name in names]
    if all(occurrence is None for occurrence in occurrences):
        yield from [None] * num_rows
        return
    row = 0
    damage: str = "the row group ends too early"
    try:
        for cells, labels in _iter_batches(file, group, num_rows, column):
            for index in range(min(len(cells), num_rows - row)):
                occurrence = occurrences[row]
                if occurrence is None:
                    yield None
                else:
                    where = f"{source.uri}: member {names[row]}"
                    yield _member(
                        names[row],
                        occurrence,
                        cells[index],
                        labels[index],
                        where,
                        max_bytes,
                        medium,
                    )
                row += 1
    except _DAMAGE as error:
        damage = str(error)
    if source.failure is not None:
        raise source.failure
    for name, occurrence in zip(names[row:], occurrences[row:], strict=True):
        if occurrence is None:
            yield None
        else:
            message = f"{source.uri}: member {name}: damaged row group: {damage}"
            yield Member(name, occurrence, error=DecodeError(message))


def _read_names(
    file: pq.ParquetFile, group: int, column: MediaColumn, names: list[str], source: Source
) -> list[str]:
    """Returns the rows' paths; rows without one, or that cannot be read, keep their number."""
    found: list[str] = []
    try:
        for batch in file.iter_batches(
            _NAME_BATCH_ROWS,
            row_groups=[group],
            columns=[f"{column.name}.path"],
            use_threads=False,
        ):
            # As bytes: a path that is not UTF-8 is a name like any other.
            paths = pc.cast(pc.struct_field(batch.column(0), "path"), pa.large_binary())
            start = len(found)
            found += [
                member_name(path) if path else name
                for path, name in zip(
                    paths.to_pylist(), names[start : start + len(paths)], strict=True
                )
            ]
    except _DAMAGE:
        if source.failure is not None:
            raise source.failure from None
    return found + names[len(found) :]


def _iter_batches(
    file: pq.ParquetFile, group: int, num_rows: int, column: MediaColumn
) -> Iterator[tuple[pa.Array, list[str | None]]]:
    """Yields (cells of bytes, labels) of a few rows at a time."""
    has_label = _has(file.schema_arrow, _LABEL_COLUMN, _is_label)
    columns = [f"{column.name}.bytes" if column.is_struct else column.name]
    metadata = file.metadata.row_group(group)
    num_bytes = max(metadata.total_byte_size, 1)
    num_batch_rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * max(num_rows, 1) // num_bytes))
    for batch in file.iter_batches(
        num_batch_rows,
        row_groups=[group],
        columns=[*columns, _LABEL_COLUMN] if has_label else columns,
        use_threads=False,
    ):
        cells = batch.column(column.name)
        if column.is_struct:
            cells = pc.struct_field(cells, "bytes")
        labels: list[str | None] = [None] * batch.num_rows
        if has_label:
            labels = _labels(batch.column(_LABEL_COLUMN))
        yield cells, labels


def _member(
    name: str,
    occurrence: int,
    cell: pa.Scalar,
    label: str | None,
    where: str,
    max_bytes: int,
    medium: str,
) -> Member:
    error: RecordError
    if not cell.is_valid:
        error = DecodeError(f"{where}: the cell is null")
        return Member(name, occurrence, error=error, label=label)
    buffer = cell.as_buffer()
    if buffer.size > max_bytes:
        error = TooLargeError(f"{where}: {buffer.size} bytes, allowed: {max_bytes}")
        return Member(name, occurrence, error=error, size_bytes=buffer.size, label=label)
    if is_spooled(medium, buffer.size):
        file = spool([memoryview(buffer)])
        return Member(name, occurrence, file=file, size_bytes=buffer.size, label=label)
    data = buffer.to_pybytes()
    return Member(name, occurrence, data=data, size_bytes=len(data), label=label)


def _labels(column: pa.Array) -> list[str | None]:
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    # As bytes: text that is not UTF-8 must not fail the batch.
    values = pc.cast(column, pa.large_binary()).to_pylist()
    return [None if value is None else member_name(value) for value in values]


def _as_struct(columns: pa.Schema, name: str) -> MediaColumn | None:
    index = columns.get_field_index(name)
    if index < 0 or not pa.types.is_struct(columns.field(index).type):
        return None
    struct = columns.field(index).type
    has_bytes = struct.get_field_index("bytes") >= 0 and _is_binary(struct.field("bytes").type)
    has_path = struct.get_field_index("path") >= 0 and _is_text(struct.field("path").type)
    return MediaColumn(name, is_struct=True, has_path=has_path) if has_bytes else None


def _has(columns: pa.Schema, name: str, is_type: Callable[[pa.DataType], bool]) -> bool:
    # An ambiguous name has index -1 too.
    index = columns.get_field_index(name)
    return index >= 0 and is_type(columns.field(index).type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_text(kind)
