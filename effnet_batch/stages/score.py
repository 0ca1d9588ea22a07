"""Videos to verdicts: one row per video, with the evidence behind its score."""

import dataclasses
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
from effnet_batch.models.engine import Engine
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.schema import videos_schema
from effnet_batch.stages.evidence import Track, suspicious_span
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import Reader, View, look
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp
from effnet_batch.stages.video import FrameCounts, OpenVideo, video_row

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
    engine: Engine
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
    face_model: bytes | None = None
    """The face detector's file, if a member wants faces."""

    def score(self, reader: Reader, row: dict[str, Any], clock: StageClock) -> None:
        """Judges one video.

        Args:
            reader: the video.
            row: gets the columns of `schema.videos_schema`; where an error ends the work, those
                that were known by then.
            clock: takes the seconds of ``decode`` and ``model``.

        Raises:
            TooShortError: fewer frames than ``min_frames`` can be read.
            NoFaceError: a member wants faces and there are none.
            RecordError: the video cannot be decoded.
        """
        views = list(dict.fromkeys(member.view for member in self.members))
        counts = FrameCounts()
        seen = []
        for view in views:
            members = [member for member in self.members if member.view == view]
            seen.append((members, self._look(reader, view, members, counts, clock)))
        row.update(counts.columns(has_faces=any(view.faces for view in views)))
        counts.check(self.min_frames, has_tracks=all(tracks for _, tracks in seen))
        with clock.measure("model"):
            row.update(self._judge(seen))

    def _look(
        self,
        reader: Reader,
        view: View,
        members: list[Member],
        counts: FrameCounts,
        clock: StageClock,
    ) -> list[Track]:
        """Returns the tracks of a view with the logits of its members."""
        encoders = [(member.info.preprocessing, member.engine) for member in members]
        tracks: list[Track] = []
        for segment in look(reader, view, encoders, self.face_model, clock):
            counts.add(segment)
            with clock.measure("model"):
                judged = [
                    member.model.classify_clips([vectors[clip] for _, clip in segment.clips])
                    for member, vectors in zip(members, segment.embeddings, strict=True)
                ]
            # Whole frames are one track from end to end; faces are followed within a segment.
            first = len(tracks) if view.faces else 0
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
