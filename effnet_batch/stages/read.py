"""Sources to encoded media: fetching objects ahead of the decoder and walking through shards."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import pyarrow as pa

from effnet_batch.errors import FetchError, OutageError, RecordError, TooLargeError
from effnet_batch.schema import KIND_IMAGE, KIND_VIDEO, MEDIA, record_id
from effnet_batch.shards import MAX_HELD_BYTES, iter_members
from effnet_batch.storage import ReadRequest, Storage

_CHUNK_ITEMS: Final = 32
# Nothing larger is held with others; of videos, nothing larger is held at all.
_CHUNK_BYTES: Final = MAX_HELD_BYTES
# One video keeps a decoder busy for longer than its fetch takes, so a few at once are enough.
_CHUNK_VIDEOS: Final = 8
_CHUNKS_AHEAD: Final = 2
_BYTES_AHEAD: Final = _CHUNKS_AHEAD * _CHUNK_BYTES
OUTAGE_WINDOW: Final = 1_000
"""Sources over which the share of fetch errors is taken."""
OUTAGE_SHARE: Final = 0.05
"""More passing fetch errors than this are an outage, not results."""
_OUTAGE_MINIMUM_SOURCES: Final = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One pending source: a manifest row and what the ledger says of it."""

    uri: str
    source_id: str
    kind: str
    size_bytes: int | None
    etag: str | None
    label: str | None
    group: str | None
    split: str | None
    source_version: str | None
    attempt: int
    skip: frozenset[str]
    """Ids of the records of a half-done shard that are committed already."""
    fetch_uri: str | None = dataclasses.field(repr=False)
    """The signed URL to fetch from; never written anywhere."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One encoded image or video, or why there is none: one of data, file and error is set."""

    source: Source
    member: str | None = None
    occurrence: int = 0
    data: bytes | None = None
    """Images, and videos of at most 32 MiB."""
    file: BinaryIO | None = None
    """Larger videos: seekable, on this machine's disk; closed by who works on the item."""
    error: RecordError | None = None
    size_bytes: int | None = None
    label: str | None = None
    num_source_records: int | None = None
    """How many records the source has; only on its last one."""

    @property
    def content(self) -> bytes | BinaryIO | None:
        """The encoded image or video, wherever it is."""
        return self.data if self.file is None else self.file

    @property
    def num_bytes_kept(self) -> int:
        """Bytes that this item takes of memory or disk."""
        return len(self.data or b"") if self.file is None else self.size_bytes or 0

    def close(self) -> None:
        """Gives back the item's file, if it has one."""
        if self.file is not None:
            self.file.close()


def sources_from_table(table: pa.Table) -> list[Source]:
    """Returns the rows of a table of pending sources, whose columns are the fields of `Source`."""
    names = [field.name for field in dataclasses.fields(Source)]
    columns = table.select(names).to_pylist()
    return [Source(**{**row, "skip": frozenset(row["skip"] or ())}) for row in columns]


class OutageGuard:
    """Counts passing fetch errors over the last sources and stops the run when they are many.

    Rows that were read so far are not committed then, so that an outage never becomes a result.
    """

    def __init__(self) -> None:
        self._recent: collections.deque[bool] = collections.deque(maxlen=OUTAGE_WINDOW)
        self._lock = threading.Lock()

    def take(self, error: RecordError | None) -> None:
        """Takes in the outcome of one source; may be called from several threads.

        Raises:
            OutageError: more than 5 % of the last 1,000 sources could not be fetched.
        """
        has_failed = isinstance(error, FetchError) and error.is_transient
        with self._lock:
            self._recent.append(has_failed)
            failed = sum(self._recent) if has_failed else 0
        if failed > OUTAGE_SHARE * max(len(self._recent), _OUTAGE_MINIMUM_SOURCES):
            raise OutageError(
                f"{failed} of the last {len(self._recent)} sources could not be fetched, "
                f"the last one because: {error}; run the same command again when storage is back"
            )


