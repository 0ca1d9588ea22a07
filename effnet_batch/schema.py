"""Column names, statuses and Arrow schemas: what is written, and what users' readers rely on.

The columns that the ledger needs stand last in a part, next to its footer, so that one ranged
request for the tail of a part answers "what is done?" without touching the vectors.
"""

import hashlib
from typing import Final

import pyarrow as pa

from effnet_batch.vocabulary import (
    KIND_IMAGE as KIND_IMAGE,
    KIND_PARQUET as KIND_PARQUET,
    KIND_TAR as KIND_TAR,
    KIND_VIDEO as KIND_VIDEO,
    KIND_ZIP as KIND_ZIP,
    KINDS as KINDS,
    MEDIA as MEDIA,
    STATUS_CRASHED as STATUS_CRASHED,
    STATUS_DECODE_ERROR as STATUS_DECODE_ERROR,
    STATUS_FETCH_ERROR as STATUS_FETCH_ERROR,
    STATUS_MODEL_ERROR as STATUS_MODEL_ERROR,
    STATUS_NO_FACE as STATUS_NO_FACE,
    STATUS_OK as STATUS_OK,
    STATUS_OUT_OF_MEMORY as STATUS_OUT_OF_MEMORY,
    STATUS_TIMEOUT as STATUS_TIMEOUT,
    STATUS_TOO_LARGE as STATUS_TOO_LARGE,
    STATUS_TOO_SHORT as STATUS_TOO_SHORT,
    STATUS_UNSUPPORTED as STATUS_UNSUPPORTED,
    STATUSES as STATUSES,
    TRANSIENT_STATUSES as TRANSIENT_STATUSES,
)

MANIFEST_SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        pa.field("split", pa.string()),
        pa.field("is_signed", pa.bool_()),
    ]
)
"""One row per source. ``is_signed``: its URL carried a signature, which is never stored."""

LEDGER_COLUMNS: Final = (
    "source_id",
    "record_id",
    "source_version",
    "attempt",
    "status",
    "num_source_records",
)
"""The columns that say what is done."""


