"""The most suspicious pictures of a video, as the model saw them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from effnet_batch.models.aggregation import score_of
from effnet_batch.models.sequence import Logits
from effnet_batch.stages.evidence import Track
from effnet_batch.stages.look import Segment


@dataclasses.dataclass(frozen=True)
class Crop:
    """One picture and what was said of it."""

    logit: float
    """As that of its frame in its track."""
    pts_seconds: float
    """Presentation time of its frame."""
    track: int
    """Number of the face in the video; 0 for whole frames."""
    jpeg: bytes
    """The model's input before normalisation, in the recipe of the view's first checkpoint."""

    def to_row(self) -> dict[str, Any]:
        """Returns its row of `schema.videos_schema`."""
        return {
            "track": self.track,
            "pts_seconds": self.pts_seconds,
            "score": score_of(self.logit),
            "jpeg": self.jpeg,
        }


def best_crops(crops: Iterable[Crop], number: int) -> list[Crop]:
    """Returns those of the highest scores, highest first; of equal ones the earlier."""
    return sorted(crops, key=lambda crop: (-crop.logit, crop.pts_seconds, crop.track))[:number]


def segment_crops(
    segment: Segment, logits: Sequence[Sequence[Logits]], first_track: int, number: int
) -> list[Crop]:
    """Returns the best crops of a segment.

    Args:
        segment: with its pictures.
        logits: of every member, float32 [T] for each clip of the segment.
        first_track: number, in the video, of the segment's track 0.
        number: how many crops.
    """
    tracks: dict[int, Track] = {}
    for clip, (track, positions) in enumerate(segment.clips):
        tracks.setdefault(track, Track()).add(
            [segment.shots[position] for position in positions.tolist()],
            [member[clip] for member in logits],
        )
    pictures = {(shot.track, shot.frame_index): i for i, shot in enumerate(segment.shots)}
    judged = sorted(
        (-logit, shot.pts_seconds, shot.track, pictures[shot.track, shot.frame_index])
        for track in tracks.values()
        for shot, logit in track.judged_shots()
    )
    assert segment.pictures is not None
    return [
        Crop(-negative, pts_seconds, first_track + track, segment.pictures.read(picture))
        for negative, pts_seconds, track, picture in judged[:number]
    ]
