"""Videos to verdicts: one row per video, with the evidence behind its score."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from effnet_batch.errors import ModelError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import (
    AggregationConfig,
    ensemble_logit,
    score_of,
    video_logit,
)
from effnet_batch.models.checkpoint_info import CheckpointInfo, Thresholds
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.schema import videos_schema
from effnet_batch.stages.crops import Crop, best_crops, segment_crops
from effnet_batch.stages.encode import Encoder
from effnet_batch.stages.evidence import Track, suspicious_span
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import Segment, look, viewing_of
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
    """Judges clips of embeddings; its head is where the engine is."""
    encoder: Encoder | None
    """Runs the model's encoder; None where embeddings are stored."""
    frames: str = ""
    """Fingerprint of the encoder's embeddings where they are stored, or are to be."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scorer:
    """Judges videos; the same for all threads of a worker."""

    members: Sequence[Member]
    """At least one."""
    thresholds: Thresholds
    """From the video's score to its verdict."""
    min_frames: int = 1
    """Videos of which fewer frames can be read are too short."""
    num_crops: int = 0
    """How many of the most suspicious pictures of a video are kept."""

    @functools.cached_property
    def viewings(self) -> tuple[Viewing, ...]:
        """What videos are shown as: members of one view share frames, and crops of one recipe."""
        return tuple(viewing_of(each.view, each.encoders) for each in group_by_view(self.members))

    def score(
        self,
        video: ShownVideo,
        row: dict[str, Any],
        clock: StageClock,
        frames: FrameSpool | None = None,
    ) -> None:
        """Judges one video.

        Args:
            video: is shown in every way of `viewings`, in their order.
            row: gets the columns of `schema.videos_schema`; where an error ends the work, those
                that were known by then.
            clock: takes the seconds of ``decode`` and ``model``.
            frames: takes the embeddings of all frames.

        Raises:
            TooShortError: fewer frames than ``min_frames`` can be read.
            NoFaceError: a member wants faces and there are none.
            ModelError: what a member made of it are not finite numbers.
            RecordError: the video cannot be decoded.
        """
        seen = group_by_view(self.members)
        counts = FrameCounts()
        for viewing, tracks in zip(self.viewings, seen, strict=True):
            self._look(video, viewing, tracks, counts, clock, frames)
        row.update(counts.columns(has_faces=any(each.view.faces for each in seen)))
        has_tracks = all(each.tracks for each in seen)
        counts.check(self.min_frames, has_tracks=has_tracks, precision=self._precision)
        with clock.measure("model"):
            row.update(self.judge(seen))

    def _look(
        self,
        video: ShownVideo,
        viewing: Viewing,
        tracks: "ViewTracks",
        counts: FrameCounts,
        clock: StageClock,
        frames: FrameSpool | None,
    ) -> None:
        """Shows a view to its members."""
        shown, keeps = video.show(viewing), self.num_crops > 0
        segments = look(shown, viewing, tracks.encoders, clock, keeps_pictures=keeps)
        for number, segment in enumerate(segments):
            counts.add(segment)
            if frames is not None:
                found = zip(tracks.members, segment.embeddings, strict=True)
                for name, vectors in {member.frames: each for member, each in found}.items():
                    frames.add(segment, number, tracks.view, vectors, name)
            tracks.take(segment, clock, num_crops=self.num_crops)

    def judge(self, seen: Sequence["ViewTracks"]) -> dict[str, Any]:
        """Returns the columns of the verdict.

        Args:
            seen: from `group_by_view`, with at least one track each.

        Raises:
            ModelError: logits of a member are not finite.
        """
        rows: list[dict[str, Any]] = []
        crops: list[Crop] = []
        judged: dict[Member, tuple[float, float]] = {}
        for each in seen:
            for number, member in enumerate(each.members):
                if not all(track.is_finite(number) for track in each.tracks):
                    raise ModelError(f"logits of {member.info.name} are not finite")
                logit = video_logit(
                    [track.of_member(number) for track in each.tracks], member.info.aggregation
                )
                judged[member] = member.info.calibrated(logit)[:2]
            aggregations = [member.info.aggregation for member in each.members]
            crops += [
                dataclasses.replace(crop, track=len(rows) + crop.track) for crop in each.crops
            ]
            rows += [
                track.to_row(len(rows) + number, aggregations)
                for number, track in enumerate(each.tracks)
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
            "crops": [crop.to_row() for crop in best_crops(crops, self.num_crops)] or None,
        }

    @property
    def _precision(self) -> str:
        """That the encoders run, all of them the same."""
        return next(each.encoder.precision for each in self.members if each.encoder is not None)

    @property
    def aggregation(self) -> str:
        """How the score came from the frames, in words."""
        ways = dict.fromkeys(_describe(member.info.aggregation) for member in self.members)
        named = " | ".join(ways)
        number = len(self.members)
        return named if number == 1 else f"mean of {number} checkpoints: {named}"


