"""Which frames of a video are looked at: pure functions of its presentation times.

A strategy says how frames are taken (`EveryNth`, `Uniform`, `Clips`, `Fps`), `sample` applies it to
the presentation times of a video, and `split_segments` cuts a long video into stretches that are
worked through one after the other. Nothing here decodes anything or knows a file.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from effnet_batch.errors import ConfigError

Indices = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

MAX_FRAMES: Final = 1000
"""Default cap on the frames taken from one video."""

# A frame that lies on the sampling grid must not miss it by a rounding error of its own seconds.
_GRID_TOLERANCE: Final = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryNth:
    """Frames 0, n, 2n, ... of the video; the paper takes every 5th."""

    ratio: int = 5
    """Distance between two taken frames, in frames."""

    def __post_init__(self) -> None:
        _check_positive(self, "ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """A fixed number of frames, spread over the whole video.

    Frame ``floor(i * len / num_frames)`` for every i, which is
    ``np.linspace(0, len, num_frames, endpoint=False)`` of the Challenge entries; a video with fewer
    frames gives all it has.
    """

    num_frames: int = 20
    """Frames taken from a video."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_frames")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of frames at a fixed distance, their starts spread over the whole video.

    The first clip starts with the first frame and the last one ends with the last. Clips overlap
    where the video is too short for that many; one shorter than a clip gives one short clip.
    """

    num_clips: int = 4
    """Clips taken from a video."""
    num_frames: int = 20
    """Frames of one clip."""
    stride: int = 1
    """Distance between two frames of a clip, in frames; 1 takes consecutive frames."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_clips", "num_frames", "stride")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fps:
    """The frames on screen at 0, 1/fps, 2/fps, ... seconds after the first one.

    Follows time where the frame rate varies. A video slower than this gives each frame once.
    """

    fps: float = 5.0
    """Frames taken per second."""

    def __post_init__(self) -> None:
        _check_positive(self, "fps")


Sampling = EveryNth | Uniform | Clips | Fps


STRATEGIES: Final[dict[str, type[Sampling]]] = {
    "every_nth": EveryNth,
    "uniform": Uniform,
    "clips": Clips,
    "fps": Fps,
}
"""By the names that checkpoints and flags use."""


def parse_sampling(values: Mapping[str, Any]) -> tuple[Sampling, int | None]:
    """Returns the strategy and the longest clip that a checkpoint or a user names.

    Args:
        values: ``strategy``, its own parameters, and ``max_clip_frames`` (None for any length).

    Raises:
        ConfigError: an unknown strategy or parameter, or a value out of range.
    """
    parameters = dict(values)
    name = parameters.pop("strategy", None)
    longest = parameters.pop("max_clip_frames", None)
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ConfigError(f"sampling must be one of {', '.join(STRATEGIES)}, got {name!r}")
    kind = STRATEGIES[name]
    allowed = [field.name for field in dataclasses.fields(kind)]
    if unknown := [parameter for parameter in parameters if parameter not in allowed]:
        raise ConfigError(
            f"sampling {name} has no {unknown[0]}; its parameters are {', '.join(allowed)}"
        )
    if not (longest is None or (isinstance(longest, int) and longest > 0)):
        raise ConfigError(f"max_clip_frames must be positive or null, got {longest!r}")
    try:
        return kind(**parameters), longest
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sampling {name}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """The frames taken from one video and how they form clips."""

    indices: Indices
    """int64 [N]: positions of the taken frames among the video's frames, rising, each once."""
    clips: tuple[Indices, ...]
    """int64 [T] each: positions *in* ``indices`` of the frames that the sequence model sees
    together. Every taken frame is in one clip, and in several only where `Clips` overlap."""


def sample(
    pts_seconds: Seconds,
    sampling: Sampling,
    *,
    max_frames: int = MAX_FRAMES,
    max_clip_frames: int | None = None,
) -> Sample:
    """Returns the frames to take from a video.

    Over ``max_frames``, `Uniform` takes fewer frames and `Clips` fewer clips, still spread over the
    whole video; of the others every 2nd, every 3rd, ... is left, so their spacing stays regular.

    Args:
        pts_seconds: float64 [F], presentation times of the video's frames, rising, in seconds.
        sampling: the strategy.
        max_frames: cap on the number of taken frames.
        max_clip_frames: longest clip; longer ones are cut into clips of this many frames and a
            shorter last one. None leaves all frames of a strategy without clips in one.

    Raises:
        ValueError: a cap below 1, or clips longer than ``max_frames``.
    """
    if max_frames < 1 or (max_clip_frames is not None and max_clip_frames < 1):
        raise ValueError(f"caps must be positive, got {max_frames} and {max_clip_frames}")
    if isinstance(sampling, Clips):
        chosen = _clips(len(pts_seconds), sampling, max_frames)
    else:
        chosen = [_frames(pts_seconds, sampling, max_frames)]
    indices = np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
    positions = [np.searchsorted(indices, clip).astype(np.int64) for clip in chosen]
    longest = max_clip_frames or max(1, len(indices))
    clips = [
        clip[start : start + longest]
        for clip in positions
        for start in range(0, len(clip), longest)
    ]
    return Sample(indices=indices, clips=tuple(clips))


