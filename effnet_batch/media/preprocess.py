"""What a set of weights expects of its input: geometry, kernel and normalisation."""

import dataclasses
from typing import Any, Final

INTERPOLATIONS: Final = ("bilinear", "bicubic", "lanczos", "nearest")
RESIZE_MODES: Final = ("crop", "squash", "pad")
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Recipe from a decoded image to the model's input; part of the fingerprint.

    The resize kernel moves embeddings more than bf16 does (cosine 0.96-0.99 between kernels), so
    every field counts.
    """

    image_size: int
    """Side of the square the model sees, in pixels."""
    resize_size: int
    """``crop``: short side after resizing, in pixels, before centre crop; else the long side."""
    interpolation: str = "bicubic"
    """Antialiased resize kernel: one of `INTERPOLATIONS`."""
    resize_mode: str = "crop"
    """``crop`` (short side, then centre crop), ``squash`` (ignore aspect), ``pad`` (fit, zeros)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted per RGB channel after scaling to 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides per RGB channel after the mean is subtracted."""

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.resize_size < self.image_size:
            raise ValueError(
                f"resize_size must be at least image_size and image_size positive, "
                f"got {self.resize_size} and {self.image_size}"
            )
        for name, value, allowed in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("resize_mode", self.resize_mode, RESIZE_MODES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the (width, height) in pixels that a source of this size is resized to.

        The short side (``crop``) or the long side (``pad``) becomes ``resize_size``; the other is
        ``int(resize_size * other / side)``, rounded down as torchvision and timm do, and at least
        1. ``squash`` makes both ``resize_size``.
        """
        if self.resize_mode == "squash":
            return self.resize_size, self.resize_size
        side = min(width, height) if self.resize_mode == "crop" else max(width, height)
        return (
            max(1, int(self.resize_size * width / side)),
            max(1, int(self.resize_size * height / side)),
        )

    def crop_origin(self, resized_width: int, resized_height: int) -> tuple[int, int]:
        """Returns the (left, top) of the centred model input on the resized image, in pixels.

        Halves are rounded to even, as torchvision's ``CenterCrop`` does. Negative where the
        resized image is smaller than the input (``pad``): that many black pixels stand before it,
        rounded down.
        """
        left, top = resized_width - self.image_size, resized_height - self.image_size
        return (
            round(left / 2) if left >= 0 else -(-left // 2),
            round(top / 2) if top >= 0 else -(-top // 2),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types, in field order."""
        return dataclasses.asdict(self)
