"""The actor's side of decode tasks: videos that are decoded elsewhere, and what becomes of deaths.

A task that dies takes nothing along but its video, which starts again in a task of its own: rows
are made of what one task sent from first to last.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import ray.exceptions

from effnet_batch.errors import (
    CrashedError,
    EffnetBatchError,
    JobError,
    OutOfMemoryError,
    RecordError,
)
from effnet_batch.media.video import CPU, VideoInfo
from effnet_batch.pipelines.decode_videos import (
    PARCELS_AHEAD,
    DecodeTask,
    Ended,
    Fetched,
    Part,
    decode_video,
)
from effnet_batch.pipelines.graphs import RETRIES
from effnet_batch.stages.read import Item, OutageGuard
from effnet_batch.stages.show import Pictures, Shown, Stretch, Viewing
from effnet_batch.stages.video import OpenVideo

_LOST_NODES: Final = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
)
_MAX_LOST_NODES: Final = 20
"""Times that a video is begun again because its node went away."""


_Result = TypeVar("_Result")


class RemoteVideos:
    """Has videos decoded in tasks, for all lanes of an actor."""

    def __init__(self, task: DecodeTask, guard: OutageGuard) -> None:
        """Ships what tasks need to know.

        Args:
            task: how videos are decoded.
            guard: is told how every source's fetch went.
        """
        self._task = ray.put(task)
        self._guard = guard
        decode: Any = ray.remote(decode_video)
        self._decode = decode.options(
            num_cpus=1,
            num_returns="streaming",
            max_retries=0,  # what one task sent is not continued by what another sends
            _generator_backpressure_num_objects=PARCELS_AHEAD,
        )

    def work(self, item: Item, work: Callable[[Item, OpenVideo], _Result]) -> _Result:
        """Returns what the work on a video returns, which is begun again where its decoder dies.

        Args:
            item: a member of a shard, a failure, or a source that is not fetched yet, which has
                neither content nor error.
            work: takes the item without its content, and what opens it.

        Raises:
            OutageError: storage went away.
            JobError: node after node was lost.
        """
        with contextlib.closing(item):
            content = None if item.content is None else ray.put(_as_array(item))
        item = dataclasses.replace(item, data=None, file=None)
        if item.error is not None:
            return work(item, _open_nothing)
        num_deaths = num_lost = 0
        while True:
            try:
                return self._try(item, content, work, is_suspect=num_deaths > 0)
            except _DecoderGoneError as gone:
                num_lost += gone.error is None
                num_deaths += gone.error is not None
                if num_lost > _MAX_LOST_NODES:
                    raise JobError(
                        f"{num_lost} nodes went away while they decoded {item.source.uri}; "
                        "run the same command again when the cluster is stable"
                    ) from gone
                if num_deaths > RETRIES:
                    return work(dataclasses.replace(item, error=gone.error), _open_nothing)

    def _try(
        self,
        item: Item,
        content: Any,
        work: Callable[[Item, OpenVideo], _Result],
        *,
        is_suspect: bool,
    ) -> _Result:
        sent = self._decode.remote(self._task, item.source, content, is_suspect)
        try:
            parts = _received(sent)
            fetched = next(parts)
            assert isinstance(fetched, Fetched)
            if content is None:
                self._guard.take(fetched.error)
            item = dataclasses.replace(item, size_bytes=fetched.size_bytes, error=fetched.error)
            return work(item, lambda item: _open(parts))
        except BaseException:
            ray.cancel(sent)
            raise


class _DecoderGoneError(Exception):
    """A decode task ended without a word."""

    def __init__(self, error: RecordError | None) -> None:
        super().__init__(str(error or "its node went away"))
        self.error = error
        """What the record gets if this goes on; None where the video has no part in it."""


class _RemoteVideo:
    """A video as its decode task sends it."""

    decoder = CPU

    def __init__(self, info: VideoInfo, parts: Iterator[Part]) -> None:
        self.info = info
        self.is_partial = False
        self._parts = parts

    def show(self, viewing: Viewing) -> Iterator[Shown]:
        """Passes on what is sent of the viewing whose turn it is."""
        for part in self._parts:
            if isinstance(part, Pictures | Stretch):
                yield part
                continue
            assert isinstance(part, Ended)
            self.is_partial = part.is_partial
            if part.error is not None:
                raise part.error
            return


@contextlib.contextmanager
def _open(parts: Iterator[Part]) -> Iterator[_RemoteVideo]:
    opened = next(parts)
    if isinstance(opened, Ended):
        assert opened.error is not None
        raise opened.error
    assert isinstance(opened, VideoInfo)
    yield _RemoteVideo(opened, parts)


@contextlib.contextmanager
def _open_nothing(item: Item) -> Iterator[_RemoteVideo]:
    raise AssertionError(f"{item} has an error and is not opened")
    yield


def _received(sent: Any) -> Iterator[Part]:
    """Yields the parts of a streaming task; pictures are views of the object store."""
    while True:
        try:
            parcel = next(sent, None)
            if parcel is None:
                return
            parts: tuple[Part, ...] = ray.get(parcel)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EffnetBatchError):
                raise error.cause from error
            raise
        except _LOST_NODES:
            raise _DecoderGoneError(None) from None
        except ray.exceptions.OutOfMemoryError:
            raise _DecoderGoneError(
                OutOfMemoryError("the process that decoded it was ended for want of memory")
            ) from None
        except ray.exceptions.WorkerCrashedError:
            raise _DecoderGoneError(
                CrashedError("the process that decoded it, or looked for faces in it, died")
            ) from None
        yield from parts


def _as_array(item: Item) -> npt.NDArray[np.uint8]:
    """Returns the encoded video as uint8 [N]; a file is mapped, not read."""
    if item.file is None:
        return np.frombuffer(item.data or b"", np.uint8)
    file: Any = item.file
    return np.asarray(np.memmap(file, np.uint8, mode="r"))
