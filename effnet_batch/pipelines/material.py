"""What is trained on: labelled videos, the clips that there are of them, and who is held out."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import InputError
from effnet_batch.evaluation.labels import FAKE, REAL, parse_label, read_label_file
from effnet_batch.ledger import Ledger
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.pipelines.prepare import prepare, prepared_data
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.schema import STATUS_OK
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage, join, redact
from effnet_batch.training.feed import SAMPLES_SCHEMA
from effnet_batch.training.network import build_network
from effnet_batch.training.stored import StoredFrames

PREPARED_FOLDER: Final = "prepared"
_TRAIN, _VALIDATION = "train", "val"
_ABOUT: Final = ("label", "group", "split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """Videos that can be trained on."""

    videos: pa.Table
    """Of each ``label`` 0 or 1, ``group``, ``split``, ``record_id``, ``clips_uri`` (the file that
    its clips are in) and ``clip_lengths``."""
    left_out: dict[str, int]
    """Videos that cannot be, by reason."""
    info: CheckpointInfo
    """How the classifier is run that comes of it."""
    view: View
    """What of a video it is shown."""
    digest: str
    """Of everything that the clips depend on beside the videos."""
    frames: StoredFrames | None = None
    """Stored embeddings that a head alone is trained on; None trains on pictures."""


def prepared_material(
    manifest: str, root: str, config: FinetuneConfig, storage: Storage, reporter: Reporter
) -> Material:
    """Returns the videos of a manifest, decoded once to ``OUTPUT/prepared``.

    Raises:
        ConfigError: wrong settings, no labels.
        JobError: the videos could not be prepared; what is done stays.
    """
    prepared = join(root, PREPARED_FOLDER)
    _, resolved = prepare(manifest, prepared, config, reporter)
    _, info = build_network(config.network, config.optimisation, storage)
    columns = ("uri", "member", *_ABOUT, "status", "record_id", "clips_uri", "clip_lengths")
    tables = Ledger.scan(storage, prepared_data(prepared)).live(columns)
    rows = (row for table in tables for row in table.to_pylist())
    videos, left_out = labelled_videos(rows, config, storage)
    return Material(
        videos=videos,
        left_out=left_out,
        info=dataclasses.replace(info, sampling=resolved.sampling, faces=resolved.faces),
        view=resolved.view,
        digest=resolved.fingerprint.digest,
    )


def labelled_videos(
    rows: Iterable[dict[str, Any]], config: FinetuneConfig, storage: Storage
) -> tuple[pa.Table, dict[str, int]]:
    """Returns the videos that can be trained on, as `Material.videos`, and what cannot.

    Args:
        rows: of videos, also of those that are not ok.
        config: may name a list of other labels.
        storage: reads it.

    Raises:
        InputError: a label means neither class, or no video is left.
    """
    labels = config.labels.labels
    file = None if labels is None else read_label_file(labels, storage)
    left_out: Counter[str] = Counter()
    kept = []
    for row in rows:
        if file is not None:
            found = file.find(row["uri"], row["member"])
            known = {} if found is None else file.columns.slice(found, 1).to_pylist()[0]
            row = {**row, **{name: known.get(name) for name in _ABOUT}}
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
        raise InputError("no labelled video can be trained on: " + json.dumps(dict(left_out)))
    # By record, so that order does not hang on which part a video came to lie in.
    return pa.Table.from_pylist(sorted(kept, key=lambda row: str(row["record_id"]))), dict(left_out)


def split_videos(videos: pa.Table, config: FinetuneConfig) -> tuple[pa.Table, pa.Table]:
    """Returns the videos to train and to validate on.

    Without a split ``val`` whole groups are held out, drawn by a hash of their name.

    Raises:
        InputError: a split has no video, or lacks a class that it needs.
    """
    splits = videos["split"].to_pylist()
    if _VALIDATION not in splits:
        groups = [
            group or uri
            for group, uri in zip(
                videos["group"].to_pylist(), videos["uri"].to_pylist(), strict=True
            )
        ]
        held_out = _held_out(sorted(set(groups)), config)
        splits = [
            (_VALIDATION if group in held_out else _TRAIN) if split in (None, _TRAIN) else split
            for group, split in zip(groups, splits, strict=True)
        ]
    parts = []
    for name in (_TRAIN, _VALIDATION):
        part = videos.filter(pa.array([split == name for split in splits]))
        present = set(part["label"].to_pylist())
        # Blended with themselves, reals alone are enough to train on.
        needed = {REAL} if name == _TRAIN and config.optimisation.self_blended else {REAL, FAKE}
        if missing := needed - present:
            names = " or ".join("fake" if label == FAKE else "real" for label in sorted(missing))
            raise InputError(
                f"split {name} has no {names} videos ({count_classes(part)}); both classes are "
                "needed in both splits"
            )
        parts.append(part)
    return parts[0], parts[1]


def _held_out(groups: list[str], config: FinetuneConfig) -> set[str]:
    seed = config.optimisation.training_seed
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    return set(ranked[: max(1, round(len(groups) * config.optimisation.val_fraction))])


def count_classes(videos: pa.Table) -> str:
    """Returns how many videos there are of each class, in words."""
    labels = videos["label"].to_pylist()
    return f"{labels.count(FAKE):,} fake and {labels.count(REAL):,} real videos"


def samples_of(videos: pa.Table) -> pa.Table:
    """Returns a row per clip, of `feed.SAMPLES_SCHEMA`."""
    rows = [
        {
            "uri": video["clips_uri"],
            "record_id": video["record_id"],
            "clip": number,
            "label": video["label"],
        }
        for video in videos.to_pylist()
        for number in range(len(video["clip_lengths"]))
    ]
    return pa.Table.from_pylist(rows, SAMPLES_SCHEMA)
