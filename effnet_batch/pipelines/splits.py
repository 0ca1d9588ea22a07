"""Labelled records to what is trained on and what is validated on."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import InputError
from effnet_batch.evaluation.labels import read_label_file
from effnet_batch.schema import STATUS_OK
from effnet_batch.storage import Storage, redact

TRAIN: Final = "train"
VALIDATION: Final = "val"
ABOUT: Final = ("label", "group", "split")
"""What a label file may say otherwise."""


def labelled_records(
    rows: Iterable[dict[str, Any]],
    config: FinetuneConfig,
    storage: Storage,
    parse_label: Callable[[str | None], Any],
) -> tuple[pa.Table, dict[str, int]]:
    """Returns the records that can be trained on, and how many cannot be, by reason.

    Args:
        rows: of records, also of those that are not ok: ``uri``, ``member``, ``status``,
            ``record_id``, `ABOUT` and any others.
        config: may name a list of other labels.
        storage: reads it.
        parse_label: a text to a label, None where it says nothing.

    Raises:
        InputError: ``parse_label`` raised a ValueError, or no record is left.
    """
    labels = config.labels.labels
    file = None if labels is None else read_label_file(labels, storage, parse_label)
    left_out: Counter[str] = Counter()
    kept = []
    for row in rows:
        if file is not None:
            found = file.find(row["uri"], row["member"])
            known = {} if found is None else file.columns.slice(found, 1).to_pylist()[0]
            row = {**row, **{name: known.get(name) for name in ABOUT}}
        try:
            label = parse_label(row["label"])
        except ValueError as error:
            raise InputError(f"{redact(row['uri'])}: {error}") from None
        if row["status"] != STATUS_OK:
            left_out[row["status"]] += 1
        elif label is None:
            left_out["no label"] += 1
        else:
            kept.append({**row, "label": label})
    if not kept:
        raise InputError(
            f"nothing labelled can be trained on: {json.dumps(dict(left_out))}; labels come from "
            "the column label, from the folders' names with --label-from parent, or from --labels"
        )
    # By record, so that order does not hang on which part a record came to lie in.
    return pa.Table.from_pylist(sorted(kept, key=lambda row: str(row["record_id"]))), dict(left_out)


def split_records(
    records: pa.Table, config: FinetuneConfig
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Returns the records to train and to validate on, and how many are left out, by reason.

    Without a split ``val`` whole groups are held out, drawn by a hash of their name; a record
    without a group is one of its own. With one, records without any split are left out: nobody
    knows whom they show. Those of other splits are left alone.
    """
    left_out = {}
    splits = records["split"].to_pylist()
    if VALIDATION not in splits:
        groups = [
            group or record
            for group, record in zip(
                records["group"].to_pylist(), records["record_id"].to_pylist(), strict=True
            )
        ]
        placed = list(zip(groups, splits, strict=True))
        # Those of a split test are no share of what there is to hold out.
        ours = {group for group, split in placed if split in (None, TRAIN)}
        held_out = _held_out(sorted(ours), config)
        splits = [
            (VALIDATION if group in held_out else TRAIN) if split in (None, TRAIN) else split
            for group, split in placed
        ]
    elif num_lost := splits.count(None):
        left_out["no split, while others have one"] = num_lost
    train, validation = (
        records.filter(pa.array([split == name for split in splits]))
        for name in (TRAIN, VALIDATION)
    )
    return train, validation, left_out


def _held_out(groups: list[str], config: FinetuneConfig) -> set[str]:
    seed = config.optimisation.training_seed
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    return set(ranked[: max(1, round(len(groups) * config.optimisation.val_fraction))])


def training_fingerprint(
    config: FinetuneConfig, digest: str, start_sha256: str, *tables: pa.Table
) -> str:
    """Returns what the states of a training depend on, as 16 hex digits.

    Args:
        config: its settings of network, optimisation and augmentation count.
        digest: of what else the training depends on.
        start_sha256: of the file that the network starts from, which may be another one by now
            under the same name.
        tables: what is trained and validated on.
    """
    settings = {
        name: value
        for group in (config.network, config.optimisation, config.augmentation)
        for name, value in dataclasses.asdict(group).items()
        # With other patience it goes on from what is there.
        if name not in ("patience", "micro_batch")
    }
    found = hashlib.sha256(json.dumps([settings, digest, start_sha256]).encode())
    for table in tables:
        found.update(json.dumps(table.to_pylist()).encode())
    return found.hexdigest()[:16]
