"""Decoding chosen frames of an undamaged video with as little work as gives them exactly.

It starts at keyframes, stops when the last wanted frame of a stretch is there, and lets the decoder
leave out frames that no other frame refers to (``skip_frame``), except where they are wanted. All
of this rests on what the packets say; whatever contradicts them raises `UnexpectedError`, and the
caller decodes everything instead.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Final

import av
import av.error

from effnet_batch.media.container import ByteSource, OpenedVideo
from effnet_batch.media.timeline import Timeline, each_packet

# Up to this many packets are passed over one by one; beyond it the container is asked to seek.
_SEEK_PACKETS: Final = 64
# The position of a container that must seek before it can be read.
_NOWHERE: Final = 1 << 62


class UnexpectedError(Exception):
    """The packets promised something else than the decoder shows."""


class SparseDecoder:
    """Decodes chosen frames of an undamaged video with as little work as gives them exactly."""

    def __init__(self, opened: OpenedVideo, source: ByteSource, timeline: Timeline) -> None:
        """Takes over an opened video, wherever it stands.

        Args:
            opened: opened strictly, so that damage ends the decoding.
            source: where ``opened`` reads.
            timeline: of this video, with ``is_indexed``.
        """
        self._opened = opened
        self._source = source
        self._codec = opened.stream.codec_context
        self._timeline = timeline
        self._remaining: deque[int] = deque()
        self._unsent_pts: set[int] = set()
        self._packets: Iterator[av.Packet[av.VideoStream]] = iter(())
        self._next_packet = _NOWHERE

    def decode(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields frames in order, each with its index.

        Args:
            remaining: indices of the wanted frames, rising; each is taken away when its frame is
                yielded.

        Raises:
            UnexpectedError: the stream is not what the timeline says; the frames still remaining
                have not been yielded.
        """
        self._remaining = remaining
        self._unsent_pts = set(self._timeline.pts[list(remaining)].tolist())
        self._codec.flush_buffers()
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
            if unsent and (not has_begun or distance > 0):
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
                    raise UnexpectedError from error
                continue
            yield from self._take(frames)

    def _drain(self, num_to_remain: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Gets the frames that the decoder still holds; all that were sent must be there now."""
        try:
            frames = self._codec.decode(None)
        except av.error.FFmpegError as error:
            raise UnexpectedError from error
        yield from self._take(frames)
        if len(self._remaining) > num_to_remain:
            raise UnexpectedError
        self._codec.flush_buffers()

    def _take(self, frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            if not self._remaining:
                return
            awaited = self._timeline.pts[self._remaining[0]]
            if frame.pts is None or frame.pts > awaited:
                raise UnexpectedError
            if frame.pts == awaited:
                if frame.is_corrupt:
                    raise UnexpectedError
                yield self._remaining.popleft(), frame

    def _go_to(self, keyframe: int, distance: int) -> "av.Packet[av.VideoStream]":
        """Passes over packets, or seeks, and returns the keyframe's packet."""
        target = int(self._timeline.keyframe_pts[keyframe])
        if not 0 <= distance <= _SEEK_PACKETS:
            try:
                self._opened.container.seek(
                    int(self._timeline.keyframe_seeks[keyframe]), stream=self._opened.stream
                )
            except av.error.FFmpegError as error:
                raise UnexpectedError from error
            self._packets = each_packet(self._opened, self._source)
            self._next_packet = _NOWHERE
        while True:
            packet = self._read_packet()
            if packet.is_keyframe and packet.pts is not None and packet.pts >= target:
                break
        if packet.pts > target:
            raise UnexpectedError
        self._next_packet = int(self._timeline.keyframe_packets[keyframe]) + 1
        return packet

    def _read_packet(self) -> "av.Packet[av.VideoStream]":
        try:
            packet = next(self._packets, None)
        except av.error.FFmpegError as error:
            raise UnexpectedError from error
        if packet is None or packet.pts is None:
            raise UnexpectedError
        self._next_packet += 1
        return packet
