"""What is trained on: labelled videos, the clips that there are of them, and who is held out."""

import dataclasses

import pyarrow as pa

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import InputError
from effnet_batch.evaluation.labels import FAKE, REAL, parse_label
from effnet_batch.ledger import Ledger
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.pipelines.prepare import ResolvedClips, prepared_data
from effnet_batch.pipelines.splits import (
    ABOUT,
    TRAIN,
    VALIDATION,
    labelled_records,
    split_records,
)
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage
from effnet_batch.training.feed import SAMPLES_SCHEMA
from effnet_batch.training.network import build_network
from effnet_batch.training.stored import StoredFrames


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
    start_sha256: str
    """Of the file that the network starts from."""
    digest: str
    """Of everything that the clips depend on beside the videos."""
    frames: StoredFrames | None = None
    """Stored embeddings that a head alone is trained on; None trains on pictures."""


def prepared_material(
    prepared: str, resolved: ResolvedClips, config: FinetuneConfig, storage: Storage
) -> Material:
    """Returns the videos that were decoded to a folder.

    Raises:
        InputError: a label means neither class, or no video is left.
    """
    _, info, sha256 = build_network(config.network, config.optimisation, storage)
    columns = ("uri", "member", *ABOUT, "status", "record_id", "clips_uri", "clip_lengths")
    tables = Ledger.scan(storage, prepared_data(prepared)).live(columns)
    rows = (row for table in tables for row in table.to_pylist())
    videos, left_out = labelled_records(rows, config, storage, parse_label)
    return Material(
        videos=videos,
        left_out=left_out,
        info=dataclasses.replace(info, sampling=resolved.sampling, faces=resolved.faces),
        view=resolved.view,
        start_sha256=sha256,
        digest=resolved.fingerprint.digest,
    )


def split_videos(
    videos: pa.Table, config: FinetuneConfig
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Returns what `split_records` does.

    Raises:
        InputError: a split has no video, or lacks a class that it needs.
    """
    train, validation, left_out = split_records(videos, config)
    for name, part in ((TRAIN, train), (VALIDATION, validation)):
        # Blended with themselves, reals alone are enough to train on.
        reals_do = name == TRAIN and config.optimisation.self_blended > 0
        needed = {REAL} if reals_do else {REAL, FAKE}
        if missing := needed - set(part["label"].to_pylist()):
            names = " or ".join("fake" if label == FAKE else "real" for label in sorted(missing))
            raise InputError(
                f"split {name} has no {names} videos ({count_classes(part)}); "
                + ("reals are" if reals_do else "both classes are")
                + " needed there"
            )
    return train, validation, left_out


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
