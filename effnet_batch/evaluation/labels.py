"""Which videos are fake: labels as people write them, and files of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from effnet_batch.errors import ConfigError, FetchError, InputError
from effnet_batch.storage import Storage, canonical_uri, redact
from effnet_batch.vocabulary import URI_COLUMNS

FAKE: Final = 1
REAL: Final = 0
LABELS: Final[Mapping[str, int]] = {
    "fake": FAKE,
    "1": FAKE,
    "1.0": FAKE,
    "true": FAKE,
    "forged": FAKE,
    "manipulated": FAKE,
    "deepfake": FAKE,
    "real": REAL,
    "0": REAL,
    "0.0": REAL,
    "false": REAL,
    "original": REAL,
    "pristine": REAL,
    "genuine": REAL,
}
"""Spellings of the two classes, in lower case; 1 is fake."""


def parse_label(text: str | None) -> int | None:
    """Returns 1 for fake, 0 for real, None for no label.

    Raises:
        ValueError: the label is another one, which is never guessed.
    """
    if text is None or not text.strip():
        return None
    label = LABELS.get(text.strip().lower())
    if label is None:
        raise ValueError(f"label {text!r}: allowed are {', '.join(LABELS)}")
    return label


@dataclasses.dataclass(frozen=True, eq=False)
class LabelFile:
    """What a file says of videos, found by their URI."""

    columns: pa.Table
    """Every column as text, under its own name in lower case; a row per line of the file."""
    rows: Mapping[tuple[str, str | None], int]
    """(Canonical URI, member or None) to a row of ``columns``."""

    def find(self, uri: str, member: str | None) -> int | None:
        """Returns the row of a video; a shard's own row stands for members without one."""
        row = self.rows.get((uri, member))
        return self.rows.get((uri, None)) if row is None else row


def read_label_file(
    text: str,
    storage: Storage,
    parse_label: Callable[[str | None], object] = parse_label,
) -> LabelFile:
    """Reads a manifest or any CSV, TSV, JSON lines or Parquet file with a URI column.

    The URI stands in a column ``uri``, ``url``, ``path`` or ``file``; relative ones are relative to
    the file's own folder. A column ``member`` names videos inside shards.

    Args:
        text: the file's URI.
        storage: how it is reached.
        parse_label: a text to what it means; raises ValueError where it means nothing.

    Raises:
        InputError: no such file, or it is not what its name says, has no URI column, names a record
            twice with different labels, or has a label that means nothing.
    """
    uri = canonical_uri(text)
    extension = "." + uri.lower().rpartition(".")[2]
    if extension not in _READERS:
        raise InputError(f"{uri}: labels are read from {', '.join(_READERS)}, got {extension}")
    try:
        with storage.open(uri) as stream:
            columns = _as_text(_READERS[extension](stream))
    except FetchError as error:
        raise InputError(str(error)) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be read as {extension}: {error}") from None
    name = next((name for name in URI_COLUMNS if name in columns.column_names), None)
    if name is None:
        got = ", ".join(columns.column_names)[:500]
        raise InputError(f"{uri}: no column {', '.join(URI_COLUMNS)}; got: {got}")
    folder = uri.rpartition("/")[0] or "/"
    has = set(columns.column_names)
    nothing = [None] * len(columns)
    members = columns["member"].to_pylist() if "member" in has else nothing
    labels = columns["label"].to_pylist() if "label" in has else nothing
    rows: dict[tuple[str, str | None], int] = {}
    for row, (path, member, label) in enumerate(
        zip(columns[name].to_pylist(), members, labels, strict=True)
    ):
        if not path:
            raise InputError(f"{uri}: row {row + 1} has no {name}")
        try:
            key = (canonical_uri(path, base=folder), member)
            meaning = parse_label(label)
        except (ConfigError, ValueError) as error:
            raise InputError(f"{uri}: row {row + 1}: {redact(str(error))}") from None
        first = rows.setdefault(key, row)
        if parse_label(labels[first]) != meaning:
            raise InputError(
                f"{uri}: rows {first + 1} and {row + 1} label {redact(path)} differently: "
                f"{labels[first]} and {labels[row]}"
            )
    return LabelFile(columns, rows)


def _as_text(table: pa.Table) -> pa.Table:
    """Returns the plain columns as text, their names in lower case; the first of equal names."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not (pa.types.is_nested(column.type) or name.lower() in columns):
            text = column.cast(pa.string())
            # An empty cell of a CSV says nothing.
            columns[name.lower()] = pc.if_else(pc.equal(text, ""), None, text)
    return pa.table(columns)


def _read_csv(stream: BinaryIO, delimiter: str = ",") -> pa.Table:
    """Reads every cell as the text that it is: a group 01 is not a group 1."""
    data = pa.BufferReader(stream.read())
    options = pyarrow.csv.ParseOptions(delimiter=delimiter)
    names = pyarrow.csv.open_csv(data, parse_options=options).schema.names
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    data.seek(0)
    return pyarrow.csv.read_csv(data, parse_options=options, convert_options=texts)


_READERS: Final[Mapping[str, Callable[[BinaryIO], pa.Table]]] = {
    ".csv": _read_csv,
    ".tsv": lambda stream: _read_csv(stream, "\t"),
    ".jsonl": pyarrow.json.read_json,
    ".ndjson": pyarrow.json.read_json,
    ".parquet": pq.read_table,
}
