"""From logits per time step to one of a track and one of a video: pure functions of arrays.

Every aggregation takes logits and returns a logit. Means are means of *scores*: the logit of
mean(sigmoid(x)) is log(sum sigmoid(x)) - log(sum sigmoid(-x)), which neither overflows nor loses a
score next to 0 or 1. The score of any logit is `score_of`.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from effnet_batch.errors import ConfigError

Logits = npt.NDArray[np.float64]

CONFIDENT_SCORE: Final = 0.8
CONFIDENT_REAL_SCORE: Final = 0.2
DEFAULT_TOP_K: Final = 10


def score_of(logit: float) -> float:
    """Returns P(fake) = sigmoid(logit), in 0..1."""
    return float(np.exp(_log_score(np.float64(logit))))


def last(logits: Logits) -> float:
    """The last time step, which has seen all others: the paper's way with an LSTM."""
    return float(logits[-1])


def mean(logits: Logits) -> float:
    """The mean of the scores: the way of most frame classifiers."""
    log_fake, log_real = _log_score(logits), _log_score(-logits)
    return float(np.logaddexp.reduce(log_fake) - np.logaddexp.reduce(log_real))


def mean_logit(logits: Logits) -> float:
    """The mean of the logits, in which one sure frame outweighs several unsure ones."""
    return float(np.mean(logits))


def maximum(logits: Logits) -> float:
    """The highest score."""
    return float(np.max(logits))


def top_k_mean(logits: Logits, k: int = DEFAULT_TOP_K) -> float:
    """The mean of the k highest scores, of all where there are fewer."""
    return mean(np.sort(logits)[-k:])


def confident(logits: Logits) -> float:
    """The mean of the sure frames where there are enough of them, else of all.

    Of n scores p: with more than n // 2.5 and more than 11 of them over 0.8, the mean of those;
    else with more than 0.9 n under 0.2, the mean of those; else the mean of all. Source: the
    winning entry of the DFDC.
    """
    scores = np.exp(_log_score(logits))
    is_fake, is_real = scores > CONFIDENT_SCORE, scores < CONFIDENT_REAL_SCORE
    num_fake = int(np.count_nonzero(is_fake))
    if num_fake > len(scores) // 2.5 and num_fake > 11:
        return mean(logits[is_fake])
    if np.count_nonzero(is_real) > 0.9 * len(scores):
        return mean(logits[is_real])
    return mean(logits)


AGGREGATIONS: Final[dict[str, Callable[[Logits], float]]] = {
    "last": last,
    "mean": mean,
    "mean_logit": mean_logit,
    "max": maximum,
    "top_k_mean": top_k_mean,
    "confident": confident,
}
"""Of the time steps of a clip, the clips of a track, or the tracks of a video, by name."""

