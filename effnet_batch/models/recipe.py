"""What a set of weights needs to be run as it was trained."""

import dataclasses
import math
from typing import Any, Final

from effnet_batch.media.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SYMMETRIC: Final = "symmetric"
"""k // 2 on every side (torchvision, timm ``efficientnet_*``)."""
SAME: Final = "same"
"""TensorFlow's SAME, from the size of each input (TF, timm ``tf_efficientnet_*``)."""
SAME_STATIC: Final = "same_static"
"""SAME, computed once for the model's native resolution (lukemelas >= 0.7.1)."""
PADDINGS: Final = (SYMMETRIC, SAME, SAME_STATIC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the numbers depend on and the tensors do not say."""

    padding: str = SYMMETRIC
    """One of `PADDINGS`."""
    bn_eps: float = 1e-5
    """Added to the variance by every batch normalisation."""
    bn_momentum: float = 0.1
    """Weight of a new batch in the running statistics; matters for training only."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted per RGB channel after scaling to 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides per RGB channel."""
    interpolation: str = "bicubic"
    """Resize kernel."""
    image_size: int
    """Side of the square the model sees, in pixels."""
    resize_size: int
    """Short side after resizing, in pixels."""
    resize_mode: str = "crop"
    """One of `preprocess.RESIZE_MODES`."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that concerns images."""
        return Preprocessing(
            image_size=self.image_size,
            resize_size=self.resize_size,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            mean=self.mean,
            std=self.std,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
    """A user's own values; ``None`` leaves the weights' recipe."""

    padding: str | None = None
    bn_eps: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    """Image size as a share of the resized short side; 1 takes the whole short side."""

    def missing(self) -> list[str]:
        """Returns the names that a recipe cannot do without and that are not stated."""
        return [name for name, value in dataclasses.asdict(self).items() if value is None]

    def apply(self, known: Recipe) -> Recipe:
        """Returns ``known`` with the stated values.

        A new image size keeps the weights' crop fraction unless ``crop_pct`` is stated too.
        """
        changes: dict[str, Any] = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and name != "crop_pct"
        }
        image_size = self.image_size or known.image_size
        if self.crop_pct is not None:
            changes["resize_size"] = resized_side(image_size, self.crop_pct)
        elif self.image_size is not None:
            changes["resize_size"] = round(image_size * known.resize_size / known.image_size)
        return dataclasses.replace(known, **changes)


def resized_side(image_size: int, crop_pct: float) -> int:
    """Returns the short side to resize to, in pixels, as timm rounds it (down).

    Raises:
        ValueError: the fraction is not in (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}")
    return math.floor(image_size / crop_pct)
