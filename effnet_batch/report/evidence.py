"""The evidence of one video: its scores over time as lines to draw, its crops as thumbnails.

Both are bounded, so that the page is too: a line has at most 240 points, each the highest score of
its stretch, and a video shows at most 6 tracks and 6 crops, those of the highest scores.
"""

import base64
import dataclasses
import io
import itertools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from effnet_batch.errors import InputError

WIDTH: Final = 720
HEIGHT: Final = 168
"""Of a timeline, in units of its own."""
LEFT: Final = 34.0
RIGHT: Final = 712.0
TOP: Final = 10.0
BOTTOM: Final = 140.0
"""Edges of the area that the lines are drawn in."""

MAX_POINTS: Final = 240
MAX_TRACKS: Final = 6
MAX_CROPS: Final = 6
_MAX_DOTS: Final = 60
_THUMBNAIL_SIDE: Final = 128
_THUMBNAIL_QUALITY: Final = 80
_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
_MAX_TICKS: Final = 8


@dataclasses.dataclass(frozen=True)
class Line:
    """The scores of one track over time."""

    track: int
    score: float
    """Of the track."""
    path: str
    """Of the line, as SVG has it."""
    dots: str
    """The frames as a path of points; empty where there are too many to tell apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """What is drawn of one video."""

    lines: tuple[Line, ...]
    """Those of the highest scores, highest first."""
    num_hidden: int
    """Tracks that are not drawn."""
    span: tuple[float, float] | None
    """Left edge and width of the suspicious span."""
    ticks: tuple[tuple[float, str], ...]
    """Position and time of marks on the axis."""
    summary: str
    """The same in words."""


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One stored crop."""

    track: int
    time: str
    score: float
    url: str
    """A ``data:`` URL of a small JPEG."""
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the page shows of one video beside its row."""

    timeline: Timeline | None
    thumbnails: tuple[Thumbnail, ...]
    num_crops: int
    """How many crops are stored."""


def evidence_of(details: pa.Table, video: dict[str, Any]) -> Evidence:
    """Draws a video's evidence.

    Args:
        details: its row with the columns ``tracks`` and ``crops`` of `schema.videos_schema`.
        video: the same row's columns of `tally.COLUMNS`.

    Raises:
        InputError: a stored crop is not a picture.
    """
    tracks, crops = details["tracks"][0], details["crops"][0]
    stored = crops.as_py() or []
    shown = sorted(stored, key=lambda crop: (-crop["score"], crop["pts_seconds"], crop["track"]))
    return Evidence(
        timeline=_timeline(tracks.values, video) if tracks.is_valid and len(tracks) else None,
        thumbnails=tuple(_thumbnail(crop, video["uri"]) for crop in shown[:MAX_CROPS]),
        num_crops=len(stored),
    )


def time_text(seconds: float, *, step: float = 0.1) -> str:
    """Returns 8.25 as ``8.2 s`` and 83.4 as ``1:23.4``; no fraction where ``step`` is 1 or more."""
    if -60 < seconds < 60:
        return f"{seconds:.{int(step < 1)}f} s"
    return _clock_text(seconds, step=step)


def stretch_text(start: float, end: float) -> str:
    """Returns a stretch of time as ``0.5–7.5 s`` or ``0:59.5–1:02.0``."""
    if -60 < start <= end < 60:
        return f"{start:.1f}–{time_text(end)}"
    return f"{_clock_text(start, step=0.1)}–{_clock_text(end, step=0.1)}"


def _clock_text(seconds: float, *, step: float) -> str:
    whole, tenths = divmod(round(abs(seconds) * 10), 10)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{'−' if seconds < 0 else ''}{text}" + (f".{tenths}" if step < 1 else "")


def score_height(score: float) -> float:
    """Returns where a score in 0..1 stands in a timeline."""
    return round(BOTTOM - score * (BOTTOM - TOP), 1)


def _timeline(tracks: pa.StructArray, video: dict[str, Any]) -> Timeline:
    scores = np.asarray(tracks.field("score"), np.float64)
    times, values = [], []
    for frames in tracks.field("frames"):
        times.append(np.asarray(frames.values.field("pts_seconds"), np.float64))
        values.append(np.asarray(frames.values.field("score"), np.float64))
    first = float(min(each[0] for each in times))
    last = float(max(each[-1] for each in times))
    start, end = first, last
    if 0 <= first <= last <= (duration := video["duration_seconds"] or 0.0):
        start, end = 0.0, duration
    if start == end:
        start, end = start - 0.5, end + 0.5

    scale = (RIGHT - LEFT) / (end - start)

    def place(seconds: float) -> float:
        return LEFT + (seconds - start) * scale

    order = np.argsort(-scores, kind="stable").tolist()
    numbers = tracks.field("track").to_pylist()
    lines = []
    for i in order[:MAX_TRACKS]:
        kept = _highest(values[i])
        points = [
            f"{x:.1f} {score_height(y)}"
            for x, y in zip(map(place, times[i][kept].tolist()), values[i][kept], strict=True)
        ]
        dots = "".join(f"M{point}h0" for point in points) if len(points) <= _MAX_DOTS else ""
        lines.append(Line(numbers[i], float(scores[i]), "M" + "L".join(points), dots))
    peak = max(range(len(values)), key=lambda i: float(values[i].max()))
    at = times[peak][int(values[peak].argmax())]
    num_frames = sum(map(len, values))
    return Timeline(
        lines=tuple(lines),
        num_hidden=len(order) - len(lines),
        span=_span(video, place),
        ticks=tuple((place(seconds), text) for seconds, text in _ticks(start, end)),
        summary=f"Scores of {num_frames:,} frames in {len(order)} "
        f"{'track' if len(order) == 1 else 'tracks'}, highest {values[peak].max():.3f} "
        f"at {time_text(at)}",
    )


def _highest(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns the positions that are drawn: of every stretch that of the highest score."""
    if len(scores) <= MAX_POINTS:
        return np.arange(len(scores))
    edges = np.linspace(0, len(scores), MAX_POINTS + 1).astype(np.int64).tolist()
    return np.array([a + int(scores[a:b].argmax()) for a, b in itertools.pairwise(edges)])


def _span(video: dict[str, Any], place: Callable[[float], float]) -> tuple[float, float] | None:
    start, end = video["suspicious_start_seconds"], video["suspicious_end_seconds"]
    if start is None or end is None:
        return None
    left, right = place(start), place(end)
    # A single frame has no length, and must be seen all the same.
    return (left, right - left) if right - left >= 3 else ((left + right) / 2 - 1.5, 3.0)


def _ticks(start: float, end: float) -> list[tuple[float, str]]:
    longest = _STEPS[-1]
    step = next(
        (step for step in _STEPS if (end - start) / step <= _MAX_TICKS),
        longest * -(-(end - start) // (longest * _MAX_TICKS)),
    )
    first, last = int(np.ceil(start / step - 1e-9)), int(np.floor(end / step + 1e-9))
    marks = [number * step for number in range(first, last + 1)]
    text = time_text if all(abs(seconds) < 60 for seconds in marks) else _clock_text
    return [(seconds, text(seconds, step=step)) for seconds in marks]


def _thumbnail(crop: dict[str, Any], uri: str) -> Thumbnail:
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(crop["jpeg"]), formats=["JPEG"]) as picture:
            picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            picture.convert("RGB").save(small, "JPEG", quality=_THUMBNAIL_QUALITY)
            width, height = picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"a stored crop of {uri} is not a JPEG picture: {error}") from error
    url = f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
    return Thumbnail(
        crop["track"], time_text(crop["pts_seconds"]), crop["score"], url, width, height
    )
