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
from collections.abc import Iterator, Sequence
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
from effnet_batch.media.timeline import (
    Timeline,
    VideoInfo,
    decode_everything,
    each_packet,
    read_timeline,
)

__all__ = ["Frame", "VideoInfo", "VideoLimits", "VideoReader", "open_video"]

# Up to this many packets are passed over one by one; beyond it the container is asked to seek.
_SEEK_PACKETS: Final = 64
# A keyframe this close is reached by decoding on, which costs less than starting anew.
_NEAR_PACKETS: Final = 4


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
    source: bytes | BinaryIO, limits: VideoLimits | None = None
) -> Iterator["VideoReader"]:
    """Opens a video and reads when its frames are shown.

    Args:
        source: the whole file, or a seekable binary stream, read as it is needed (three times at
            most) and left open.
        limits: what a video may cost.

    Raises:
        DecodeError: empty, damaged, without a video stream or a frame that can be decoded.
        UnsupportedError: a container or codec that is not decoded.
        TooLargeError: over ``limits``.
        OutOfMemoryError: an allocation failed.
        RecordError: whatever reading the stream raised.
    """
    limits = limits or VideoLimits()
    byte_source = ByteSource(source)
    with _record_errors():
        timeline = read_timeline(byte_source, limits)
    yield VideoReader(byte_source, limits, timeline)


