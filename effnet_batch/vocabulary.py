"""The fixed words of the columns ``status`` and ``kind``. Imports nothing, so anyone may import it."""

from typing import Final

STATUS_OK: Final = "ok"
STATUS_FETCH_ERROR: Final = "fetch_error"
STATUS_DECODE_ERROR: Final = "decode_error"
STATUS_UNSUPPORTED: Final = "unsupported"
STATUS_TOO_LARGE: Final = "too_large"
STATUS_TIMEOUT: Final = "timeout"
STATUS_CRASHED: Final = "crashed"
STATUS_OUT_OF_MEMORY: Final = "out_of_memory"

STATUSES: Final = (
    STATUS_OK,
    STATUS_FETCH_ERROR,
    STATUS_DECODE_ERROR,
    STATUS_UNSUPPORTED,
    STATUS_TOO_LARGE,
    STATUS_TIMEOUT,
    STATUS_CRASHED,
    STATUS_OUT_OF_MEMORY,
)
"""Every value of the ``status`` column."""

TRANSIENT_STATUSES: Final = (STATUS_FETCH_ERROR, STATUS_TIMEOUT)
"""Statuses that the next run tries again."""

KIND_IMAGE: Final = "image"
KIND_TAR: Final = "tar"
KIND_ZIP: Final = "zip"
KIND_PARQUET: Final = "parquet"
KINDS: Final = (KIND_IMAGE, KIND_TAR, KIND_ZIP, KIND_PARQUET)
"""What a source can be; all but ``image`` are shards of many members."""
