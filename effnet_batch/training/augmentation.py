"""What training does to the pictures of a clip: the same to each, or the change itself would tell.

Everything is drawn once per clip from a generator keyed by (seed, epoch, record), so that it does
not depend on who works on it or when.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final, Self

import cv2
import numpy as np
import numpy.typing as npt

from effnet_batch.media.h264 import reencode

Clip = npt.NDArray[np.uint8]
"""uint8 [T, H, W, 3], RGB."""

_SMALLEST_CROP: Final = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How likely each change is for a clip, in 0..1."""

    flip: float = 0.5
    """Left to right."""
    crop: float = 0.5
    """A part of 80-100 % of each side, resized to the whole."""
    colour: float = 0.3
    """Shift of each channel by up to 20, brightness and contrast by up to 30 %."""
    blur: float = 0.1
    """Gaussian, 3 to 7 pixels wide."""
    noise: float = 0.1
    """Gaussian, standard deviation up to 10 of 255, its own in every frame."""
    downscale: float = 0.1
    """To 1/4 .. 1/1.5 of each side and back."""
    jpeg: float = 0.2
    """Quality 40 to 95."""
    h264: float = 0.0
    """Re-encoded as a video, CRF 17 to 40."""
    cutout: float = 0.0
    """A grey rectangle of up to half of each side, at one place."""

    @classmethod
    def of(cls, settings: object) -> Self:
        """Takes the chances from the settings of a job, which may hold more than these."""
        return cls(
            **{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            chance = getattr(self, field.name)
            if not 0 <= chance <= 1:
                raise ValueError(f"{field.name} must lie in 0..1, got {chance}")


NO_AUGMENTATION: Final = Augmentation(
    **{field.name: 0.0 for field in dataclasses.fields(Augmentation)}
)


def clip_generator(seed: int, epoch: int, record_id: str) -> np.random.Generator:
    """Returns the generator of a record's clip in an epoch."""
    return np.random.default_rng([seed, epoch, int(record_id, 16)])


def augment(clip: Clip, settings: Augmentation, generator: np.random.Generator) -> Clip:
    """Returns a changed copy of a clip, of the same shape.

    Changes come in the order in which a camera, an editor and a server would make them.
    """
    changes: Sequence[tuple[float, Callable[[Clip, np.random.Generator], Clip]]] = (
        (settings.flip, _flip),
        (settings.crop, _crop),
        (settings.colour, jitter_colour),
        (settings.blur, _blur),
        (settings.noise, _noise),
        (settings.cutout, _cutout),
        (settings.downscale, _downscale),
        (settings.jpeg, _jpeg),
        (settings.h264, _h264),
    )
    # All are drawn before any: a change more or less leaves the others as they were.
    draws = generator.random(len(changes))
    seeds = generator.integers(2**63, size=len(changes))
    for (chance, change), draw, seed in zip(changes, draws, seeds, strict=True):
        if draw < chance:
            clip = change(clip, np.random.default_rng(seed))
    return np.ascontiguousarray(clip)


def jitter_colour(clip: Clip, generator: np.random.Generator) -> Clip:
    """Returns a clip with other channels, brightness and contrast."""
    gain = generator.uniform(0.7, 1.3)
    shift = generator.uniform(-20, 20, 3) + generator.uniform(-0.3, 0.3) * 64
    levels = np.arange(256, dtype=np.float64)[:, None]
    table = np.clip((levels - 127.5) * gain + 127.5 + shift, 0, 255).round().astype(np.uint8)
    return np.asarray(table[clip, np.arange(3)])


def resize_clip(clip: Clip, side: int) -> Clip:
    """Returns a clip of square frames of another side."""
    if clip.shape[1] == side:
        return clip
    kernel = cv2.INTER_AREA if side < clip.shape[1] else cv2.INTER_LINEAR
    return _each(clip, lambda frame: cv2.resize(frame, (side, side), interpolation=kernel))


def _each(clip: Clip, change: Callable[[Clip], npt.NDArray[np.generic]]) -> Clip:
    return np.stack([change(frame) for frame in clip]).astype(np.uint8, copy=False)


def _flip(clip: Clip, generator: np.random.Generator) -> Clip:
    return clip[:, :, ::-1]


def _crop(clip: Clip, generator: np.random.Generator) -> Clip:
    height, width = clip.shape[1:3]
    tall, wide = (round(side * generator.uniform(_SMALLEST_CROP, 1)) for side in (height, width))
    top, left = generator.integers(height - tall + 1), generator.integers(width - wide + 1)
    part = clip[:, top : top + tall, left : left + wide]
    return _each(part, lambda frame: cv2.resize(frame, (width, height)))


def _blur(clip: Clip, generator: np.random.Generator) -> Clip:
    size = 2 * int(generator.integers(1, 4)) + 1
    return _each(clip, lambda frame: cv2.GaussianBlur(frame, (size, size), 0))


def _noise(clip: Clip, generator: np.random.Generator) -> Clip:
    noise = generator.normal(0, generator.uniform(1, 10), clip.shape)
    return np.clip(clip + noise, 0, 255).round().astype(np.uint8)


def _cutout(clip: Clip, generator: np.random.Generator) -> Clip:
    height, width = clip.shape[1:3]
    tall, wide = (int(side * generator.uniform(0.1, 0.5)) for side in (height, width))
    top, left = generator.integers(height - tall + 1), generator.integers(width - wide + 1)
    clip = clip.copy()
    clip[:, top : top + tall, left : left + wide] = 128
    return clip


def _downscale(clip: Clip, generator: np.random.Generator) -> Clip:
    height, width = clip.shape[1:3]
    factor = generator.uniform(1.5, 4)
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return _each(
        clip,
        lambda frame: cv2.resize(
            cv2.resize(frame, small, interpolation=cv2.INTER_AREA), (width, height)
        ),
    )


def _jpeg(clip: Clip, generator: np.random.Generator) -> Clip:
    quality = int(generator.integers(40, 96))

    def change(frame: Clip) -> npt.NDArray[np.generic]:
        _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        return decoded[..., ::-1]

    return _each(clip, change)


def _h264(clip: Clip, generator: np.random.Generator) -> Clip:
    crf = int(generator.integers(17, 41))
    return np.stack(list(reencode(clip, crf=crf, preset="veryfast")))
