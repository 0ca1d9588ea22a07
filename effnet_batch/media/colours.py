"""What colours a decoded image shows: any pixel mode to 8-bit grey or RGB."""

from typing import Final

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from effnet_batch.errors import UnsupportedError

_TIFF_BITS_PER_SAMPLE: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_TIFF_WHITE_IS_ZERO: Final = 0


def as_shown(image: Image.Image) -> Image.Image:
    """Returns the image in mode L or RGB, with the colours that a viewer shows."""
    if image.mode.startswith("I;16"):
        return _scale_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, "white")
        canvas.paste(rgba, mask=rgba)
        return canvas
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise UnsupportedError(
        f"samples of Pillow mode {image.mode} have no one way to be shown; "
        "convert the image to 8 or 16 bits, grey or RGB"
    )


def scale_transparent_grey(image: ImageFile.ImageFile, bit_depth: int) -> None:
    """Brings the transparent sample to the 8 bits that Pillow has unpacked the pixels to."""
    transparent = image.info.get("transparency")
    if image.mode == "L" and bit_depth in (2, 4) and isinstance(transparent, int):
        image.info["transparency"] = transparent * (255 // ((1 << bit_depth) - 1))


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scales unsigned grey of 9 to 16 bits to 8, rounding to the nearest; black stays black."""
    num_bits, is_white_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow unpacks 12 bits to 0..4095 and leaves it to us to invert WhiteIsZero.
        num_bits = int(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])
        is_white_zero = image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO
    largest = (1 << num_bits) - 1
    samples = np.minimum(np.arange(1 << 16, dtype=np.uint32), largest)
    table = ((samples * 255 + largest // 2) // largest).astype(np.uint8)
    if is_white_zero:
        table = 255 - table
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    return Image.fromarray(table[np.asarray(image)])
