"""Opening videos that may kill or hang their decoder, in any process of a job."""

import contextlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from effnet_batch.config import VideoLimitSettings
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.isolated_video import open_isolated_video
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import Indices
from effnet_batch.media.video import Frame, VideoReader, open_video
from effnet_batch.stages.show import Reader
from effnet_batch.stages.watchdog import Watchdog, end_process
from effnet_batch.storage import spool, spool_stream

OpenReader = Callable[[bytes | BinaryIO], contextlib.AbstractContextManager[Reader]]
"""Opens a video from its bytes or a file; raises RecordErrors only."""


OpenOnCard = Callable[[VideoReader], Reader]
"""Returns a video of which a card decodes what it can."""


@contextlib.contextmanager
def video_opener(
    limits: VideoLimitSettings, *, is_suspect: bool, open_on_card: OpenOnCard | None = None
) -> Iterator[OpenReader]:
    """Yields what opens videos.

    Args:
        limits: what one video may cost.
        is_suspect: an earlier try died of these videos, or of one among them. Each is decoded in a
            child that can be killed, and what dies there becomes a record. No card sees it.
        open_on_card: hands a video to a card; without it none does.
    """
    video_limits = VideoLimits(max_pixels=limits.max_pixels)
    if is_suspect:

        @contextlib.contextmanager
        def open_in_child(source: bytes | BinaryIO) -> Iterator[Reader]:
            # A copy: what may be written to by others, or is somebody's own file, is not for it.
            copy = spool([source]) if isinstance(source, bytes) else spool_stream(source)
            with (
                copy as file,
                open_isolated_video(
                    file,
                    video_limits,
                    timeout_seconds=limits.timeout_seconds,
                    memory_bytes=limits.max_decode_memory_bytes,
                ) as reader,
            ):
                yield reader

        yield open_in_child
        return
    with Watchdog(limits.timeout_seconds, end_process) as watchdog:

        @contextlib.contextmanager
        def open_watched(source: bytes | BinaryIO) -> Iterator[Reader]:
            with contextlib.ExitStack() as stack:
                with watchdog.step():
                    opened = stack.enter_context(open_video(source, video_limits, watchdog.beat))
                    reader = open_on_card(opened) if open_on_card else opened
                yield _WatchedVideo(reader, watchdog)

        yield open_watched


class _WatchedVideo:
    """A reader whose every frame must come in time."""

    def __init__(self, reader: Reader, watchdog: Watchdog) -> None:
        self._reader = reader
        self._watchdog = watchdog
        self.info = reader.info
        self.pts_seconds = reader.pts_seconds

    @property
    def is_partial(self) -> bool:
        """As the reader says."""
        return self._reader.is_partial

    @property
    def decoder(self) -> str:
        """As the reader says."""
        return self._reader.decoder

    def read(self, indices: Indices, *recipes: Preprocessing | None) -> Iterator[Frame]:
        """Decodes the given frames under watch."""
        frames = self._reader.read(indices, *recipes)
        while True:
            with self._watchdog.step():
                frame = next(frames, None)
            if frame is None:
                return
            yield frame
