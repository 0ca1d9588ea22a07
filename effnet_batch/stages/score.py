"""Videos to verdicts: one row per video, with the evidence behind its score."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from effnet_batch.models.aggregation import (
    AggregationConfig,
    ensemble_logit,
    score_of,
    video_logit,
)
from effnet_batch.models.checkpoint_info import CheckpointInfo, Thresholds
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.schema import videos_schema
from effnet_batch.stages.encode import Encoder
from effnet_batch.stages.evidence import Track, suspicious_span
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import look, viewing_of
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp
from effnet_batch.stages.show import View, Viewing
from effnet_batch.stages.video import FrameCounts, OpenVideo, ShownVideo, video_row

_SCHEMA: Final = videos_schema()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Member:
    """One checkpoint of an ensemble, or the only one, ready to run."""

    info: CheckpointInfo
    """How it is run, with the user's settings laid over it."""
    view: View
    """What it is shown."""
    model: SequenceClassifier
    """Judges clips of embeddings; on the CPU."""
    encoder: Encoder
    """Runs the model's encoder."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scorer:
    """Judges videos; the same for all threads of a worker."""

    members: Sequence[Member]
    """At least one."""
    thresholds: Thresholds
    """From the video's score to its verdict."""
    min_frames: int = 1
    """Videos of which fewer frames can be read are too short."""

    @functools.cached_property
    def viewings(self) -> tuple[Viewing, ...]:
        """What videos are shown as: members of one view share frames, and crops of one recipe."""
        views = dict.fromkeys(member.view for member in self.members)
        return tuple(
            viewing_of(
                view,
                [
                    (member.info.preprocessing, member.encoder)
                    for member in self.members
                    if member.view == view
                ],
            )
            for view in views
        )

    def score(self, video: ShownVideo, row: dict[str, Any], clock: StageClock) -> None:
        """Judges one video.

        Args:
            video: is shown in every way of `viewings`, in their order.
            row: gets the columns of `schema.videos_schema`; where an error ends the work, those
                that were known by then.
            clock: takes the seconds of ``decode`` and ``model``.

        Raises:
            TooShortError: fewer frames than ``min_frames`` can be read.
            NoFaceError: a member wants faces and there are none.
            RecordError: the video cannot be decoded.
        """
        counts = FrameCounts()
        seen = []
        for viewing in self.viewings:
            members = [member for member in self.members if member.view == viewing.view]
            seen.append((members, self._look(video, viewing, members, counts, clock)))
        has_faces = any(viewing.view.faces for viewing in self.viewings)
        row.update(counts.columns(has_faces=has_faces))
        counts.check(self.min_frames, has_tracks=all(tracks for _, tracks in seen))
        with clock.measure("model"):
            row.update(self._judge(seen))

    def _look(
        self,
        video: ShownVideo,
        viewing: Viewing,
        members: list[Member],
        counts: FrameCounts,
        clock: StageClock,
    ) -> list[Track]:
        """Returns the tracks of a view with the logits of its members."""
        encoders = [(member.info.preprocessing, member.encoder) for member in members]
        tracks: list[Track] = []
        for segment in look(video.show(viewing), viewing, encoders, clock):
            counts.add(segment)
            with clock.measure("model"):
                judged = [
                    member.model.classify_clips([vectors[clip] for _, clip in segment.clips])
                    for member, vectors in zip(members, segment.embeddings, strict=True)
                ]
            # Whole frames are one track from end to end; faces are followed within a segment.
            first = len(tracks) if viewing.view.faces else 0
            for number, (track, clip) in enumerate(segment.clips):
                while len(tracks) <= first + track:
                    tracks.append(Track())
                tracks[first + track].add(
                    [segment.shots[position] for position in clip.tolist()],
                    [logits[number] for logits in judged],
                )
        return tracks

    def _judge(self, seen: list[tuple[list[Member], list[Track]]]) -> dict[str, Any]:
        """Returns the columns of the verdict."""
        rows: list[dict[str, Any]] = []
        judged: dict[Member, tuple[float, float]] = {}
        for members, tracks in seen:
            for number, member in enumerate(members):
                logit = video_logit(
                    [track.of_member(number) for track in tracks], member.info.aggregation
                )
                judged[member] = member.info.calibrated(logit)[:2]
            aggregations = [member.info.aggregation for member in members]
            rows += [
                track.to_row(len(rows) + number, aggregations)
                for number, track in enumerate(tracks)
            ]
        logits = [judged[member][0] for member in self.members]
        logit = logits[0] if len(logits) == 1 else ensemble_logit(logits)
        score = score_of(logit)
        start, end = suspicious_span(rows)
        return {
            "logit": logit,
            "score": score,
            "verdict": self.thresholds.verdict(score),
            "suspicious_start_seconds": start,
            "suspicious_end_seconds": end,
            "num_tracks": len(rows),
            "aggregation": self.aggregation,
            "checkpoints": [
                {
                    "checkpoint": member.info.name,
                    "logit": judged[member][0],
                    "score": judged[member][1],
                }
                for member in self.members
            ],
            "tracks": rows,
        }

    @property
    def aggregation(self) -> str:
        """How the score came from the frames, in words."""
        ways = dict.fromkeys(_describe(member.info.aggregation) for member in self.members)
        named = " | ".join(ways)
        number = len(self.members)
        return named if number == 1 else f"mean of {number} checkpoints: {named}"


def score_item(
    item: Item, open_video: OpenVideo, scorer: Scorer, stamp: Stamp, clock: StageClock
) -> pa.Table:
    """Judges one video, or says why it cannot be.

    Args:
        item: what `read_items` yields.
        open_video: bytes to reader; its RecordErrors become the row's status.
        scorer: judges it.
        stamp: goes into the row.
        clock: takes the seconds of ``decode`` and ``model``.

    Returns:
        One row of `schema.videos_schema`.
    """
    row = video_row(item, open_video, scorer.score, stamp, clock)
    return pa.Table.from_pylist([row], _SCHEMA)


def _describe(config: AggregationConfig) -> str:
    text = f"steps={config.steps} clips={config.clips} tracks={config.tracks}"
    return f"{text} top_k={config.top_k}" if "top_k_mean" in text else text
