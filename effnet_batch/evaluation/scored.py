"""Scores and labels side by side, and what they are worth as a whole and in slices."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.errors import InputError
from effnet_batch.evaluation.bootstrap import DEFAULT_RESAMPLES, Estimate, estimate
from effnet_batch.evaluation.labels import FAKE, LabelFile, parse_label
from effnet_batch.evaluation.metrics import Detections
from effnet_batch.schema import STATUS_OK

COLUMNS: Final = (
    "uri",
    "member",
    "label",
    "group",
    "split",
    "codec",
    "status",
    "score",
    "logit",
    "tracks",
)
"""What is read of a part of verdicts."""
CLASSES: Final = ("real", "fake")
"""Names of the labels 0 and 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """N labelled videos, and the M of their frames that have a score."""

    labels: npt.NDArray[np.int8]
    """[N], 1 for fake."""
    statuses: list[str]
    """[N]"""
    scores: npt.NDArray[np.float64]
    """[N], NaN without a score."""
    logits: npt.NDArray[np.float64]
    """[N], NaN without a score."""
    groups: npt.NDArray[np.int64]
    """[N], numbers 0..G-1 of who or what is seen; a video without a group is one of its own."""
    columns: dict[str, list[str | None]]
    """[N] each: what the videos can be sliced by."""
    frame_scores: npt.NDArray[np.float64]
    """[M]"""
    frame_videos: npt.NDArray[np.int64]
    """[M], the video of each frame."""
    num_unlabelled: int
    """Videos that were left out because nobody says what they are."""
    num_absent: int
    """Labelled videos that the output does not have."""


def gather(
    tables: Iterable[pa.Table],
    labels: LabelFile | None,
    *,
    split: str | None = None,
    slices: Iterable[str] = (),
) -> Scored:
    """Joins live rows of `schema.videos_schema` with labels.

    Args:
        tables: rows with at least `COLUMNS`.
        labels: overrides what the rows themselves say; None takes the rows' ``label``, ``group``
            and ``split``.
        split: keep only videos of this split.
        slices: columns to keep, of the label file or of the rows.

    Raises:
        InputError: no video is left, a label means neither class, or a slice is no column.
    """
    wanted = tuple(slices)
    kept: dict[str, list[Any]] = {name: [] for name in ("label", "status", "score", "logit")}
    kept |= {f"by {name}": [] for name in wanted}
    groups: dict[object, int] = {}
    codes: list[int] = []
    frames: list[npt.NDArray[np.float64]] = []
    owners: list[npt.NDArray[np.int64]] = []
    seen: set[int] = set()
    num_unlabelled = 0
    for table in tables:
        rows = table.drop_columns(["tracks"]).to_pylist()
        places = np.full(len(rows), -1, np.int64)
        for number, row in enumerate(rows):
            found = None if labels is None else labels.find(row["uri"], row["member"])
            if labels is not None and found is None:
                num_unlabelled += 1
                continue
            about = row if found is None or labels is None else _about(row, labels, found)
            if found is not None:
                seen.add(found)
            if split is not None and about.get("split") != split:
                continue
            label = _label(about.get("label"), row["uri"])
            if label is None:
                num_unlabelled += 1
                continue
            places[number] = len(codes)
            alone = (row["uri"], row["member"])
            codes.append(groups.setdefault(about.get("group") or alone, len(groups)))
            kept["label"].append(label)
            for name in ("status", "score", "logit"):
                kept[name].append(row[name])
            for name in wanted:
                if name not in about:
                    raise InputError(f"no column {name!r}; there are {', '.join(sorted(about))}")
                kept[f"by {name}"].append(about[name])
        scores, videos = _frames(table["tracks"])
        is_kept = places[videos] >= 0
        frames.append(scores[is_kept])
        owners.append(places[videos[is_kept]])
    if not codes:
        raise InputError(
            "no labelled video"
            + (f" of split {split!r}" if split is not None else "")
            + f"; {num_unlabelled:,} without a label. Give --labels a file with the columns uri "
            "and label"
        )
    return Scored(
        labels=np.array(kept["label"], np.int8),
        statuses=kept["status"],
        scores=np.array(kept["score"], np.float64),
        logits=np.array(kept["logit"], np.float64),
        groups=np.array(codes, np.int64),
        columns={name: kept[f"by {name}"] for name in wanted},
        frame_scores=np.concatenate(frames),
        frame_videos=np.concatenate(owners),
        num_unlabelled=num_unlabelled,
        num_absent=0 if labels is None else _num_absent(labels, seen, split),
    )


