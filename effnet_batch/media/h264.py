"""Pictures through H.264 and back."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Final

import av
import numpy as np

from effnet_batch.media.pixels import Pixels

_FPS: Final = 25
_X264_OPTIONS: Final = {
    # Threads wait for each other by spinning.
    "threads": "1",
    # Its code for AVX-512 reads what nobody wrote, and gives other files from call to call.
    "x264-params": "asm=SSE4.2",
}


def reencode(pictures: Iterable[Pixels], *, crf: int, preset: str = "medium") -> Iterator[Pixels]:
    """Yields pictures as H.264 leaves them, as many as go in; an odd side is padded by its edge.

    Args:
        pictures: uint8 [H, W, 3] RGB each; those of another size than the first are scaled to it.
        crf: constant rate factor of x264; higher is worse.
        preset: of x264.
    """
    encoder: Any = None
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    height = width = 0
    for number, pixels in enumerate(pictures):
        edges = ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0))
        padded = np.pad(pixels, edges, mode="edge")
        if encoder is None:
            height, width = pixels.shape[:2]
            encoder = _encoder(padded.shape[1], padded.shape[0], crf, preset)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, _FPS)
        for packet in encoder.encode(frame):
            yield from _cut(decoder.decode(packet), height, width)
    if encoder is None:
        return
    for packet in [*encoder.encode(None), None]:
        yield from _cut(decoder.decode(packet), height, width)


def tiny_video() -> bytes:
    """Returns a MP4 file of some frames of 256 x 256 pixels, to try a decoder."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=_FPS, options=_X264_OPTIONS)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        grey = av.VideoFrame.from_ndarray(np.full((256, 256, 3), 128, np.uint8), format="rgb24")
        for number in range(4):
            grey.pts, grey.time_base = number, Fraction(1, _FPS)
            output.mux(stream.encode(grey))
        output.mux(stream.encode(None))
    return file.getvalue()


def _encoder(width: int, height: int, crf: int, preset: str) -> Any:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, _FPS), Fraction(_FPS)
    encoder.options = {"crf": str(crf), "preset": preset, **_X264_OPTIONS}
    return encoder


def _cut(frames: Iterable[av.VideoFrame], height: int, width: int) -> Iterator[Pixels]:
    for frame in frames:
        pixels = frame.to_ndarray(format="rgb24")[:height, :width]
        yield np.ascontiguousarray(pixels, np.uint8)
