"""Shards: the images, or videos, inside tar, zip and Parquet files, one after the other.

A shard comes from anywhere, so nothing in it is believed: names are only labels and nothing is
extracted, links are not followed, sizes are checked against what really comes out, and damage
becomes records instead of exceptions. The same bytes give the same sequence of members whichever
of them are wanted.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from effnet_batch import schema
from effnet_batch.errors import DecodeError, FetchError, RecordError
from effnet_batch.shards.member import (
    IMAGE_EXTENSIONS,
    MAX_HELD_BYTES,
    VIDEO_EXTENSIONS,
    Census,
    IsWanted,
    Label,
    Member,
    Source,
    medium_of,
)
from effnet_batch.shards.parquet import (
    IMAGE_COLUMNS,
    VIDEO_COLUMNS,
    find_media_column,
    iter_parquet,
)
from effnet_batch.shards.tar import iter_tar
from effnet_batch.shards.zip import iter_zip

__all__ = [
    "IMAGE_COLUMNS",
    "IMAGE_EXTENSIONS",
    "MAX_HELD_BYTES",
    "VIDEO_COLUMNS",
    "VIDEO_EXTENSIONS",
    "IsWanted",
    "Member",
    "find_media_column",
    "iter_members",
    "medium_of",
]

_Items = Iterator[Member | Label | None]
_READERS: Final[dict[str, Callable[[Source, Census, int, str], _Items]]] = {
    schema.KIND_TAR: iter_tar,
    schema.KIND_ZIP: iter_zip,
}
_SURPRISES: Final = (ArithmeticError, LookupError, OSError, RuntimeError, ValueError)
"""What format libraries let slip on damage that they did not foresee."""


def iter_members(
    kind: str,
    uri: str,
    stream: BinaryIO,
    *,
    is_wanted: IsWanted,
    max_bytes: int,
    medium: str = schema.KIND_IMAGE,
    media_column: str | None = None,
) -> Iterator[Member]:
    """Yields a shard's wanted images, or videos, in its own order, holding at most two of them.

    Args:
        kind: ``tar`` (plain, .gz, .bz2, .xz or .zst, told apart by content), ``zip`` or
            ``parquet``.
        uri: canonical URI of the shard, for messages.
        stream: seekable stream over the shard; not closed.
        is_wanted: asked once per member with its name and occurrence; the name is None for the
            record that stands for what cannot be read. Members that are not wanted are counted,
            and their bytes are not read where the format allows it.
        max_bytes: largest member in bytes; larger ones are ``too_large`` records.
        medium: which of `schema.MEDIA` the members are. In a tar or zip their extension says so,
            and the other medium's files are no members.
        media_column: Parquet column that holds the members; None recognises the usual ones.

    Yields:
        Members with ``data``, ``file`` or ``error``. The shard's last member carries
        ``num_members``; when it is not wanted no member does.

    Raises:
        FetchError: the stream failed, or this machine's disk is full; what was yielded is an
            incomplete reading of the shard.
        OutageError: storage went away.
    """
    if medium not in schema.MEDIA:
        raise ValueError(f"medium: got {medium!r}, allowed: {', '.join(schema.MEDIA)}")
    census = Census(is_wanted)
    items: _Items
    if kind == schema.KIND_PARQUET:
        # Columns are read in turns, each with its own read-ahead; one below them would be thrown
        # away and fetched again at every turn.
        source = Source(getattr(stream, "raw", stream), uri)
        items = iter_parquet(source, census, max_bytes, medium, media_column)
    elif kind in _READERS:
        source = Source(stream, uri)
        items = _READERS[kind](source, census, max_bytes, medium)
    else:
        raise ValueError(f"kind: got {kind!r}, allowed: tar, zip, parquet")

    pending: Member | None = None
    # The last member is known only when nothing follows, so each one waits for the next.
    for item in _with_damage(items, source, census, medium):
        if isinstance(item, Label):
            if pending is not None and pending.label is None:
                pending = dataclasses.replace(pending, label=item.text)
            continue
        if pending is not None:
            yield pending
        pending = item
    if pending is not None:
        yield dataclasses.replace(pending, num_members=census.num_members)


def _with_damage(items: _Items, source: Source, census: Census, medium: str) -> _Items:
    """Adds the record that stands for what could not be read, or for a shard without members."""
    try:
        yield from items
    except Exception as error:
        # A failed read is no damage, whatever a format library made of it on the way up.
        if source.failure is not None:
            raise source.failure from None
        # Nor is a full disk of this machine.
        if isinstance(error, FetchError) or not isinstance(error, (RecordError, *_SURPRISES)):
            raise
        if not isinstance(error, RecordError):
            what = f"{type(error).__name__}: {error}"
            error = DecodeError(f"{source.uri}: what follows cannot be read: {what}")
        yield census.rest(error)
        return
    if not census.num_members:
        yield census.rest(DecodeError(f"{source.uri}: no {medium}s in shard"))