def embeddings_schema(
    *, float16: bool = False, top_k: int = 0, has_names: bool = False, logits: bool = False
) -> pa.Schema:
    """Returns the Arrow schema of an embeddings part.

    ``embedding`` is a ``list<float>``: a null in a fixed-size list cannot be read back by pyarrow
    or pandas. It is null wherever ``status`` is not ``ok``.

    Args:
        float16: store the vectors as float16 instead of float32.
        top_k: number of best classes kept per record; 0 leaves their columns out.
        has_names: the model knows what its classes are called.
        logits: keep the logits of all classes.
    """
    vector = _vector(float16=float16)
    fields = [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        pa.field("split", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("embedding", vector),
    ]
    if top_k:
        fields += [
            pa.field("top_k_classes", pa.list_(pa.int32())),
            pa.field("top_k_scores", pa.list_(pa.float32())),
        ]
    if top_k and has_names:
        fields.append(pa.field("top_k_names", pa.list_(pa.string())))
    if logits:
        fields.append(pa.field("logits", vector))
    fields += _record_fields()
    return pa.schema(fields)


def _record_fields() -> list[pa.Field]:
    """Returns the columns that end every output; those of the ledger last."""
    return [
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("source_version", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("num_source_records", pa.int64()),
    ]


_FRAME: Final = pa.struct(
    [
        ("pts_seconds", pa.float64()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("logit", pa.float32()),
        ("score", pa.float32()),
    ]
)
_TRACK: Final = pa.struct(
    [
        ("track", pa.int32()),
        ("first_pts_seconds", pa.float64()),
        ("last_pts_seconds", pa.float64()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("logit", pa.float32()),
        ("score", pa.float32()),
        ("frames", pa.list_(_FRAME)),
    ]
)
_MEMBER_SCORE: Final = pa.struct(
    [("checkpoint", pa.string()), ("logit", pa.float32()), ("score", pa.float32())]
)
_CROP: Final = pa.struct(
    [
        ("track", pa.int32()),
        ("pts_seconds", pa.float64()),
        ("score", pa.float32()),
        ("jpeg", pa.binary()),
    ]
)


def videos_schema() -> pa.Schema:
    """Returns the Arrow schema of a part of verdicts: one row per video.

    ``logit``, ``score`` and ``verdict`` are null unless ``status`` is ``ok``; no score is ever made
    up. Boxes are in pixels of the upright frame, right and bottom exclusive; a track's box spans
    those of its frames; boxes are null where whole frames are judged, and ``num_faces`` with them.
    A checkpoint's calibration moves the video's score and its own, not those of tracks and frames.
    Times are the container's presentation times. The suspicious span is that of
    `stages.evidence.suspicious_span`.
    """
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("member", pa.string()),
            pa.field("label", pa.string()),
            pa.field("group", pa.string()),
            pa.field("split", pa.string()),
            pa.field("verdict", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("logit", pa.float32()),
            pa.field("suspicious_start_seconds", pa.float64()),
            pa.field("suspicious_end_seconds", pa.float64()),
            *_video_fields(),
            pa.field("aggregation", pa.string()),
            pa.field("checkpoints", pa.list_(_MEMBER_SCORE)),
            pa.field("tracks", pa.list_(_TRACK)),
            pa.field("crops", pa.list_(_CROP)),
            *_record_fields(),
        ]
    )


def video_embeddings_schema(*, float16: bool = False) -> pa.Schema:
    """Returns the Arrow schema of a part of pooled embeddings: one row per video.

    ``embedding`` is the mean of the embeddings of all pictures that the model saw: of every frame,
    or of every face in every frame. It is null wherever ``status`` is not ``ok``.

    Args:
        float16: store the vectors as float16 instead of float32.
    """
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("member", pa.string()),
            pa.field("label", pa.string()),
            pa.field("group", pa.string()),
            pa.field("split", pa.string()),
            *_video_fields(),
            pa.field("embedding", _vector(float16=float16)),
            *_record_fields(),
        ]
    )


def _video_fields() -> list[pa.Field]:
    """Returns the columns that say what was seen of a video.

    ``decoder`` is ``nvdec`` where a card decoded all frames, else ``cpu``.
    ``num_frames_expected`` are the frames that the sampling asked for, ``num_frames_sampled`` those
    that could be decoded, ``num_frames_used`` those that the model saw.
    """
    return [
        pa.field("duration_seconds", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("codec", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("is_partial", pa.bool_()),
        pa.field("decoder", pa.string()),
        pa.field("num_frames_expected", pa.int32()),
        pa.field("num_frames_sampled", pa.int32()),
        pa.field("num_frames_used", pa.int32()),
        pa.field("num_faces", pa.int32()),
        pa.field("num_tracks", pa.int32()),
    ]


def clips_schema() -> pa.Schema:
    """Returns the Arrow schema of a part of prepared training videos: one row per video.

    What is shown of a video that is ok lies in a file of its own, ``clips_uri``; ``clip_lengths``
    are the pictures of each of its clips.
    """
    videos = videos_schema()
    own = [pa.field("clips_uri", pa.string()), pa.field("clip_lengths", pa.list_(pa.int32()))]
    kept = ["uri", "member", "label", "group", "split", "duration_seconds", "fps", "codec"]
    kept += ["width", "height", "size_bytes", "is_partial"]
    return pa.schema([*(videos.field(name) for name in kept), *own, *_record_fields()])


def images_schema() -> pa.Schema:
    """Returns the Arrow schema of a part of prepared training images: one row per image.

    An image that is ok lies, encoded as it came, in the bytes from ``offset`` to ``offset`` plus
    ``size_bytes`` of a file with others, ``images_uri``.
    """
    images = embeddings_schema()
    kept = ["uri", "member", "label", "group", "split", "width", "height", "size_bytes"]
    own = [pa.field("images_uri", pa.string()), pa.field("offset", pa.int64())]
    return pa.schema([*(images.field(name) for name in kept), *own, *_record_fields()])


def frames_schema(*, float16: bool = False) -> pa.Schema:
    """Returns the Arrow schema of a part of frame embeddings: one row per picture that was encoded.

    A picture is a whole frame, or a face in it; pictures stand in the order of their records in the
    part that they belong to, and only records that are ok have any. ``segment`` numbers the
    stretches of a video that were sampled on their own, ``track`` the faces of a segment (0 for
    whole frames), ``frame_index`` the frames of the video. Boxes are in pixels of the upright
    frame, null for whole frames, ``face_score`` the detector's confidence in 0..1. ``clips`` are
    the numbers, in the segment, of the sampling's clips that the picture is in, and ``clip_steps``
    its places in them, counting frames that could not be read or have no such face: a model that
    sees at most T frames together takes those of one clip and one ``step // T``. ``fingerprint`` is
    that of the embedding, not of the job: encoder, preprocessing, engine, sampling and faces. Where
    several encoders saw a picture, it has a row of each.

    Args:
        float16: store the vectors as float16 instead of float32.
    """
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("member", pa.string()),
            pa.field("segment", pa.int32(), nullable=False),
            pa.field("track", pa.int32(), nullable=False),
            pa.field("frame_index", pa.int64(), nullable=False),
            pa.field("pts_seconds", pa.float64(), nullable=False),
            pa.field("left", pa.float64()),
            pa.field("top", pa.float64()),
            pa.field("right", pa.float64()),
            pa.field("bottom", pa.float64()),
            pa.field("face_score", pa.float64()),
            pa.field("clips", pa.list_(pa.int32()), nullable=False),
            pa.field("clip_steps", pa.list_(pa.int32()), nullable=False),
            pa.field("embedding", _vector(float16=float16), nullable=False),
            pa.field("fingerprint", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("source_id", pa.string(), nullable=False),
            pa.field("record_id", pa.string(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
        ]
    )


def _vector(*, float16: bool) -> pa.ListType:
    return pa.list_(pa.float16() if float16 else pa.float32())


def source_id(uri: str) -> str:
    """Returns the id of a source: 16 bytes of SHA-256 of its canonical URI, as 32 hex digits."""
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


def record_id(uri: str, member: str | None, occurrence: int) -> str:
    """Returns the id of a record: 16 bytes of SHA-256 of (URI, member, occurrence), in hex.

    Args:
        uri: canonical URI of the source.
        member: name inside the shard, or None for a plain source or an unreadable shard.
        occurrence: how often this name came before in the same shard; a tar may repeat names.
    """
    # NUL cannot stand in a URI, and a missing member differs from one with an empty name.
    parts = uri if member is None else f"{uri}\0{member}\0{occurrence}"
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
