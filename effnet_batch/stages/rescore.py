"""Stored frames to verdicts: what the scoring job does, without the videos."""

from collections.abc import Iterable
from typing import Any, Final

from effnet_batch.errors import JobError, ModelError
from effnet_batch.models.sequence import Embeddings
from effnet_batch.schema import STATUS_OK, videos_schema
from effnet_batch.stages.frames import StoredSegment
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.records import Stamp, error_columns
from effnet_batch.stages.score import Scorer, ViewTracks, group_by_view

_JUDGED: Final = ("tracks", "checkpoints", "crops")
KEPT_COLUMNS: Final = tuple(name for name in videos_schema().names if name not in _JUDGED)
"""What a row of stored frames needs to say; the verdict among it is replaced."""

_VERDICT: Final = (
    "verdict",
    "score",
    "logit",
    "suspicious_start_seconds",
    "suspicious_end_seconds",
    "aggregation",
)


def rescore_row(
    row: dict[str, Any],
    segments: Iterable[StoredSegment],
    scorer: Scorer,
    stamp: Stamp,
    clock: StageClock,
) -> dict[str, Any]:
    """Judges a video by its stored frames, or says why not; one that is not ok stays what it is.

    Args:
        row: what stands beside the frames, at least the columns that every record has.
        segments: of the video, in order.
        scorer: whose members know the fingerprint of their frames.
        stamp: goes into the row.
        clock: takes the seconds of ``model``.

    Returns:
        A row of `schema.videos_schema`.

    Raises:
        JobError: the video is ok, and frames of it are missing.
    """
    kept = {name: value for name, value in row.items() if name not in _VERDICT}
    kept.update(run_id=stamp.run_id, fingerprint=stamp.fingerprint)
    if row["status"] != STATUS_OK:
        return kept
    seen = group_by_view(scorer.members)
    waiting: list[dict[int, dict[str, Embeddings]]] = [{} for _ in seen]
    for segment in segments:
        for tracks, begun in zip(seen, waiting, strict=True):
            _take(tracks, segment, begun, clock)
    if not all(tracks.tracks for tracks in seen) or any(waiting):
        where = " ".join(filter(None, (row["uri"], row["member"])))
        raise JobError(
            f"frames of {where} are missing; `effnet-batch verify --deep` of them says more"
        )
    try:
        with clock.measure("model"):
            kept.update(scorer.judge(seen))
    except ModelError as error:
        kept.update(error_columns(error))
    return kept


def _take(
    tracks: ViewTracks,
    segment: StoredSegment,
    begun: dict[int, dict[str, Embeddings]],
    clock: StageClock,
) -> None:
    """Shows a segment to the members of a view once all of their encoders' rows of it are there.

    Args:
        tracks: of the view.
        segment: as one encoder saw it.
        begun: by number, segments that some encoders' rows are missing of: embeddings by
            fingerprint. Encoders that were shown the video in other views than now come one after
            the other, with all of its segments each.
        clock: takes the seconds of ``model``.
    """
    wanted = {member.frames for member in tracks.members}
    if segment.fingerprint not in wanted:
        return
    embeddings = begun.setdefault(segment.number, {})
    embeddings[segment.fingerprint] = segment.embeddings
    if len(embeddings) == len(wanted):
        del begun[segment.number]
        found = [embeddings[member.frames] for member in tracks.members]
        with clock.measure("model"):
            seen = segment.seen(tracks.view.max_clip_frames, found)
        tracks.take(seen, clock)