def read_items(
    sources: list[Source],
    storage: Storage,
    guard: OutageGuard,
    *,
    max_bytes: int,
    media_column: str | None,
    on_incomplete: Callable[[Source, RecordError], None],
    medium: str = KIND_IMAGE,
) -> Iterator[Item]:
    """Yields the images, or videos, of the sources in order, fetched a little ahead in a thread.

    Small ones are fetched together; a video that is large, or of unknown size, alone. A video over
    32 MiB is not held: a local file is opened where it is, all else is spooled to a temporary file
    of this machine. Beside what is worked on, at most 96 MiB and one image more, in a shard two,
    are held ready; of the spooled videos one, in a shard two.

    Args:
        sources: what to read.
        storage: where from.
        guard: decides when failures are an outage.
        max_bytes: larger images, or videos, become too_large.
        media_column: column of Parquet shards that holds them; found by name when None.
        on_incomplete: called when a shard broke off in its middle for a reason that may pass; its
            remaining records are left to the next run.
        medium: which of `schema.MEDIA` the members of shards are.

    Raises:
        OutageError: storage went away.
    """
    usual = _UsualSize()

    def chunks() -> Iterator[list[Item]]:
        for group in _groups(sources, usual):
            if group[0].kind in MEDIA:
                yield from _read_plain(group, storage, max_bytes, usual)
            else:
                items = _read_shard(
                    group[0], storage, max_bytes, medium, media_column, on_incomplete
                )
                yield from _chunked(items)

    for chunk in _ahead(chunks()):
        for item in chunk:
            if item.num_source_records is not None:
                guard.take(item.error)
            yield item


class _UsualSize:
    """Guesses the bytes of images whose manifest does not say them, as in most lists."""

    def __init__(self) -> None:
        self.num_bytes = _CHUNK_BYTES / _CHUNK_ITEMS

    def learn(self, data: bytes) -> None:
        """Takes in the size of one more image; the last dozen decide."""
        self.num_bytes += (len(data) - self.num_bytes) / 8


def _groups(sources: list[Source], usual: _UsualSize) -> Iterator[list[Source]]:
    """Yields runs of plain sources that are fetched together, and shards one by one."""
    group: list[Source] = []
    num_bytes = 0
    for source in sources:
        is_video = source.kind == KIND_VIDEO
        # A video of unknown size may be large.
        size = source.size_bytes or (_CHUNK_BYTES + 1 if is_video else int(usual.num_bytes))
        if group and (
            source.kind != group[0].kind
            or len(group) == (_CHUNK_VIDEOS if is_video else _CHUNK_ITEMS)
            or num_bytes + size > _CHUNK_BYTES
        ):
            yield group
            group, num_bytes = [], 0
        if source.kind in MEDIA:
            group.append(source)
            num_bytes += size
        else:
            yield [source]
    if group:
        yield group


def _read_plain(
    group: list[Source], storage: Storage, max_bytes: int, usual: _UsualSize
) -> Iterator[list[Item]]:
    """Yields the items of a group; those that are much larger than was to be expected alone."""
    requests = [ReadRequest(s.uri, s.fetch_uri, s.etag, _file_version(s)) for s in group]
    is_video = group[0].kind == KIND_VIDEO
    is_guess = len(group) > 1 and any(source.size_bytes is None for source in group)
    limit = min(max_bytes, _CHUNK_BYTES) if is_guess or is_video else max_bytes
    if is_video and (group[0].size_bytes or 0) > limit:  # A group of its own.
        yield [_open_large(group[0], requests[0], storage, max_bytes)]
        return
    items = []
    results = storage.read_many(requests, max_bytes=limit)
    for source, request, result in zip(group, requests, results, strict=True):
        if not isinstance(result, TooLargeError) or limit == max_bytes:
            items.append(_plain_item(source, result, usual))
            continue
        if items:
            yield items
        if is_video:
            yield [_open_large(source, request, storage, max_bytes)]
        else:
            (whole,) = storage.read_many([request], max_bytes=max_bytes)
            yield [_plain_item(source, whole, usual)]
        items = []
    if items:
        yield items


