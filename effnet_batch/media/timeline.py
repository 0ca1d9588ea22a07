"""When each frame of a video is shown, and where decoding must start to get it.

Read from the packets alone where these tell it, which costs about 1 % of decoding. Where they do
not (no or repeated timestamps, hidden frames, fields in packets of their own) everything is decoded
once and the frames are counted.
"""

import contextlib
import dataclasses
import itertools
from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import av
import av.error
import numpy as np
import numpy.typing as npt

from effnet_batch.errors import DecodeError, OutOfMemoryError, TooLargeError
from effnet_batch.media.container import (
    ByteSource,
    OpenedVideo,
    VideoLimits,
    describe,
    open_container,
    was_cut,
)
from effnet_batch.media.pixels import is_plain, upright_size

_UNKNOWN_OR_PROGRESSIVE: Final = (0, 1)  # AVFieldOrder


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video is, as its packets and its first frame say, whatever its header claims."""

    container: str
    """FFmpeg's name of the demuxer, such as ``mov,mp4,m4a,3gp,3g2,mj2``."""
    codec: str
    """FFmpeg's name of the codec, such as ``h264``."""
    pixel_format: str
    """FFmpeg's name, such as ``yuv420p``."""
    width: int
    """Of the upright first frame, in pixels."""
    height: int
    """Of the upright first frame, in pixels."""
    num_frames: int
    """Frames that are shown."""
    start_seconds: float
    """Presentation time of the first frame."""
    duration_seconds: float
    """From the start of the first to the end of the last frame."""
    fps: float | None
    """Frames per second on average; None where that cannot be told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """The frames of a video in order of presentation; F frames, K keyframes."""

    info: VideoInfo
    pts: npt.NDArray[np.int64]
    """int64 [F], rising: presentation times in the stream's own unit; where ``is_indexed`` is
    False the frames' numbers instead."""
    pts_seconds: npt.NDArray[np.float64]
    """float64 [F], rising; made up from the frame rate only where the file has no usable times."""
    is_indexed: bool
    """Whether the packets told all this, so that packets can be skipped while decoding."""
    is_partial: bool
    """Whether the file was cut or could not be read to its end."""
    is_plain: bool
    """Whether the first frame is neither interlaced nor shown mirrored."""
    keyframe_of: npt.NDArray[np.int64]
    """int64 [F]: the keyframe to start from, as a position in the next two; empty if not
    indexed."""
    keyframe_pts: npt.NDArray[np.int64]
    """int64 [K], in the stream's own unit, in decoding order."""
    keyframe_seeks: npt.NDArray[np.int64]
    """int64 [K]: the time to seek to, which is that of decoding: some containers go by it, and it
    is never later than that of presentation."""
    keyframe_packets: npt.NDArray[np.int64]
    """int64 [K]: numbers of their packets in decoding order."""


@dataclasses.dataclass
class _Packets:
    """What one pass over the packets of the stream found; P packets in decoding order."""

    pts: "array[int]" = dataclasses.field(default_factory=lambda: array("q"))
    dts: "array[int]" = dataclasses.field(default_factory=lambda: array("q"))
    is_shown: bytearray = dataclasses.field(default_factory=bytearray)
    is_keyframe: bytearray = dataclasses.field(default_factory=bytearray)
    has_all_times: bool = True
    is_partial: bool = False
    is_last_cut: bool = False
    last_duration: int = 0
    first_frame: av.VideoFrame | None = None


@dataclasses.dataclass(frozen=True)
class _Shown:
    """Displayed frames in order, and how to reach them (see `Timeline`)."""

    pts: npt.NDArray[np.int64]
    keyframe_of: npt.NDArray[np.int64]
    keyframe_pts: npt.NDArray[np.int64]
    keyframe_seeks: npt.NDArray[np.int64]
    keyframe_packets: npt.NDArray[np.int64]