def find_clips(
    indices: Indices, sampling: Sampling, *, max_frames: int = MAX_FRAMES
) -> tuple[Indices, ...]:
    """Returns the clips, before any cut, of frames that `sample` took with the same settings.

    Args:
        indices: int64 [N], `Sample.indices`, or those plus a constant.
        sampling: the strategy.
        max_frames: cap on the number of taken frames.

    Returns:
        int64 [T] each: positions in ``indices``.
    """
    if not isinstance(sampling, Clips) or len(indices) == 0:
        return (np.arange(len(indices)),)
    # Several clips reach from the first frame to the last one, and one needs no more than its own.
    first, num_frames = indices[0], int(indices[-1] - indices[0]) + 1
    clips = _clips(num_frames, sampling, max_frames)
    return tuple(np.searchsorted(indices, clip + first).astype(np.int64) for clip in clips)


def split_segments(pts_seconds: Seconds, segment_seconds: float) -> tuple[range, ...]:
    """Cuts a long video into stretches of equal time.

    Args:
        pts_seconds: float64 [F], presentation times, rising, in seconds.
        segment_seconds: length of a stretch; they are counted from the first frame.

    Returns:
        Ranges of positions in ``pts_seconds``, one after the other without a hole; stretches
        without a frame are left out.

    Raises:
        ValueError: ``segment_seconds`` is not positive.
    """
    if not segment_seconds > 0:
        raise ValueError(f"segment_seconds must be positive, got {segment_seconds}")
    if len(pts_seconds) == 0:
        return ()
    segment = np.floor((pts_seconds - pts_seconds[0]) / segment_seconds + _GRID_TOLERANCE)
    cuts = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(pts_seconds)]
    return tuple(range(start, stop) for start, stop in itertools.pairwise(cuts))


def _frames(pts_seconds: Seconds, sampling: EveryNth | Uniform | Fps, max_frames: int) -> Indices:
    num_frames = len(pts_seconds)
    if isinstance(sampling, Uniform):
        num_taken = min(sampling.num_frames, max_frames, num_frames)
        return np.arange(num_taken, dtype=np.int64) * num_frames // max(1, num_taken)
    if isinstance(sampling, EveryNth):
        indices = np.arange(0, num_frames, sampling.ratio, dtype=np.int64)
    else:
        indices = _on_screen_at_ticks(pts_seconds, sampling.fps)
    return indices[:: math.ceil(len(indices) / max_frames) or 1]


def _on_screen_at_ticks(pts_seconds: Seconds, fps: float) -> Indices:
    """Returns the frames that are on screen when a clock of ``fps`` ticks.

    A frame stays until the next one, the last one as long as the one before it. Ticks are counted
    per frame and never listed, so a wrong timestamp years away costs nothing.
    """
    if len(pts_seconds) < 2:
        return np.arange(len(pts_seconds), dtype=np.int64)
    ends = np.append(pts_seconds[1:], 2 * pts_seconds[-1] - pts_seconds[-2])
    ticks_before_start, ticks_before_end = (
        np.ceil((times - pts_seconds[0]) * fps - _GRID_TOLERANCE) for times in (pts_seconds, ends)
    )
    return np.flatnonzero(ticks_before_end > ticks_before_start).astype(np.int64)


def _clips(num_frames: int, sampling: Clips, max_frames: int) -> list[Indices]:
    if sampling.num_frames > max_frames:
        raise ValueError(
            f"a clip of {sampling.num_frames} frames is longer than max_frames={max_frames}"
        )
    if num_frames == 0:
        return []
    offsets = np.arange(sampling.num_frames, dtype=np.int64) * sampling.stride
    last_start = num_frames - 1 - int(offsets[-1])
    if last_start <= 0:
        return [offsets[offsets < num_frames]]
    num_clips = min(sampling.num_clips, max_frames // sampling.num_frames)
    starts = np.arange(num_clips, dtype=np.int64) * last_start // max(1, num_clips - 1)
    return [start + offsets for start in np.unique(starts)]


def _check_positive(sampling: Sampling, *names: str) -> None:
    for name in names:
        value = getattr(sampling, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} of {type(sampling).__name__} must be positive, got {value}")