def _about(row: Mapping[str, Any], labels: LabelFile, found: int) -> dict[str, Any]:
    names = labels.columns.column_names
    return {**row, **{name: labels.columns[name][found].as_py() for name in names}}


def _label(text: str | None, uri: str) -> int | None:
    try:
        return parse_label(text)
    except ValueError as error:
        raise InputError(f"{uri}: {error}") from None


def _num_absent(labels: LabelFile, seen: set[int], split: str | None) -> int:
    columns = labels.columns
    absent = set(labels.rows.values()) - seen
    if split is not None and "split" in columns.column_names:
        splits = columns["split"].to_pylist()
        absent = {row for row in absent if splits[row] == split}
    return len(absent)


def _frames(
    tracks: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Returns the scores [M] of all frames that have one, and their row [M]."""
    column = tracks.combine_chunks()
    rows = np.asarray(pc.list_parent_indices(column))
    frames = pc.struct_field(pc.list_flatten(column), "frames")
    of_track = np.asarray(pc.list_parent_indices(frames))
    scores = pc.struct_field(pc.list_flatten(frames), "score")
    values = scores.to_numpy(zero_copy_only=False).astype(np.float64)
    has_score = ~np.isnan(values)
    return values[has_score], rows[of_track[has_score]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What some videos' scores are worth."""

    num_fake: int
    """Fakes that were measured."""
    num_real: int
    """Reals that were measured."""
    num_groups: int
    """Independent groups among them, which the intervals rest on."""
    metrics: dict[str, Estimate]
    """By their names in `metrics.METRICS`."""


def measure(
    scored: Scored,
    keep: npt.NDArray[np.bool_],
    *,
    impute: float | None,
    threshold: float,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Measured | None:
    """Measures videos.

    Args:
        scored: all of them.
        keep: [N], which.
        impute: score of the videos that have none; None leaves those out.
        threshold: of the accuracies.
        num_resamples: of the intervals.
        seed: of the resamples.

    Returns:
        None where no video is left.
    """
    scores = scored.scores
    if impute is not None:
        scores = np.where(np.isnan(scores), impute, scores)
    at = np.flatnonzero(keep & ~np.isnan(scores))
    return _measure(scored, at, scores[at], threshold, num_resamples, seed)


def measure_frames(
    scored: Scored, *, threshold: float, num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> Measured | None:
    """Measures all frames that have a score, each under its video's label and group."""
    at = scored.frame_videos
    return _measure(scored, at, scored.frame_scores, threshold, num_resamples, seed)


def _measure(
    scored: Scored,
    videos: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    threshold: float,
    num_resamples: int,
    seed: int,
) -> Measured | None:
    if not videos.size:
        return None
    labels = scored.labels[videos]
    names, groups = np.unique(scored.groups[videos], return_inverse=True)
    return Measured(
        num_fake=int((labels == FAKE).sum()),
        num_real=int((labels != FAKE).sum()),
        num_groups=len(names),
        metrics=estimate(
            Detections(labels, scores),
            groups,
            num_resamples=num_resamples,
            seed=seed,
            threshold=threshold,
        ),
    )


def slices_of(scored: Scored, name: str) -> dict[str, npt.NDArray[np.bool_]]:
    """Returns which videos [N] belong to each value of a column.

    Videos without a value belong to every slice that has only the other class: reals come from no
    method, and each method's fakes are measured against all of them.
    """
    values = scored.columns[name]
    has_value = np.array([value is not None for value in values])
    found = {}
    for wanted in sorted({value for value in values if value is not None}):
        keep = np.array([value == wanted for value in values])
        present = set(scored.labels[keep].tolist())
        if len(present) == 1:
            keep |= ~has_value & ~np.isin(scored.labels, list(present))
        found[wanted] = keep
    return found


def count_unscored(scored: Scored) -> dict[str, dict[str, int]]:
    """Returns how many videos have no score, by status and class."""
    counts = Counter(
        (status, CLASSES[label])
        for status, label in zip(scored.statuses, scored.labels, strict=True)
        if status != STATUS_OK
    )
    found: dict[str, dict[str, int]] = {}
    for (status, label), count in sorted(counts.items()):
        found.setdefault(status, {})[label] = count
    return found