def read_timeline(opened: OpenedVideo, source: ByteSource, limits: VideoLimits) -> Timeline:
    """Reads when the frames of a video are shown.

    Args:
        opened: at its start; left at its end.
        source: where ``opened`` reads, for opening it again where everything must be decoded.
        limits: bound on the number of packets.

    Raises:
        TooLargeError: too many packets.
        DecodeError: no frame of it can be decoded.
    """
    packets = _read_packets(opened, source, limits)
    shown = _order(packets) if _packets_tell_frames(opened, packets) else None
    if shown is None or packets.first_frame is None:
        return _count_frames(source, limits, is_partial=packets.is_partial)
    info, pts_seconds = _describe(opened, packets.first_frame, shown.pts, packets)
    return Timeline(
        info=info,
        pts=shown.pts,
        pts_seconds=pts_seconds,
        is_indexed=True,
        is_partial=packets.is_partial or was_cut(source),
        is_plain=is_plain(packets.first_frame),
        keyframe_of=shown.keyframe_of,
        keyframe_pts=shown.keyframe_pts,
        keyframe_seeks=shown.keyframe_seeks,
        keyframe_packets=shown.keyframe_packets,
    )


def each_packet(opened: OpenedVideo, source: ByteSource) -> "Iterator[av.Packet[av.VideoStream]]":
    """Yields the stream's packets that hold anything, in decoding order.

    Empty ones are left out: AVI repeats the picture before by them, and to a decoder they mean the
    end.

    Raises:
        av.error.FFmpegError: the file cannot be demuxed any further.
        EffnetBatchError: reading the source failed, even where the demuxer swallowed that.
    """
    try:
        for packet in opened.container.demux(opened.stream):
            source.on_progress()
            if packet.size:
                yield packet
    except IndexError:
        return  # PyAV, at the end: a damaged transport stream grew streams that it does not know.
    finally:
        source.raise_error()


def decode_everything(
    opened: OpenedVideo, source: ByteSource
) -> Iterator[av.VideoFrame | av.error.FFmpegError]:
    """Decodes from here to the end, yielding frames and, in their place, errors."""
    codec = opened.stream.codec_context
    packets = each_packet(opened, source)
    is_at_end = False
    while not is_at_end:
        try:
            packet = next(packets, None)
            is_at_end = packet is None
            yield from codec.decode(packet)
        except av.error.FFmpegError as error:
            yield error


def _read_packets(opened: OpenedVideo, source: ByteSource, limits: VideoLimits) -> _Packets:
    found = _Packets()
    try:
        for packet in each_packet(opened, source):
            if packet.pts is None:
                found.has_all_times = False
            found.pts.append(packet.pts or 0)
            found.dts.append(packet.pts or 0 if packet.dts is None else packet.dts)
            found.is_shown.append(not packet.is_discard)
            found.is_keyframe.append(packet.is_keyframe)
            found.is_last_cut = packet.is_corrupt
            found.is_partial |= packet.is_corrupt
            found.last_duration = packet.duration or found.last_duration
            if len(found.pts) > limits.max_packets:
                raise TooLargeError(
                    f"the video has more than {limits.max_packets:,} packets, which is not allowed"
                )
            if found.first_frame is None and packet.is_keyframe:
                found.first_frame = _decode_alone(opened, packet)
    except av.error.FFmpegError:
        found.is_partial = True
    if found.is_last_cut:
        found.is_shown[-1] = False
    # MP4 lists its samples at one place; what is listed but not there was cut off.
    if "mp4" in opened.container.format.name:
        found.is_partial |= sum(found.is_shown) < _count_index_entries(opened)
    return found


def _count_index_entries(opened: OpenedVideo) -> int:
    return sum(not entry.is_discard for entry in opened.stream.index_entries)


def _decode_alone(opened: OpenedVideo, packet: "av.Packet[av.VideoStream]") -> av.VideoFrame | None:
    codec = opened.stream.codec_context
    frames: list[av.VideoFrame] = []
    with contextlib.suppress(av.error.FFmpegError):
        frames += codec.decode(packet)
        frames += codec.decode(None)
    codec.flush_buffers()
    return frames[0] if frames else None


def _packets_tell_frames(opened: OpenedVideo, packets: _Packets) -> bool:
    codec = opened.stream.codec_context
    container = opened.container.format.name
    has_hidden_frames = codec.codec.canonical_name == "vp8"
    # Demuxers of transport streams hand out fields singly; a frame then has two packets.
    has_fields = container == "mpegts" and codec.field_order not in _UNKNOWN_OR_PROGRESSIVE
    # AVI has no timestamps: those of B-frames are guessed.
    has_guesses = container == "avi" and not codec.codec.intra_only
    return packets.has_all_times and not (has_hidden_frames or has_fields or has_guesses)


