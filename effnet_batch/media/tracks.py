"""Which boxes of successive frames are one face: pure geometry, no pixels.

A box is joined to the track whose last box it overlaps most (greedy matching by intersection over
union, as the IoU trackers of the Challenge entries do); a track survives frames without a match up
to a limit.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A face in a frame, in pixels of the frame as it is shown."""

    left: float
    top: float
    right: float
    """Beyond ``left``; the box may reach over the frame's edges."""
    bottom: float
    """Beyond ``top``."""
    score: float
    """The detector's confidence, 0..1."""

    @property
    def width(self) -> float:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """In pixels."""
        return self.bottom - self.top


def intersection_over_union(one: Box, other: Box) -> float:
    """Returns the share of the area covered by both in the area covered by either, 0..1."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one.width * one.height + other.width * other.height - shared)


def interpolate(before: Box, after: Box, share: float) -> Box:
    """Returns the box at ``share`` (0..1) of the way between two, every side moving evenly."""
    return Box(
        **{
            name: (1 - share) * getattr(before, name) + share * getattr(after, name)
            for name in ("left", "top", "right", "bottom", "score")
        }
    )


class TrackLinker:
    """Gives every box of successive frames the number of its track."""

    def __init__(self, *, min_iou: float, max_gap: int) -> None:
        """Starts without a track.

        Args:
            min_iou: least intersection over union with the last box of the same track.
            max_gap: most steps between two boxes of a track; 1 allows no step without a box.
        """
        self._min_iou = min_iou
        self._max_gap = max_gap
        self._num_tracks = 0
        self._step = -1
        # Track -> the step and box where it was last seen; only tracks that may go on.
        self._open: dict[int, tuple[int, Box]] = {}

    def link(self, boxes: Sequence[Box]) -> list[int]:
        """Returns the tracks of the next frame's boxes, in their order; no two are the same.

        Tracks are numbered from 0 as they appear.
        """
        self._step += 1
        oldest = self._step - self._max_gap
        self._open = {track: last for track, last in self._open.items() if last[0] >= oldest}
        pairs = sorted(
            (-intersection_over_union(last, box), track, position)
            for track, (_, last) in self._open.items()
            for position, box in enumerate(boxes)
        )
        tracks: dict[int, int] = {}
        taken: set[int] = set()
        for negative_iou, track, position in pairs:
            is_free = track not in taken and position not in tracks
            if is_free and -negative_iou >= self._min_iou > 0:
                tracks[position] = track
                taken.add(track)
        for position in range(len(boxes)):
            if position not in tracks:
                tracks[position] = self._num_tracks
                self._num_tracks += 1
            self._open[tracks[position]] = (self._step, boxes[position])
        return [tracks[position] for position in range(len(boxes))]
