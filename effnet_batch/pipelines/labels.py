"""A dataset's labels as one list, and what is wrong with them."""

import collections
import dataclasses
import io
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from effnet_batch.errors import ConfigError
from effnet_batch.layouts import AUTO, read_layout
from effnet_batch.pipelines.label_check import LabelledFile, LabelReport, check_labels
from effnet_batch.storage import Storage, StorageOptions, canonical_uri

_COLUMNS: Final = ("uri", "label", "group", "split", "method", "compression")
_ROWS_PER_GROUP: Final = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledDataset:
    """What `list_labels` wrote."""

    layout: str
    notes: tuple[str, ...]
    """What is missing, or was left out."""
    report: LabelReport
    """Files, or images inside files, by split and label, and what is wrong with them."""


def list_labels(
    root: str,
    target: str,
    *,
    layout: str = AUTO,
    reads_contents: bool = False,
    storage: StorageOptions | None = None,
) -> LabelledDataset:
    """Writes the labels of a known dataset as CSV, which jobs and `evaluate` take as they are.

    Images that the dataset keeps inside files of its own format are written as Parquet shards
    beside the list, ``NAME-SPLIT.parquet``, with their labels inside.

    Args:
        root: the dataset's folder, local or remote.
        target: where the list goes; ends in ``.csv``.
        layout: one of `layouts.LAYOUTS`, or ``auto``.
        reads_contents: also look for the same content in two splits or under two labels.
        storage: how storage is spoken to.

    Raises:
        InputError: no layout fits, or the dataset contradicts itself.
        ConfigError: the target's name, or storage that does not answer.
    """
    if not target.lower().endswith(".csv"):
        raise ConfigError(f"{target}: a list of labels must end in .csv")
    room = Storage(storage or StorageOptions())
    dataset = read_layout(root, room, layout)
    rows = [
        {"uri": item.info.uri, **{name: getattr(item, name) for name in _COLUMNS[1:]}}
        for item in dataset.items
    ]
    for packed in dataset.packed:
        uri = canonical_uri(f"{target[: -len('.csv')]}-{packed.split}.parquet")
        shard = io.BytesIO()
        pq.write_table(packed.images, shard, row_group_size=_ROWS_PER_GROUP, compression="none")
        room.write(uri, shard.getvalue())
        rows.append({"uri": uri, "split": packed.split})
    file = io.BytesIO()
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in _COLUMNS]))
    pyarrow.csv.write_csv(table, file)
    room.write(canonical_uri(target), file.getvalue())
    files = (
        LabelledFile(
            uri=item.info.uri,
            label=item.label,
            group=item.group,
            split=item.split,
            size_bytes=item.info.size_bytes,
        )
        for item in dataset.items
    )
    report = check_labels(files, room, reads_contents=reads_contents)
    counts = collections.Counter(report.counts)
    for packed in dataset.packed:
        counts.update(f"{packed.split}, {label}" for label in packed.images["label"].to_pylist())
    return LabelledDataset(
        layout=dataset.layout,
        notes=dataset.notes,
        report=dataclasses.replace(report, counts=dict(sorted(counts.items()))),
    )
