"""Opening a video file that may be hostile: which demuxers and decoders may see its bytes.

A container is opened from a seekable stream of bytes, only by a demuxer of `CONTAINERS`, and may
open nothing else: playlists and concat lists name other files and hosts, and FFmpeg follows them
even where the list itself came from memory.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import av
import av.container
import av.error
import av.stream

from effnet_batch.errors import (
    DecodeError,
    EffnetBatchError,
    FetchError,
    OutOfMemoryError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.signature import NUM_BYTES_LOOKED_AT, detect_type

CONTAINERS: Final = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
"""FFmpeg's demuxers that are used; ``mov`` is also ``mp4``, ``matroska`` also ``webm``."""
CODECS: Final = (
    "h264",
    "hevc",
    "vp8",
    "vp9",
    "av1",
    "mpeg4",
    "msmpeg4v2",
    "msmpeg4v3",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "prores",
    "ffv1",
)
"""Video codecs that are decoded, by FFmpeg's names."""

MAX_PIXELS: Final = 7680 * 4320
MAX_MESSAGE_CHARACTERS: Final = 300

# What is read at once. Streams from object storage have read-ahead blocks of their own.
_BUFFER_BYTES: Final = 256 << 10
# A decoder forgets the size of frames that are over its limit. While a file is looked at, the limit
# is this many times higher, so that common sizes over it can be named.
_PROBED_LIMITS: Final = 4
# Cover art and previews are streams too, of one picture.
_NO_VIDEO: Final = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What one video may cost; over it the record is ``too_large``."""

    max_pixels: int = MAX_PIXELS
    """Width times height of a frame, checked before any is allocated; the default is 8K UHD."""
    max_packets: int = 20_000_000
    """Packets of the video stream. Each takes some 50 bytes of memory while it is indexed; the
    default is 90 hours at 60 frames per second."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_packets < 1:
            raise ValueError(f"video limits must be positive, got {self}")


class ByteSource:
    """The bytes of one video, and the error that reading them met, which FFmpeg may swallow."""

    def __init__(
        self, source: bytes | BinaryIO, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        self.on_progress = on_progress
        self._stream = io.BytesIO(source) if isinstance(source, bytes) else source
        self._error: Exception | None = None

    def read_at(self, position: int, num_bytes: int) -> bytes:
        """Reads at most so many bytes; fewer only before the end or from a slow stream."""
        with self._remember_error():
            self._stream.seek(position)
            return self._stream.read(num_bytes)

    def size_bytes(self) -> int:
        """Returns the length."""
        with self._remember_error():
            return self._stream.seek(0, io.SEEK_END)

    def raise_error(self) -> None:
        """Raises what reading met, even where the demuxer took it for the end of the file.

        Raises:
            EffnetBatchError: the error of storage, or a FetchError for any other.
        """
        if isinstance(self._error, EffnetBatchError):
            raise self._error
        if self._error is not None:
            raise FetchError(
                describe("cannot read this video", self._error),
                error_type=type(self._error).__name__,
            ) from self._error

    @contextlib.contextmanager
    def _remember_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._error = error
            raise


class Cursor:
    """A nameless file for one demuxer: several may read the same source in turns."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0

    def read(self, num_bytes: int) -> bytes:
        """Reads from where it stands; as `ByteSource.read_at`."""
        data = self._source.read_at(self._position, num_bytes)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place; -1 and nowhere where there is none."""
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._source.size_bytes()
        if offset < 0:
            return -1  # A damaged file asked for it: no error of ours nor of storage.
        self._position = offset
        return offset

    def tell(self) -> int:
        """Returns where it stands."""
        return self._position


@dataclasses.dataclass(frozen=True)
class OpenedVideo:
    """An open container, positioned at its start, and the stream that is its video."""

    container: av.container.InputContainer
    stream: av.VideoStream


@contextlib.contextmanager
def open_container(
    source: ByteSource, limits: VideoLimits, *, is_strict: bool
) -> Iterator[OpenedVideo]:
    """Opens a container and its best video stream, ready for decoding with one thread.

    Args:
        source: the file.
        limits: bound on the pixels of a frame.
        is_strict: whether the decoder reports every error it notices, instead of hiding what it
            can (as players do).

    Raises:
        DecodeError: empty, damaged, or without a video stream.
        UnsupportedError: not one of `CONTAINERS`, or a codec that is not one of `CODECS`.
        TooLargeError: frames over ``limits``.
    """
    head = source.read_at(0, NUM_BYTES_LOOKED_AT)
    if not head:
        raise DecodeError("the video is empty (0 bytes)")
    try:
        container = av.open(
            Cursor(source),
            mode="r",
            options={
                "format_whitelist": ",".join(CONTAINERS),
                "protocol_whitelist": "none",
                "max_pixels": str(_PROBED_LIMITS * limits.max_pixels),
            },
            metadata_errors="replace",
            buffer_size=_BUFFER_BYTES,
        )
    except Exception as error:
        source.raise_error()
        raise _opening_failure(head, error) from error
    with container:
        stream = _choose_stream(container)
        _check_codec(stream)
        codec = stream.codec_context
        check_size(codec.width, codec.height, limits)
        codec.options = {"max_pixels": str(limits.max_pixels)}
        if is_strict:
            codec.options = codec.options | {"err_detect": "explode+bitstream+buffer"}
        codec.thread_type = "SLICE"
        codec.thread_count = 1
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        yield OpenedVideo(container, stream)


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raises TooLargeError where a frame has more pixels than allowed."""
    if width * height > limits.max_pixels:
        raise TooLargeError(
            f"the video has frames of {width}x{height} = {width * height:,} pixels; "
            f"at most {limits.max_pixels:,} are allowed"
        )


def describe(what: str, error: Exception) -> str:
    """Returns one short printable line that says what failed and why."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(f"{what}: {reason}".split())
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_MESSAGE_CHARACTERS]