def _open_large(source: Source, request: ReadRequest, storage: Storage, max_bytes: int) -> Item:
    """Returns a video that is too large to be held, as a file."""
    try:
        file, size_bytes = storage.open_whole(request, max_bytes=max_bytes)
    except RecordError as error:
        return Item(source, error=error, size_bytes=source.size_bytes, num_source_records=1)
    return Item(source, file=file, size_bytes=size_bytes, num_source_records=1)


def _plain_item(source: Source, result: bytes | RecordError, usual: _UsualSize) -> Item:
    if isinstance(result, RecordError):
        return Item(source, error=result, size_bytes=source.size_bytes, num_source_records=1)
    usual.learn(result)
    return Item(source, data=result, size_bytes=len(result), num_source_records=1)


def _read_shard(
    source: Source,
    storage: Storage,
    max_bytes: int,
    medium: str,
    media_column: str | None,
    on_incomplete: Callable[[Source, RecordError], None],
) -> Iterator[Item]:
    num_yielded = 0
    try:
        with storage.open(
            source.uri,
            etag=source.etag,
            version=_file_version(source),
            fetch_uri=source.fetch_uri,
        ) as stream:
            for member in iter_members(
                source.kind,
                source.uri,
                stream,
                is_wanted=_wanted(source),
                max_bytes=max_bytes,
                medium=medium,
                media_column=media_column,
            ):
                num_yielded += 1
                yield Item(
                    source,
                    member=member.name,
                    occurrence=member.occurrence,
                    data=member.data,
                    file=member.file,
                    error=member.error,
                    size_bytes=member.size_bytes,
                    label=member.label,
                    num_source_records=member.num_members,
                )
    except FetchError as error:
        if num_yielded or source.skip:
            on_incomplete(source, error)
        else:
            yield Item(source, error=error, size_bytes=source.size_bytes, num_source_records=1)


def _file_version(source: Source) -> str | None:
    """Returns what tells the version of a source without an etag, as files on a disk are."""
    return source.source_version if source.etag is None else None


def _wanted(source: Source) -> Callable[[str | None, int], bool]:
    if not source.skip:
        return lambda name, occurrence: True
    return lambda name, occurrence: record_id(source.uri, name, occurrence) not in source.skip


def _chunked(items: Iterator[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    num_bytes = 0
    for item in items:
        chunk.append(item)
        num_bytes += item.num_bytes_kept
        if len(chunk) == _CHUNK_ITEMS or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _ahead(chunks: Iterator[list[Item]]) -> Iterator[list[Item]]:
    """Runs a generator in a thread, a little ahead; its exceptions are raised here.

    The thread rests while more than `_CHUNKS_AHEAD` chunks or `_BYTES_AHEAD` bytes are ready, so
    that behind the large video that is worked on only one more waits.
    """
    ready: collections.deque[tuple[list[Item] | BaseException | None, int]] = collections.deque()
    room = threading.Condition()
    is_stopped = False

    def has_room() -> bool:
        num_bytes = sum(size for _, size in ready)
        return is_stopped or (len(ready) <= _CHUNKS_AHEAD and num_bytes <= _BYTES_AHEAD)

    def put(value: list[Item] | BaseException | None, num_bytes: int = 0) -> None:
        with room:
            ready.append((value, num_bytes))
            room.notify_all()
            room.wait_for(has_room)

    def work() -> None:
        try:
            for chunk in chunks:
                put(chunk, sum(item.num_bytes_kept for item in chunk))
                if is_stopped:
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001  raised again by the reader
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            with room:
                room.wait_for(lambda: bool(ready))
                value, _ = ready.popleft()
                room.notify_all()
            if value is None:
                return
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        with room:
            is_stopped = True
            room.notify_all()
        thread.join()