POOLED: Final = "pooled"
"""All frames of all tracks as if they were one track: entries that do not follow faces."""
FRAME_MAX: Final = "frame_max"
"""Per frame the highest score among faces at least half as large as its largest one, then as one
track: the way of self-blended images."""
TRACK_AGGREGATIONS: Final = (*AGGREGATIONS, POOLED, FRAME_MAX)
"""What `AggregationConfig.tracks` may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """How a video's logit comes from its time steps; named in the output."""

    steps: str = "mean"
    """Time steps of a clip: one of `AGGREGATIONS`."""
    clips: str = "mean"
    """Clips of a track: one of `AGGREGATIONS`."""
    tracks: str = "max"
    """Tracks of a video: one of `TRACK_AGGREGATIONS`; pooled and frame_max use ``steps``."""
    top_k: int = DEFAULT_TOP_K
    """How many scores ``top_k_mean`` takes."""

    def __post_init__(self) -> None:
        for field, allowed in (
            ("steps", tuple(AGGREGATIONS)),
            ("clips", tuple(AGGREGATIONS)),
            ("tracks", TRACK_AGGREGATIONS),
        ):
            _check_name(getattr(self, field), allowed, field)
        if self.top_k < 1:
            raise ValueError(f"top_k must be positive, got {self.top_k}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackLogits:
    """What the model said about one face through time."""

    clips: tuple[Logits, ...]
    """float64 [T] each, at least one clip; a frame classifier's frames are one clip."""
    frame_indices: npt.NDArray[np.int64] | None = None
    """int64 [sum of T]: the video's frame of each time step; for pooled and frame_max only."""
    areas: npt.NDArray[np.float64] | None = None
    """float64 [sum of T]: area of the face's box in square pixels; for frame_max only."""

    def __post_init__(self) -> None:
        if not self.clips or not all(len(clip) for clip in self.clips):
            raise ValueError("a track needs at least one clip, and a clip at least one logit")
        if not all(np.isfinite(clip).all() for clip in self.clips):
            raise ValueError("logits must be finite")
        num_steps = sum(len(clip) for clip in self.clips)
        for name in ("frame_indices", "areas"):
            values = getattr(self, name)
            if values is not None and len(values) != num_steps:
                raise ValueError(f"{name} must have {num_steps} values, got {len(values)}")


def find_aggregation(name: str, *, top_k: int = DEFAULT_TOP_K) -> Callable[[Logits], float]:
    """Returns the aggregation of this name.

    Raises:
        ConfigError: there is none; the message names them.
    """
    try:
        _check_name(name, tuple(AGGREGATIONS), "aggregation")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name == "top_k_mean":
        return lambda logits: top_k_mean(logits, top_k)
    return AGGREGATIONS[name]


def clip_logits(track: TrackLogits, config: AggregationConfig) -> Logits:
    """Returns float64 [number of clips]: a logit of each clip of a track."""
    aggregate = find_aggregation(config.steps, top_k=config.top_k)
    return np.array([aggregate(clip) for clip in track.clips], np.float64)


def track_logit(track: TrackLogits, config: AggregationConfig) -> float:
    """Returns the logit of a track: of each clip first, then of the clips."""
    return find_aggregation(config.clips, top_k=config.top_k)(clip_logits(track, config))


def video_logit(tracks: Sequence[TrackLogits], config: AggregationConfig) -> float:
    """Returns the logit of a video.

    Args:
        tracks: at least one; without a face a video has no score.
        config: pooled and frame_max need the tracks' frame indices, frame_max their areas too.

    Raises:
        ValueError: no track, or one that lacks what the aggregation needs.
    """
    if not tracks:
        raise ValueError("a video without tracks has no logit")
    if config.tracks in (POOLED, FRAME_MAX):
        pooled = _frame_maxima(tracks) if config.tracks == FRAME_MAX else _in_time(tracks)
        return find_aggregation(config.steps, top_k=config.top_k)(pooled)
    logits = np.array([track_logit(track, config) for track in tracks], np.float64)
    return find_aggregation(config.tracks, top_k=config.top_k)(logits)


def ensemble_logit(member_logits: Sequence[float]) -> float:
    """Returns the logit of the mean of several checkpoints' scores of one video."""
    return mean(np.array(member_logits, np.float64))


def _in_time(tracks: Sequence[TrackLogits]) -> Logits:
    """Returns every track's logits in the order of the video's frames."""
    logits = np.concatenate([clip for track in tracks for clip in track.clips])
    return np.asarray(logits[np.argsort(_frames_of(tracks), kind="stable")], np.float64)


def _frames_of(tracks: Sequence[TrackLogits]) -> npt.NDArray[np.int64]:
    frames = [track.frame_indices for track in tracks if track.frame_indices is not None]
    if len(frames) != len(tracks):
        raise ValueError("this aggregation needs the frame_indices of every track")
    return np.concatenate(frames)


def _frame_maxima(tracks: Sequence[TrackLogits]) -> Logits:
    """Returns the highest logit of each frame among its large faces, in the frames' order."""
    areas = [track.areas for track in tracks if track.areas is not None]
    if len(areas) != len(tracks):
        raise ValueError(f"{FRAME_MAX} needs the areas of every track")
    logits = np.concatenate([clip for track in tracks for clip in track.clips])
    faces = sorted(
        zip(_frames_of(tracks), np.concatenate(areas), logits, strict=True),
        key=lambda face: int(face[0]),
    )
    maxima = []
    for _, group in itertools.groupby(faces, key=lambda face: int(face[0])):
        in_frame = list(group)
        largest = max(area for _, area, _ in in_frame)
        maxima.append(max(logit for _, area, logit in in_frame if area >= largest / 2))
    return np.array(maxima, np.float64)


def _log_score(logits: Logits | np.float64) -> Logits:
    """Returns log(sigmoid(x)), exactly for any finite x."""
    return np.asarray(-np.logaddexp(0, -np.asarray(logits, np.float64)), np.float64)


def _check_name(name: str, allowed: Sequence[str], field: str) -> None:
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {name!r}{hint}")
