"""Objects on disks, in buckets and behind URLs: read, listed and written in one manner.

Nothing above this room knows what kind of storage a URI means, and no message leaves it with a
secret in it.
"""

from effnet_batch.storage.dispatch import Storage
from effnet_batch.storage.local import discarding_empty
from effnet_batch.storage.objects import ObjectInfo, ReadRequest, Span, StorageOptions
from effnet_batch.storage.spool import PIECE_BYTES, spool, spool_stream
from effnet_batch.storage.uris import (
    canonical_uri,
    join,
    local_path,
    redact,
    scheme_of,
    split_signature,
)

__all__ = [
    "PIECE_BYTES",
    "ObjectInfo",
    "ReadRequest",
    "Span",
    "Storage",
    "StorageOptions",
    "canonical_uri",
    "discarding_empty",
    "join",
    "local_path",
    "redact",
    "scheme_of",
    "split_signature",
    "spool",
    "spool_stream",
]