class VideoReader:
    """A video whose timeline is known; made by `open_video`."""

    def __init__(self, source: ByteSource, limits: VideoLimits, timeline: Timeline) -> None:
        self._source = source
        self._limits = limits
        self._timeline = timeline
        self._is_partial = timeline.is_partial

    @property
    def info(self) -> VideoInfo:
        """Size, length, codec."""
        return self._timeline.info

    @property
    def pts_seconds(self) -> npt.NDArray[np.float64]:
        """float64 [F], rising: when each frame is shown, in seconds as the container has them."""
        return self._timeline.pts_seconds

    @property
    def is_partial(self) -> bool:
        """Whether the file is cut or damaged, as far as it was looked at up to now."""
        return self._is_partial

    def read(
        self, indices: Sequence[int] | npt.NDArray[np.int64], preprocessing: Preprocessing | None
    ) -> Iterator[Frame]:
        """Decodes the given frames, one at a time.

        A frame that a damaged file does not show is left out, and ``is_partial`` becomes True.

        Args:
            indices: positions among the video's frames, rising, each once.
            preprocessing: geometry and kernel of the model's input; None gives whole frames.

        Raises:
            ValueError: indices that do not rise or are not in the video.
            DecodeError: not one of the frames could be decoded.
            RecordError: as for `open_video`.
        """
        wanted = [int(index) for index in indices]
        num_frames = len(self._timeline.pts)
        if any(a >= b for a, b in itertools.pairwise([-1, *wanted, num_frames])):
            raise ValueError(f"indices must rise and be in 0..{num_frames - 1}, got {wanted}")
        if not wanted:
            return
        converter = PixelConverter(preprocessing)
        remaining = deque(wanted)
        num_read = 0
        with _record_errors():
            for index, frame in self._decode(remaining):
                yield Frame(
                    index=index,
                    pts_seconds=float(self._timeline.pts_seconds[index]),
                    pixels=_convert(converter, frame),
                )
                num_read += 1
        self._is_partial |= num_read < len(wanted)
        if num_read == 0:
            raise DecodeError(f"none of {len(wanted)} frames of this video can be decoded")

    def _decode(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields the remaining frames, taking each from the list when it is there."""
        if self._timeline.is_indexed:
            try:
                with open_container(self._source, self._limits, is_strict=True) as opened:
                    yield from _SparseDecoder(opened, self._source, self._timeline, remaining).run()
            except _UnexpectedError:
                pass
        if remaining:
            yield from self._decode_fully(remaining)

    def _decode_fully(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        pts = self._timeline.pts
        with open_container(self._source, self._limits, is_strict=False) as opened:
            number = 0
            for frame in decode_everything(opened, self._source):
                if isinstance(frame, av.error.FFmpegError):
                    self._is_partial = True
                    continue
                shown = frame.pts if self._timeline.is_indexed else number
                number += 1
                while remaining and shown is not None and shown > pts[remaining[0]]:
                    remaining.popleft()
                if remaining and shown == pts[remaining[0]]:
                    yield remaining.popleft(), frame
                if not remaining:
                    return


class _UnexpectedError(Exception):
    """The packets promised something else than the decoder shows."""


class _SparseDecoder:
    """Decodes chosen frames of an undamaged video with as little work as gives them exactly."""

    def __init__(
        self,
        opened: OpenedVideo,
        source: ByteSource,
        timeline: Timeline,
        remaining: deque[int],
    ) -> None:
        self._opened = opened
        self._source = source
        self._codec = opened.stream.codec_context
        self._timeline = timeline
        self._remaining = remaining
        self._unsent_pts: set[int] = set(timeline.pts[list(remaining)].tolist())
        self._packets = each_packet(opened, source)
        self._next_packet = 0

    def run(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields the remaining frames in order, with their indices.

        Raises:
            _UnexpectedError: the stream is not what the timeline says; the frames still remaining
                have not been yielded.
        """
        keyframe_packets = self._timeline.keyframe_packets
        num_to_remain = len(self._remaining)
        has_begun = False
        for keyframe, group in itertools.groupby(
            list(self._remaining), key=lambda index: int(self._timeline.keyframe_of[index])
        ):
            group_pts = {int(self._timeline.pts[index]) for index in group}
            # Some may have been sent already, between the packets of an earlier group.
            unsent = group_pts & self._unsent_pts
            first_packet: av.Packet[av.VideoStream] | None = None
            distance = int(keyframe_packets[keyframe]) - self._next_packet
            if unsent and (not has_begun or distance > _NEAR_PACKETS):
                if has_begun:
                    yield from self._drain(num_to_remain)
                first_packet = self._go_to(keyframe, distance)
                has_begun = True
            yield from self._decode_until_sent(unsent, first_packet)
            num_to_remain -= len(group_pts)
        yield from self._drain(num_to_remain)

    def _decode_until_sent(
        self, unsent: set[int], first_packet: "av.Packet[av.VideoStream] | None"
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Feeds the decoder until it has the packets of all these frames."""
        # After a start in mid-stream, frames shown before the keyframe refer to what was not
        # decoded. Nobody wants them from here.
        leading_before = None if first_packet is None else first_packet.pts
        while unsent:
            packet = self._read_packet() if first_packet is None else first_packet
            first_packet = None
            pts = packet.pts
            assert pts is not None
            self._codec.skip_frame = "DEFAULT" if pts in self._unsent_pts else "NONREF"
            self._unsent_pts.discard(pts)
            unsent.discard(pts)
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if leading_before is None or pts >= leading_before:
                    raise _UnexpectedError from error
                continue
            yield from self._take(frames)

    def _drain(self, num_to_remain: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Gets the frames that the decoder still holds; all that were sent must be there now."""
        try:
            frames = self._codec.decode(None)
        except av.error.FFmpegError as error:
            raise _UnexpectedError from error
        yield from self._take(frames)
        if len(self._remaining) > num_to_remain:
            raise _UnexpectedError
        self._codec.flush_buffers()

    def _take(self, frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            if not self._remaining:
                return
            awaited = self._timeline.pts[self._remaining[0]]
            if frame.pts is None or frame.pts > awaited:
                raise _UnexpectedError
            if frame.pts == awaited:
                if frame.is_corrupt:
                    raise _UnexpectedError
                yield self._remaining.popleft(), frame

    def _go_to(self, keyframe: int, distance: int) -> "av.Packet[av.VideoStream]":
        """Passes over packets, or seeks, and returns the keyframe's packet."""
        target = int(self._timeline.keyframe_pts[keyframe])
        if distance > _SEEK_PACKETS:
            try:
                self._opened.container.seek(
                    int(self._timeline.keyframe_seeks[keyframe]), stream=self._opened.stream
                )
            except av.error.FFmpegError as error:
                raise _UnexpectedError from error
            self._packets = each_packet(self._opened, self._source)
        while True:
            packet = self._read_packet()
            if packet.is_keyframe and packet.pts is not None and packet.pts >= target:
                break
        if packet.pts > target:
            raise _UnexpectedError
        self._next_packet = int(self._timeline.keyframe_packets[keyframe]) + 1
        return packet

    def _read_packet(self) -> "av.Packet[av.VideoStream]":
        try:
            packet = next(self._packets, None)
        except av.error.FFmpegError as error:
            raise _UnexpectedError from error
        if packet is None or packet.pts is None:
            raise _UnexpectedError
        self._next_packet += 1
        return packet


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
