"""Decode tasks of the split graph: a video in, what a model is shown of it out, wherever CPUs are.

Nothing here needs the model, and no process that only decodes loads it. A process holds at most an
encoded video of 32 MiB (larger ones lie on disk), a decoder, with faces the whole frames that
`stages.show` names, and a parcel of pictures: 2 MiB and 16 pictures. Where its pictures are not
taken it stops after `PARCELS_AHEAD` parcels.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from effnet_batch.config import VideoLimitSettings
from effnet_batch.errors import RecordError
from effnet_batch.media.faces import load_model
from effnet_batch.media.video import VideoInfo
from effnet_batch.pipelines.metrics import publish_clock
from effnet_batch.pipelines.open_videos import video_opener
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.shards import MAX_HELD_BYTES
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item, OutageGuard, Source, read_items
from effnet_batch.stages.show import Pictures, Shown, Viewing, show
from effnet_batch.storage import Storage, StorageOptions, spool

PARCELS_AHEAD: Final = 2
"""Parcels of one video that wait in the object store."""
_PARCEL_BYTES: Final = 2 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeTask:
    """Everything that a decode task needs to know; plain values, no secret and no open file."""

    storage: StorageOptions
    limits: VideoLimitSettings
    viewings: tuple[Viewing, ...]
    """What every video is shown as."""
    face_model: str | None
    """Where the face detector's file is; None for its own place."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """The first part of what is sent: whether there are bytes to decode."""

    size_bytes: int | None
    error: RecordError | None


@dataclasses.dataclass(frozen=True)
class Ended:
    """The last part of a viewing, or of a video that cannot be opened."""

    is_partial: bool
    error: RecordError | None


Part = Fetched | VideoInfo | Shown | Ended
"""`Fetched`; then, if that is without an error, `VideoInfo`; then `Shown` and an `Ended` for every
viewing. An error is in the last part."""


def decode_video(
    task: DecodeTask, source: Source, content: npt.NDArray[np.uint8] | None, is_suspect: bool
) -> Iterator[tuple[Part, ...]]:
    """Decodes one video.

    Args:
        task: how.
        source: is fetched here, unless the video comes along.
        content: the encoded video, of a member of a shard.
        is_suspect: decode in a child that can be killed, for a video whose decoder died before.

    Yields:
        Parts, several together so that few objects travel.

    Raises:
        OutageError: storage went away.
    """
    parcel: list[Part] = []
    num_bytes = 0
    for part in _parts(task, source, content, is_suspect=is_suspect):
        parcel.append(part)
        num_bytes += part.pixels.nbytes if isinstance(part, Pictures) else 0
        if num_bytes >= _PARCEL_BYTES:
            yield tuple(parcel)
            parcel, num_bytes = [], 0
    yield tuple(parcel)


def _parts(
    task: DecodeTask, source: Source, content: npt.NDArray[np.uint8] | None, *, is_suspect: bool
) -> Iterator[Part]:
    clock = StageClock()
    with clock.measure("read"):
        item = _fetch(task, source) if content is None else _unpack(source, content)
    yield Fetched(item.size_bytes, item.error)
    if item.content is None:
        return
    face_model = None
    if any(viewing.view.faces for viewing in task.viewings):
        face_model = _face_model(task.face_model)
    try:
        with (
            video_opener(task.limits, is_suspect=is_suspect) as open_reader,
            open_reader(item.content) as reader,
        ):
            yield reader.info
            for viewing in task.viewings:
                try:
                    yield from show(reader, viewing, face_model, clock)
                except RecordError as error:
                    yield Ended(reader.is_partial, error)
                    return
                yield Ended(reader.is_partial, None)
    except RecordError as error:
        yield Ended(False, error)
    finally:
        publish_clock(clock, ("read", "decode"))
        item.close()


def _fetch(task: DecodeTask, source: Source) -> Item:
    (item,) = read_items(
        [source],
        _storage(task.storage),
        OutageGuard(),  # the actor's own sees the outcome
        max_bytes=task.limits.max_video_bytes,
        media_column=None,
        on_incomplete=lambda source, error: None,  # only shards break off in their middle
        medium=KIND_VIDEO,
    )
    return item


def _unpack(source: Source, content: npt.NDArray[np.uint8]) -> Item:
    """Returns the item of a video that came along through the object store."""
    size_bytes = len(content)
    if size_bytes <= MAX_HELD_BYTES:
        return Item(source, data=content.tobytes(), size_bytes=size_bytes)
    try:
        return Item(source, file=spool([content.data]), size_bytes=size_bytes)
    except RecordError as error:
        return Item(source, error=error, size_bytes=size_bytes)


@functools.lru_cache(maxsize=4)
def _storage(options: StorageOptions) -> Storage:
    """Returns the storage of this process, which many tasks share."""
    return Storage(options)


@functools.lru_cache(maxsize=2)
def _face_model(path: str | None) -> bytes:
    """Returns the face detector's file, read once per process."""
    return load_model(path)
