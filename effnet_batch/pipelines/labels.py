"""A dataset's labels as one list, and what is wrong with them."""

import collections
import dataclasses
import io
from typing import Final

import pyarrow as pa
import pyarrow.csv

from effnet_batch.errors import ConfigError
from effnet_batch.layouts import AUTO, Dataset, read_layout
from effnet_batch.layouts.tree import Labelled
from effnet_batch.storage import Storage, StorageOptions, canonical_uri

_COLUMNS: Final = ("uri", "label", "group", "split", "method", "compression")
_MAX_SHOWN: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledDataset:
    """What `list_labels` wrote."""

    layout: str
    counts: dict[str, int]
    """Files by split and label."""
    notes: tuple[str, ...]
    """What is missing, or was left out."""
    leaks: tuple[str, ...]
    """Groups in more than one split, the first ten."""
    num_leaks: int


def list_labels(
    root: str, target: str, *, layout: str = AUTO, storage: StorageOptions | None = None
) -> LabelledDataset:
    """Writes the labels of a known dataset as CSV, which jobs and `evaluate` take as they are.

    Args:
        root: the dataset's folder, local or remote.
        target: where the list goes; ends in ``.csv``.
        layout: one of `layouts.LAYOUTS`, or ``auto``.
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
    file = io.BytesIO()
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in _COLUMNS]))
    pyarrow.csv.write_csv(table, file)
    room.write(canonical_uri(target), file.getvalue())
    return _summary(dataset)


def _summary(dataset: Dataset) -> LabelledDataset:
    counts = collections.Counter(
        f"{item.split or 'no split'}, {item.label}" for item in dataset.items
    )
    leaks = _leaks(dataset.items)
    return LabelledDataset(
        layout=dataset.layout,
        counts=dict(sorted(counts.items())),
        notes=dataset.notes,
        leaks=tuple(leaks[:_MAX_SHOWN]),
        num_leaks=len(leaks),
    )


def _leaks(items: list[Labelled]) -> list[str]:
    splits: dict[str, set[str]] = collections.defaultdict(set)
    for item in items:
        if item.split is not None:
            splits[item.group].add(item.split)
    return [
        f"{group} is in {' and '.join(sorted(found))}"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]