def _order(packets: _Packets) -> _Shown | None:
    """Puts the shown frames in order; None where their times do not allow it."""
    pts = np.asarray(packets.pts, dtype=np.int64)
    is_shown = np.frombuffer(bytes(packets.is_shown), dtype=bool)
    keyframe_packets = np.flatnonzero(np.frombuffer(bytes(packets.is_keyframe), dtype=bool))
    if len(keyframe_packets) == 0:
        return None
    keyframe_pts = pts[keyframe_packets]
    # Packets before the first keyframe cannot be decoded, nor can frames that refer back over it.
    shown = np.flatnonzero(is_shown & (pts >= keyframe_pts[0]))
    shown = shown[shown >= keyframe_packets[0]]
    shown = shown[np.argsort(pts[shown], kind="stable")]
    shown_pts = pts[shown]
    if len(shown) == 0 or (np.diff(shown_pts) <= 0).any() or (np.diff(keyframe_pts) <= 0).any():
        return None
    # A frame shown before a keyframe belongs to an earlier one, wherever its packet stands.
    keyframe_of = np.searchsorted(keyframe_pts, shown_pts, side="right") - 1
    if (keyframe_packets[keyframe_of] > shown).any():
        return None
    return _Shown(
        pts=shown_pts,
        keyframe_of=keyframe_of.astype(np.int64),
        keyframe_pts=keyframe_pts,
        keyframe_seeks=np.asarray(packets.dts, dtype=np.int64)[keyframe_packets],
        keyframe_packets=keyframe_packets,
    )


def _count_frames(source: ByteSource, limits: VideoLimits, *, is_partial: bool) -> Timeline:
    """Decodes everything, keeps nothing but the times, and numbers the frames."""
    times: list[int | None] = []
    first_frame: av.VideoFrame | None = None
    last_error: Exception | None = None
    with open_container(source, limits, is_strict=False) as opened:
        for frame in decode_everything(opened, source):
            if isinstance(frame, av.error.FFmpegError):
                last_error = frame
                continue
            first_frame = first_frame or frame
            times.append(frame.pts)
        if first_frame is None:
            if isinstance(last_error, MemoryError):
                raise OutOfMemoryError("out of memory while decoding this video")
            reason = last_error or DecodeError("it has no pictures")
            raise DecodeError(describe("no frame of this video can be decoded", reason))
        known = [time for time in times if time is not None]
        has_times = len(known) == len(times) and all(a < b for a, b in itertools.pairwise(known))
        numbers = np.arange(len(times), dtype=np.int64)
        rate = opened.stream.average_rate or opened.stream.guessed_rate or Fraction(25)
        unit = Fraction(opened.stream.time_base or 1)
        pts = np.asarray(known, dtype=np.int64) if has_times else numbers
        info, pts_seconds = _describe(
            opened, first_frame, pts, _Packets(), unit=unit if has_times else 1 / rate
        )
    empty = np.zeros(0, dtype=np.int64)
    return Timeline(
        info=info,
        pts=numbers,
        pts_seconds=pts_seconds,
        is_indexed=False,
        is_partial=is_partial or last_error is not None or was_cut(source),
        is_plain=is_plain(first_frame),
        keyframe_of=empty,
        keyframe_pts=empty,
        keyframe_seeks=empty,
        keyframe_packets=empty,
    )


def _describe(
    opened: OpenedVideo,
    first_frame: av.VideoFrame,
    pts: npt.NDArray[np.int64],
    packets: _Packets,
    *,
    unit: Fraction | None = None,
) -> tuple[VideoInfo, npt.NDArray[np.float64]]:
    unit = unit or Fraction(opened.stream.time_base or 1)
    # Whole numbers first: the quotient is then the nearest float64 of the exact time.
    seconds: Any = pts.astype(np.float64) * unit.numerator / unit.denominator
    span = float(seconds[-1] - seconds[0])
    rate = opened.stream.average_rate
    fps = (len(pts) - 1) / span if span > 0 else float(rate) if rate else None
    last = float(packets.last_duration * unit) or (1 / fps if fps else 0.0)
    width, height = upright_size(first_frame)
    info = VideoInfo(
        container=opened.container.format.name,
        codec=opened.stream.codec_context.codec.canonical_name,
        pixel_format=first_frame.format.name,
        width=width,
        height=height,
        num_frames=len(pts),
        start_seconds=float(seconds[0]),
        duration_seconds=span + last,
        fps=fps,
    )
    return info, seconds