class ViewTracks:
    """What the members that are shown the same pictures say of them, gathered as they come.

    Attributes:
        tracks: in the order in which they begin.
        crops: the most suspicious pictures, where some are kept.
    """

    def __init__(self, view: View, members: Sequence[Member]) -> None:
        self.view = view
        self.members = members
        self.tracks: list[Track] = []
        self.crops: list[Crop] = []

    @property
    def encoders(self) -> list[tuple[Preprocessing, Encoder]]:
        """What encodes for the members, in their order."""
        return [
            (member.info.preprocessing, member.encoder)
            for member in self.members
            if member.encoder is not None
        ]

    def take(self, segment: Segment, clock: StageClock, *, num_crops: int = 0) -> None:
        """Lets the members judge a segment, whose embeddings are in their order.

        Args:
            segment: with its pictures, if ``num_crops`` are to be kept.
            clock: takes the seconds of ``model``.
            num_crops: how many of the most suspicious pictures of the video are kept.
        """
        with clock.measure("model"):
            judged = [
                member.model.classify_clips([vectors[clip] for _, clip in segment.clips])
                for member, vectors in zip(self.members, segment.embeddings, strict=True)
            ]
        # Whole frames are one track from end to end; faces are followed within a segment.
        first = len(self.tracks) if self.view.faces else 0
        for number, (track, clip) in enumerate(segment.clips):
            while len(self.tracks) <= first + track:
                self.tracks.append(Track())
            self.tracks[first + track].add(
                [segment.shots[position] for position in clip.tolist()],
                [logits[number] for logits in judged],
            )
        if num_crops:
            found = segment_crops(segment, judged, first, num_crops)
            self.crops = best_crops([*self.crops, *found], num_crops)


def group_by_view(members: Sequence[Member]) -> list[ViewTracks]:
    """Returns what gathers the tracks of each view, in the order of the views' first members."""
    views: dict[View, list[Member]] = {}
    for member in members:
        views.setdefault(member.view, []).append(member)
    return [ViewTracks(view, group) for view, group in views.items()]


def score_item(
    item: Item,
    open_video: OpenVideo,
    scorer: Scorer,
    stamp: Stamp,
    clock: StageClock,
    frames: FrameSpool | None = None,
) -> pa.Table:
    """Judges one video, or says why it cannot be.

    Args:
        item: what `read_items` yields.
        open_video: bytes to reader; its RecordErrors become the row's status.
        scorer: judges it.
        stamp: goes into the row.
        clock: takes the seconds of ``decode`` and ``model``.
        frames: takes the embeddings of all frames; to be cleared where the row is not ok.

    Returns:
        One row of `schema.videos_schema`.
    """
    score = functools.partial(scorer.score, frames=frames)
    row = video_row(item, open_video, score, stamp, clock)
    return pa.Table.from_pylist([row], _SCHEMA)


def _describe(config: AggregationConfig) -> str:
    text = f"steps={config.steps} clips={config.clips} tracks={config.tracks}"
    return f"{text} top_k={config.top_k}" if "top_k_mean" in text else text