def was_cut(source: ByteSource) -> bool:
    """Tells whether a file is shorter than its own header says.

    AVI (first RIFF list) and Matroska (segment) write their length at the front. MP4 is judged by
    its index, and a transport stream has no end that could be missing.
    """
    declared = _declared_size(source.read_at(0, NUM_BYTES_LOOKED_AT))
    return declared is not None and source.size_bytes() < declared


def _opening_failure(head: bytes, error: Exception) -> RecordError:
    if isinstance(error, MemoryError):
        return OutOfMemoryError("out of memory while opening this video")
    detected = detect_type(head)
    if "video" in detected or detected == "of no known type":
        # A transport stream has no signature, and garbage none either: both are damage to us.
        return DecodeError(describe("cannot open this video", error))
    return UnsupportedError(
        f"not a video that can be read: the bytes are {detected}; "
        f"supported are {', '.join(CONTAINERS)}"
    )


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the stream with most pixels, as the ffmpeg program does, and of equals the first."""
    moving = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        raise DecodeError(
            "the file has no video stream"
            + (", only cover art or thumbnails" if "video" in kinds else "")
            + f"; its streams are {', '.join(kinds) or 'none'}"
        )
    known = [stream for stream in moving if stream.codec_context is not None]
    if not known:
        raise UnsupportedError("the video's codec is unknown")
    return max(known, key=lambda stream: stream.width * stream.height)


def _check_codec(stream: av.VideoStream) -> None:
    name = stream.codec_context.codec.canonical_name
    if name not in CODECS:
        raise UnsupportedError(
            f"the video's codec {name} is not decoded; supported are {', '.join(CODECS)}"
        )


def _declared_size(head: bytes) -> int | None:
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return None if size in (0, 0xFFFFFFFF) else size + 8
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return None
    header_size, end = _ebml_size(head, 4)
    if header_size is None or head[end + header_size :][:4] != b"\x18\x53\x80\x67":
        return None
    segment_size, start = _ebml_size(head, end + header_size + 4)
    return None if segment_size is None else start + segment_size


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """Reads a variable-length size: None where it is unknown or beyond ``data``; and its end."""
    if position >= len(data) or data[position] == 0:
        return None, position
    length = 9 - data[position].bit_length()
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    is_unknown = value == (1 << 7 * length) - 1 or position + length > len(data)
    return (None if is_unknown else value), position + length
