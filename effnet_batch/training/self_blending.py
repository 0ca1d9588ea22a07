"""Self-blended images: fakes made from real pictures alone (Shiohara and Yamasaki, CVPR 2022).

A picture is blended with a slightly changed copy of itself inside a face-like mask, so that what
is left to learn is the blending: differing colours and frequencies, and an edge. The steps and
ranges are the paper's; the mask is an ellipse in a crop, where the paper has 81 landmarks. In a
clip everything is drawn once, so that the forgery moves with the face.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from effnet_batch.training.augmentation import Clip, jitter_colour

BLEND_RATIOS: Final = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""How much of the changed copy shows inside the mask; one is drawn."""
_ELASTIC_STRENGTH: Final = 50.0
_ELASTIC_SMOOTHNESS: Final = 7.0
_WORKING_SIDE: Final = 256
"""Masks are bent and blurred at this size; the paper draws 192-256."""

Mask = npt.NDArray[np.float32]
"""float32 [H, W] in 0..1."""


def self_blend(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Mask]:
    """Returns a fake made from a real clip, and where it was changed.

    Args:
        clip: uint8 [T, H, W, 3] RGB; a face crop.
        generator: draws everything.
    """
    height, width = clip.shape[1:3]
    mask = _face_mask(height, width, generator)
    changed = _change_frequency(jitter_colour(clip, generator), generator)
    # Either the inside or the outside is the changed one.
    inside, outside = (changed, clip) if generator.random() < 0.5 else (clip, changed)
    matrix = _small_affine(height, width, generator)
    inside = np.stack(
        [
            cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
            for frame in inside
        ]
    ).astype(np.uint8)
    mask = cv2.warpAffine(mask, matrix, (width, height)).astype(np.float32)
    mask = _soften(_bend(mask, generator), generator)
    mask = mask * np.float32(generator.choice(BLEND_RATIOS))
    weight = mask[None, :, :, None]
    blended = inside * weight + outside * (1 - weight)
    return np.clip(blended, 0, 255).round().astype(np.uint8), mask


def _face_mask(height: int, width: int, generator: np.random.Generator) -> Mask:
    """Returns an ellipse that a face would fill."""
    mask = np.zeros((height, width), np.float32)
    centre = (
        round(width * generator.uniform(0.45, 0.55)),
        round(height * generator.uniform(0.45, 0.6)),
    )
    axes = (
        round(width * generator.uniform(0.22, 0.35)),
        round(height * generator.uniform(0.28, 0.42)),
    )
    cv2.ellipse(mask, centre, axes, generator.uniform(-15, 15), 0, 360, 1.0, -1)
    return mask


def _change_frequency(clip: Clip, generator: np.random.Generator) -> Clip:
    height, width = clip.shape[1:3]
    if generator.random() < 0.5:
        factor = int(generator.choice((2, 4)))
        small = (max(1, width // factor), max(1, height // factor))
        frames = [cv2.resize(cv2.resize(frame, small), (width, height)) for frame in clip]
    else:
        amount = generator.uniform(0.2, 0.5)
        frames = [
            cv2.addWeighted(frame, 1 + amount, cv2.GaussianBlur(frame, (0, 0), 2), -amount, 0)
            for frame in clip
        ]
    return np.stack(frames).astype(np.uint8)


def _small_affine(
    height: int, width: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns [2, 3]: moved by up to 3 % across and 1.5 % down, scaled by 0.95 to 1/0.95."""
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, generator.uniform(0.95, 1 / 0.95))
    moved = np.asarray(matrix, np.float64)
    moved[0, 2] += width * generator.uniform(-0.03, 0.03)
    moved[1, 2] += height * generator.uniform(-0.015, 0.015)
    return moved


def _bend(mask: Mask, generator: np.random.Generator) -> Mask:
    """Returns the mask under a smooth random displacement (Simard et al., 2003)."""
    height, width = mask.shape
    small = cv2.resize(mask, (_WORKING_SIDE, _WORKING_SIDE))
    shifts = generator.uniform(-1, 1, (2, _WORKING_SIDE, _WORKING_SIDE)).astype(np.float32)
    across, down = (
        cv2.GaussianBlur(shift, (0, 0), _ELASTIC_SMOOTHNESS) * np.float32(_ELASTIC_STRENGTH)
        for shift in shifts
    )
    grid = np.arange(_WORKING_SIDE, dtype=np.float32)
    bent = cv2.remap(small, grid[None, :] + across, grid[:, None] + down, cv2.INTER_LINEAR)
    return cv2.resize(bent, (width, height)).astype(np.float32)


def _soften(mask: Mask, generator: np.random.Generator) -> Mask:
    """Returns the mask with soft edges: blurred, thinned to its core, blurred again."""
    height, width = mask.shape
    side = int(generator.integers(192, 257))
    soft = cv2.resize(mask, (side, side)).astype(np.float32)
    first, second = (2 * int(generator.integers(2, 13)) + 1 for _ in range(2))
    soft = cv2.GaussianBlur(soft, (first, first), 0).astype(np.float32)
    # What lies under the maximum is cut off, which pulls the edge inwards.
    soft = np.where(soft >= soft.max() - 1e-3, soft, 0).astype(np.float32)
    sigma = generator.uniform(5, 45)
    soft = cv2.GaussianBlur(soft, (second, second), sigma).astype(np.float32)
    soft = soft / max(float(soft.max()), 1e-6)
    return np.clip(cv2.resize(soft, (width, height)), 0, 1).astype(np.float32)
