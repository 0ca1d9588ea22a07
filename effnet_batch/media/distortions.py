"""What videos suffer on their way, in five levels each: the distortions of DeeperForensics-1.0.

Functions and parameters are those of the benchmark's own code (Jiang et al., CVPR 2020;
`perturbation/distortions.py` and `add_distortion_to_video.py`), applied to whole decoded frames
before faces are looked for. The benchmark writes its frames to a file again, which is left out
here. What is random is drawn from the frame itself, so that it is the same in any run.
"""

import collections
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from effnet_batch.media.h264 import reencode
from effnet_batch.media.pixels import Pixels
from effnet_batch.media.video import Frame

NUM_LEVELS: Final = 5
COMPRESSION: Final = "compression"
PARAMETERS: Final[Mapping[str, Sequence[float]]] = {
    "saturation": (0.4, 0.3, 0.2, 0.1, 0.0),
    "contrast": (0.85, 0.725, 0.6, 0.475, 0.35),
    "blocks": (16, 32, 48, 64, 80),
    "noise": (0.001, 0.002, 0.005, 0.01, 0.05),
    "blur": (7, 9, 13, 17, 21),
    "downscale": (2, 3, 4, 5, 6),
    COMPRESSION: (30, 32, 35, 38, 40),
}
"""Parameter of each distortion by level, from 1: share of the chroma that is left, share of every
value that is left, blocks per 256 pixels of the short side, variance of the noise, side of the
kernel in pixels, divisor of each side, constant rate factor. The benchmark calls them CS, CC, BW,
GNC, GB, JPEG and VC."""

_BLOCK_SIDE: Final = 8
_BLOCK_GREY: Final = 128
_BLOCK_UNIT: Final = 256
_NO_CHROMA: Final = np.float32(0.5)
"""Where OpenCV puts grey in pictures of floats."""
# One unit of the noise, 255 times its deviation, is of YCbCr as video has it: 219 steps of luma
# and 224 of chroma.
_NOISE_SCALE: Final = (255 * 255 / 219, 255 * 255 / 224, 255 * 255 / 224)


@dataclasses.dataclass(frozen=True)
class Distortion:
    """A distortion at a level."""

    kind: str
    """One of `PARAMETERS`."""
    level: int
    """1 (least) to 5."""

    def __post_init__(self) -> None:
        if self.kind not in PARAMETERS:
            raise ValueError(f"distortion must be one of {', '.join(PARAMETERS)}, got {self.kind}")
        if not 1 <= self.level <= NUM_LEVELS:
            raise ValueError(f"level must be 1..{NUM_LEVELS}, got {self.level}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.level}"

    @property
    def parameter(self) -> float:
        """What the level stands for."""
        return PARAMETERS[self.kind][self.level - 1]


def parse_distortion(text: str) -> Distortion:
    """Returns what ``kind:level`` means.

    Raises:
        ValueError: it means none.
    """
    kind, _, level = text.partition(":")
    if not level.isdecimal():
        raise ValueError(f"a distortion is written kind:level, such as noise:3; got {text!r}")
    return Distortion(kind, int(level))


def distort(frames: Iterable[Frame], distortion: Distortion) -> Iterator[Frame]:
    """Yields frames as a distortion leaves them, one at a time.

    Compression takes the frames as neighbours, and holds what its encoder looks ahead, some 50.

    Args:
        frames: whole frames of one video, in order.
        distortion: what happens to them.
    """
    if distortion.kind == COMPRESSION:
        yield from _compress(frames, int(distortion.parameter))
        return
    change = _CHANGES[distortion.kind]
    for frame in frames:
        generator = np.random.default_rng([zlib.crc32(frame.pixels.data), frame.index])
        pixels = change(frame.pixels, distortion.parameter, generator)
        yield dataclasses.replace(frame, pixels=pixels)


def _compress(frames: Iterable[Frame], crf: int) -> Iterator[Frame]:
    waiting: collections.deque[tuple[int, float]] = collections.deque()

    def pictures() -> Iterator[Pixels]:
        for frame in frames:
            waiting.append((frame.index, frame.pts_seconds))
            yield frame.pixels

    for pixels in reencode(pictures(), crf=crf):
        index, pts_seconds = waiting.popleft()
        yield Frame(index=index, pts_seconds=pts_seconds, pixels=pixels)


def _saturation(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    luma_and_chroma = _to_ycrcb(pixels)
    chroma = luma_and_chroma[..., 1:]
    chroma[...] = _NO_CHROMA + (chroma - _NO_CHROMA) * np.float32(share)
    return _to_rgb(luma_and_chroma)


def _contrast(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    levels = (np.arange(256, dtype=np.float32) * np.float32(share)).astype(np.uint8)
    return levels[pixels]


def _blocks(pixels: Pixels, number: float, generator: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    # The benchmark draws none where a side is below 256 pixels; here that is as one of 256.
    count = int(number) * max(1, min(height, width) // _BLOCK_UNIT)
    tops = generator.integers(max(1, height - _BLOCK_SIDE), size=count)
    lefts = generator.integers(max(1, width - _BLOCK_SIDE), size=count)
    pixels = pixels.copy()
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        pixels[top : top + _BLOCK_SIDE, left : left + _BLOCK_SIDE] = _BLOCK_GREY
    return pixels


def _noise(pixels: Pixels, variance: float, generator: np.random.Generator) -> Pixels:
    noise = generator.standard_normal(pixels.shape, np.float32)
    scale = np.array(_NOISE_SCALE, np.float32) * np.float32(math.sqrt(variance))
    return _to_rgb(_to_ycrcb(pixels) + noise * scale)


def _blur(pixels: Pixels, side: float, _: np.random.Generator) -> Pixels:
    return _uint8(cv2.GaussianBlur(pixels, (int(side), int(side)), side / 6))


def _downscale(pixels: Pixels, divisor: float, _: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (max(1, width // int(divisor)), max(1, height // int(divisor))))
    return _uint8(cv2.resize(small, (width, height)))


def _to_ycrcb(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Returns float32 [H, W, 3]: luma 0..255, and chroma around `_NO_CHROMA`."""
    found = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    return np.asarray(found, np.float32)


def _to_rgb(luma_and_chroma: npt.NDArray[np.float32]) -> Pixels:
    rgb = cv2.cvtColor(luma_and_chroma, cv2.COLOR_YCrCb2RGB)
    return np.clip(rgb, 0, 255).astype(np.uint8)  # cut off, not rounded, as the benchmark does


def _uint8(pixels: npt.NDArray[np.generic]) -> Pixels:
    return np.ascontiguousarray(pixels, np.uint8)


_Change = Callable[[Pixels, float, np.random.Generator], Pixels]
_CHANGES: Final[Mapping[str, _Change]] = {
    "saturation": _saturation,
    "contrast": _contrast,
    "blocks": _blocks,
    "noise": _noise,
    "blur": _blur,
    "downscale": _downscale,
}
