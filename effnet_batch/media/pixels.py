"""From a decoded frame to upright RGB pixels, whole or as a model sees them.

One `PixelConverter` serves one video: it keeps the scaler that FFmpeg sets up for a size. Rotation
and mirroring are taken from the frames' display matrices. Samples are taken as square, as training
pipelines do; fields of interlaced video stay woven.
"""

import struct
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from effnet_batch.media.preprocess import Preprocessing

Pixels = npt.NDArray[np.uint8]

_INTERPOLATIONS: Final = {
    "nearest": Interpolation.POINT,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "lanczos": Interpolation.LANCZOS,
}
# The display matrix: 3 x 3 numbers of 32 bits, the first two columns in 16.16 fixed point.
_MATRIX: Final = struct.Struct("=9i")
# Beyond this many times the pixels of the model's input a frame is cropped before it is resized.
_MAX_OVERHANG: Final = 16


class PixelConverter:
    """Turns decoded frames into uint8 RGB."""

    def __init__(self, preprocessing: Preprocessing | None = None) -> None:
        """Chooses what comes out.

        Args:
            preprocessing: geometry and kernel of the model's input, with the meaning they have for
                images; None keeps the frame's own size.
        """
        self._preprocessing = preprocessing
        self._scaler = VideoReformatter()
        self._matrices: dict[int, tuple[int, int, int, int]] = {}

    def convert(self, frame: av.VideoFrame) -> Pixels:
        """Returns uint8 [H, W, 3], RGB, upright, C-contiguous; H = W = S with a preprocessing.

        Raises:
            av.error.FFmpegError: FFmpeg cannot convert this pixel format.
        """
        if self._preprocessing is None:
            return _turn(self._to_rgb(frame, frame.width, frame.height), self._matrix(frame))
        a, b, c, d = self._matrix(frame)
        swaps = abs(a) < abs(b)
        upright = (frame.height, frame.width) if swaps else (frame.width, frame.height)
        width, height = self._preprocessing.resized_size(*upright)
        if width * height > _MAX_OVERHANG * self._preprocessing.image_size**2:
            frame = self._crop_source(frame, upright, (width, height), (a, b, c, d))
            width = height = self._preprocessing.image_size
            return self._to_rgb(frame, width, height)
        resized = self._to_rgb(frame, *((height, width) if swaps else (width, height)))
        return _crop(_turn(resized, (a, b, c, d)), self._preprocessing)

    def fit(self, pixels: Pixels) -> Pixels:
        """Resizes and crops what is RGB already, such as a face, by the same kernel.

        Args:
            pixels: uint8 [H, W, 3].

        Returns:
            As `convert`.
        """
        return self.convert(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"))

    def _matrix(self, frame: av.VideoFrame) -> tuple[int, int, int, int]:
        """Returns the frame's matrix, read anew only where its angle is another quarter."""
        quarter = round(frame.rotation / 90) % 4
        if quarter not in self._matrices:
            self._matrices[quarter] = _read_matrix(frame)
        return self._matrices[quarter]

    def _to_rgb(self, frame: av.VideoFrame, width: int, height: int) -> Pixels:
        kernel = self._preprocessing.interpolation if self._preprocessing else "bilinear"
        # One thread: FFmpeg would take every core of the machine for a 224-pixel frame.
        scaled = self._scaler.reformat(
            frame, width, height, "rgb24", interpolation=_INTERPOLATIONS[kernel], threads=1
        )
        return np.ascontiguousarray(scaled.to_ndarray(), dtype=np.uint8)

    def _crop_source(
        self,
        frame: av.VideoFrame,
        upright: tuple[int, int],
        resized: tuple[int, int],
        matrix: tuple[int, int, int, int],
    ) -> av.VideoFrame:
        """Cuts the model's view from a very long frame, to whole pixels, before resizing it."""
        assert self._preprocessing is not None
        pixels = _turn(self._to_rgb(frame, frame.width, frame.height), matrix)
        origin = self._preprocessing.crop_origin(*resized)
        box = []
        for side, scaled_side, start in zip(upright, resized, origin, strict=True):
            scale = side / scaled_side
            first = min(int(start * scale), side - 1)
            box.append((first, max(1, round(self._preprocessing.image_size * scale))))
        (left, width), (top, height) = box
        view = pixels[top : top + height, left : left + width]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Returns (width, height) of a frame as it is shown, in pixels."""
    a, b, _, _ = _read_matrix(frame)
    return (frame.height, frame.width) if abs(a) < abs(b) else (frame.width, frame.height)


def is_plain(frame: av.VideoFrame) -> bool:
    """Returns whether a frame is neither interlaced nor shown mirrored; it may be turned."""
    a, b, c, d = _read_matrix(frame)
    return a * d > b * c and not frame.interlaced_frame


def _read_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Returns (a, b, c, d) of x' = a x + c y, y' = b x + d y; y points down."""
    # PyAV ties a frame and its side data into a circle of references, which keeps the pixels until
    # the garbage collector comes by. So only a copy of a few pixels is asked.
    tiny = VideoReformatter().reformat(frame, 16, 16, "rgb24", threads=1)
    side_data: Any = tiny.side_data  # Typed by one of its kinds only.
    data = side_data.get("DISPLAYMATRIX")
    if data is None or data.buffer_size < _MATRIX.size:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = _MATRIX.unpack_from(bytes(data))
    return a, b, c, d


def _turn(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    """Turns and mirrors to the nearest right angle."""
    a, b, c, d = matrix
    flips_x, flips_y = a < 0, d < 0
    if abs(a) < abs(b):
        pixels = pixels.transpose(1, 0, 2)
        flips_x, flips_y = c < 0, b < 0
    step_x, step_y = (-1 if flips_x else 1), (-1 if flips_y else 1)
    return np.ascontiguousarray(pixels[::step_y, ::step_x])


def _crop(pixels: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Cuts the centred square out of a resized frame; black where ``pad`` leaves a margin."""
    size = preprocessing.image_size
    height, width = pixels.shape[:2]
    left, top = preprocessing.crop_origin(width, height)
    inside = pixels[max(top, 0) : top + size, max(left, 0) : left + size]
    if inside.shape[:2] == (size, size):
        return np.ascontiguousarray(inside)
    canvas = np.zeros((size, size, 3), dtype=np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return canvas
