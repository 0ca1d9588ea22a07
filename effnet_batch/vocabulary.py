"""The fixed words of the columns ``status`` and ``kind``; light, so that anyone may import it."""

from typing import Final

STATUS_OK: Final = "ok"
STATUS_FETCH_ERROR: Final = "fetch_error"
STATUS_DECODE_ERROR: Final = "decode_error"
STATUS_UNSUPPORTED: Final = "unsupported"
STATUS_TOO_LARGE: Final = "too_large"
STATUS_TIMEOUT: Final = "timeout"
STATUS_CRASHED: Final = "crashed"
STATUS_OUT_OF_MEMORY: Final = "out_of_memory"
STATUS_NO_FACE: Final = "no_face"
STATUS_TOO_SHORT: Final = "too_short"
STATUS_MODEL_ERROR: Final = "model_error"

STATUSES: Final = (
    STATUS_OK,
    STATUS_FETCH_ERROR,
    STATUS_DECODE_ERROR,
    STATUS_UNSUPPORTED,
    STATUS_TOO_LARGE,
    STATUS_TIMEOUT,
    STATUS_CRASHED,
    STATUS_OUT_OF_MEMORY,
    STATUS_NO_FACE,
    STATUS_TOO_SHORT,
    STATUS_MODEL_ERROR,
)
"""Every value of the ``status`` column."""

TRANSIENT_STATUSES: Final = (STATUS_FETCH_ERROR, STATUS_TIMEOUT)
"""Statuses that the next run tries again."""

KIND_IMAGE: Final = "image"
KIND_VIDEO: Final = "video"
KIND_TAR: Final = "tar"
KIND_ZIP: Final = "zip"
KIND_PARQUET: Final = "parquet"
KINDS: Final = (KIND_IMAGE, KIND_VIDEO, KIND_TAR, KIND_ZIP, KIND_PARQUET)
"""What a source can be; all but the media are shards of many members."""

MEDIA: Final = (KIND_IMAGE, KIND_VIDEO)
"""What a job reads: its plain sources and the members of its shards are all of one medium."""

URI_COLUMNS: Final = ("uri", "url", "path", "file")
"""Columns of a list that hold the URI, in this order of preference, in any case."""
