"""One video: bytes to the frames that were asked for, exactly as a full decode shows them.

``open_video`` reads the timeline, the caller chooses frames by their presentation times (see
`sampling`), and ``VideoReader.read`` decodes as little as gives these frames: it starts at
keyframes, leaves out frames that no other frame refers to, and converts only what is kept. One
frame is held at a time, so memory does not grow with the length of the video.

A decoder that notices damage, or does not show a frame that the packets announced, ends that way of
decoding: the rest is then taken from a full decode. So the frames are those of a full decode in
either case, as far as damage can be noticed at all.
"""

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

import av
import av.error
import numpy as np
import numpy.typing as npt

from effnet_batch.errors import (
    DecodeError,
    EffnetBatchError,
    OutOfMemoryError,
    UnsupportedError,
)
from effnet_batch.media.container import (
    ByteSource,
    OpenedVideo,
    VideoLimits,
    describe,
    open_container,
)
from effnet_batch.media.pixels import PixelConverter, Pixels
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sparse import SparseDecoder, UnexpectedError
from effnet_batch.media.timeline import (
    Timeline,
    VideoInfo,
    decode_everything,
    read_timeline,
)

CPU: Final = "cpu"
"""What decodes a video where no card does."""

__all__ = ["CPU", "Frame", "VideoInfo", "VideoLimits", "VideoReader", "open_video"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a video."""

    index: int
    """Position among the frames that the video shows, from 0."""
    pts_seconds: float
    """Presentation time as the container has it; a video need not start at 0."""
    pixels: Pixels
    """uint8 [H, W, 3], RGB, upright, C-contiguous."""


@contextlib.contextmanager
def open_video(
    source: bytes | BinaryIO,
    limits: VideoLimits | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator["VideoReader"]:
    """Opens a video and reads when its frames are shown.

    Args:
        source: the whole file, or a seekable binary stream, read as it is needed (three times at
            most) and left open.
        limits: what a video may cost.
        on_progress: called with every packet that is read, in the thread that asked for it. One
            step may take as long as the whole video, where frames have to be counted.

    Raises:
        DecodeError: empty, damaged, without a video stream or a frame that can be decoded.
        UnsupportedError: a container or codec that is not decoded.
        TooLargeError: over ``limits``.
        OutOfMemoryError: an allocation failed.
        RecordError: whatever reading the stream raised.
    """
    limits = limits or VideoLimits()
    byte_source = ByteSource(source, on_progress)
    with contextlib.ExitStack() as stack:
        with _record_errors():
            opened = stack.enter_context(open_container(byte_source, limits, is_strict=True))
            timeline = read_timeline(opened, byte_source, limits)
        yield VideoReader(byte_source, limits, opened, timeline)


class VideoReader:
    """A video whose timeline is known; made by `open_video`.

    Attributes:
        decoder: what decodes it, which is a CPU.
        source: its bytes.
        stream_index: of the stream that is its video, in the container.
        timeline: when its frames are shown, and where decoding must start to get them.
    """

    decoder = CPU

    def __init__(
        self, source: ByteSource, limits: VideoLimits, opened: OpenedVideo, timeline: Timeline
    ) -> None:
        self.source = source
        self.stream_index = opened.stream.index
        self._limits = limits
        self.timeline = timeline
        self._sparse_decoder = SparseDecoder(opened, source, timeline)
        self._is_partial = timeline.is_partial

    @property
    def info(self) -> VideoInfo:
        """Size, length, codec."""
        return self.timeline.info

    @property
    def pts_seconds(self) -> npt.NDArray[np.float64]:
        """float64 [F], rising: when each frame is shown, in seconds as the container has them."""
        return self.timeline.pts_seconds

    @property
    def is_partial(self) -> bool:
        """Whether the file is cut or damaged, as far as it was looked at up to now."""
        return self._is_partial

    def read(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *recipes: Preprocessing | None
    ) -> Iterator[Frame]:
        """Decodes the given frames, one at a time, and yields each in every form asked for.

        A frame that a damaged file does not show is left out, and ``is_partial`` becomes True.

        Args:
            indices: positions among the video's frames, rising, each once.
            recipes: the forms, in the order they come in: geometry and kernel of a model's input;
                None for the whole frame.

        Raises:
            ValueError: indices that do not rise or are not in the video.
            DecodeError: not one of the frames could be decoded.
            RecordError: as for `open_video`.
        """
        wanted = [int(index) for index in indices]
        num_frames = len(self.timeline.pts)
        if any(a >= b for a, b in itertools.pairwise([-1, *wanted, num_frames])):
            raise ValueError(f"indices must rise and be in 0..{num_frames - 1}, got {wanted}")
        if not wanted:
            return
        converters = [PixelConverter(recipe) for recipe in recipes]
        remaining = deque(wanted)
        num_read = 0
        with _record_errors():
            for index, frame in self._decode(remaining):
                for converter in converters:
                    yield Frame(
                        index=index,
                        pts_seconds=float(self.timeline.pts_seconds[index]),
                        pixels=_convert(converter, frame),
                    )
                num_read += 1
        self._is_partial |= num_read < len(wanted)
        if num_read == 0:
            raise DecodeError(f"none of {len(wanted)} frames of this video can be decoded")

    def _decode(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields the remaining frames, taking each from the list when it is there."""
        if self.timeline.is_indexed:
            with contextlib.suppress(UnexpectedError):
                yield from self._sparse_decoder.decode(remaining)
        if remaining:
            yield from self._decode_fully(remaining)

    def _decode_fully(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        pts = self.timeline.pts
        with open_container(self.source, self._limits, is_strict=False) as opened:
            number = 0
            for frame in decode_everything(opened, self.source):
                if isinstance(frame, av.error.FFmpegError):
                    self._is_partial = True
                    continue
                self._is_partial |= frame.is_corrupt
                shown = frame.pts if self.timeline.is_indexed else number
                number += 1
                while remaining and shown is not None and shown > pts[remaining[0]]:
                    remaining.popleft()
                if remaining and shown == pts[remaining[0]]:
                    yield remaining.popleft(), frame
                if not remaining:
                    return


def _convert(converter: PixelConverter, frame: av.VideoFrame) -> Pixels:
    try:
        return converter.convert(frame)
    except (av.error.FFmpegError, ValueError) as error:
        raise UnsupportedError(
            describe(f"cannot show pixels of format {frame.format.name}", error)
        ) from error


@contextlib.contextmanager
def _record_errors() -> Iterator[None]:
    """Turns what damaged files get out of PyAV into the record's error."""
    try:
        yield
    except EffnetBatchError:
        raise
    except MemoryError:
        raise OutOfMemoryError("out of memory while decoding this video") from None
    except Exception as error:
        raise DecodeError(describe("cannot decode this video", error)) from error
