"""From logits per frame to a row's evidence: tracks, frames and the most suspicious span."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from effnet_batch.media.tracks import Box
from effnet_batch.models.aggregation import (
    AggregationConfig,
    TrackLogits,
    mean,
    score_of,
    track_logit,
)
from effnet_batch.models.sequence import Logits
from effnet_batch.stages.show import Shot

SPAN_SHARE: Final = 0.5
"""Frames beside the highest score belong to the span while they have this share of it."""


@dataclasses.dataclass(eq=False)
class Track:
    """What every member of an ensemble said of one face, or of the whole frames, through time."""

    shots: list[list[Shot]] = dataclasses.field(default_factory=list)
    """The frames of each clip."""
    logits: list[list[Logits]] = dataclasses.field(default_factory=list)
    """float32 [T] of each clip, by each member."""

    def add(self, shots: list[Shot], logits: list[Logits]) -> None:
        """Takes one clip: its frames, and every member's logits of them."""
        self.shots.append(shots)
        self.logits.append(logits)

    def is_finite(self, number: int) -> bool:
        """Returns whether what one member said are finite numbers."""
        return all(np.isfinite(clip[number]).all() for clip in self.logits)

    def of_member(self, number: int) -> TrackLogits:
        """Returns what one member said, as the aggregations want it."""
        shots = [shot for clip in self.shots for shot in clip]
        boxes = [shot.box for shot in shots if shot.box is not None]
        return TrackLogits(
            clips=tuple(np.asarray(clip[number], np.float64) for clip in self.logits),
            frame_indices=np.array([shot.frame_index for shot in shots], np.int64),
            areas=np.array([box.width * box.height for box in boxes])
            if len(boxes) == len(shots)
            else np.ones(len(shots)),
        )

    def judged_shots(self) -> list[tuple[Shot, float]]:
        """Returns every shot with its logit, in order of frames.

        It is the logit of the members' mean score, and where clips overlap of a frame's.
        """
        by_frame: dict[int, tuple[Shot, list[list[float]]]] = {}
        for shots, logits in zip(self.shots, self.logits, strict=True):
            for step, shot in enumerate(shots):
                _, steps = by_frame.setdefault(shot.frame_index, (shot, []))
                steps.append([float(member[step]) for member in logits])
        return [
            (shot, _mean([_mean(list(values)) for values in zip(*steps, strict=True)]))
            for _, (shot, steps) in sorted(by_frame.items())
        ]

    def frames(self) -> list[dict[str, Any]]:
        """Returns a row per frame, in order."""
        return [
            {
                "pts_seconds": shot.pts_seconds,
                **_edges([shot.box] if shot.box else []),
                "logit": logit,
                "score": score_of(logit),
            }
            for shot, logit in self.judged_shots()
        ]

    def to_row(self, number: int, aggregations: Sequence[AggregationConfig]) -> dict[str, Any]:
        """Returns the track's row of `schema.videos_schema`.

        Args:
            number: of the track in the video.
            aggregations: of the members, in order; the track's logit is the mean of their scores.
        """
        logit = _mean([track_logit(self.of_member(i), one) for i, one in enumerate(aggregations)])
        frames = self.frames()
        boxes = [shot.box for clip in self.shots for shot in clip if shot.box is not None]
        return {
            "track": number,
            "first_pts_seconds": frames[0]["pts_seconds"],
            "last_pts_seconds": frames[-1]["pts_seconds"],
            **_edges(boxes),
            "logit": logit,
            "score": score_of(logit),
            "frames": frames,
        }


def suspicious_span(tracks: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Returns the most suspicious span of a video, in seconds.

    It is the contiguous run of sampled frames around the highest score of any track whose scores,
    in that track, are at least half of it; from the first frame's presentation time to the last's.
    The earliest of equal scores counts.

    Args:
        tracks: from `Track.to_row`, at least one.
    """
    frames = max(
        (track["frames"] for track in tracks), key=lambda rows: max(row["score"] for row in rows)
    )
    scores = [row["score"] for row in frames]
    peak = int(np.argmax(scores))
    first = last = peak
    while first > 0 and scores[first - 1] >= SPAN_SHARE * scores[peak]:
        first -= 1
    while last + 1 < len(scores) and scores[last + 1] >= SPAN_SHARE * scores[peak]:
        last += 1
    return frames[first]["pts_seconds"], frames[last]["pts_seconds"]


def _mean(logits: Sequence[float]) -> float:
    """Returns the logit of the mean score; a single one as it is, to the last bit."""
    return logits[0] if len(logits) == 1 else mean(np.array(logits, np.float64))


def _edges(boxes: Sequence[Box]) -> dict[str, int | None]:
    """Returns the box around some boxes in whole pixels; nulls for whole frames."""
    if not boxes:
        return dict.fromkeys(("left", "top", "right", "bottom"))
    return {
        "left": math.floor(min(box.left for box in boxes)),
        "top": math.floor(min(box.top for box in boxes)),
        "right": math.ceil(max(box.right for box in boxes)),
        "bottom": math.ceil(max(box.bottom for box in boxes)),
    }
