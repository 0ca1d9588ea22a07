"""One still image: bytes to the square uint8 frame that a model sees.

An image is shown as a viewer would show it: EXIF orientation applied, only the first frame of an
animation or a multi-page file, transparency composited on white, 16-bit grey scaled to 8 bits,
Adobe's inverted CMYK understood. ICC profiles are ignored: samples are taken as sRGB, as training
pipelines do.

Each format is opened by its own Pillow plugin, chosen by the signature of the bytes, so that no
other parser of Pillow (EPS runs Ghostscript) ever meets them. Importing this module silences the
warnings that Pillow's own modules issue: what matters in them is a record's status here.
"""

import dataclasses
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from effnet_batch.errors import (
    DecodeError,
    OutOfMemoryError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.colours import as_shown, scale_transparent_grey
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.signature import detect_type

warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_MESSAGE_CHARACTERS: Final = 300

_OPENERS: Final[dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FORMATS: Final = tuple(_OPENERS)
_UNSUPPORTED_MESSAGES: Final = (
    "unknown pixel mode",
    "unknown data organization",
    "cannot handle",
    "Unsupported BMP",
)

_RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_EXIF_ORIENTATION: Final = 0x0112

# EXIF orientation -> how to turn the stored pixels upright.
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations that exchange width and height, and those that put the stored right or bottom edge
# on the left or on the top.
_SWAPS_SIDES: Final = frozenset({5, 6, 7, 8})
_FAR_EDGE_LEFT: Final = frozenset({2, 3, 6, 7})
_FAR_EDGE_TOP: Final = frozenset({3, 4, 7, 8})


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What one image may cost; over it the record is ``too_large``."""

    max_pixels: int = 178_956_970
    """Width times height from the header, checked before decoding. Above this default Pillow
    refuses GIF, WebP and some more whatever is set here."""
    max_bytes: int = 256 << 20
    """Length of the encoded file in bytes."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise ValueError(f"image limits must be positive, got {self}")


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """A frame ready for the model, and the size of the image it came from."""

    frame: npt.NDArray[np.uint8]
    """uint8 [S, S, 3], HWC, RGB, C-contiguous, writable; S is ``image_size``."""
    width: int
    """Of the source after EXIF orientation, in pixels."""
    height: int
    """Of the source after EXIF orientation, in pixels."""


Region = Callable[[int, int], tuple[float, float, float, float]]
"""From an upright image's width and height to left, top, right, bottom of a part of it."""


def decode_image(
    data: bytes,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    region: Region | None = None,
) -> DecodedImage:
    """Decodes, orients, resizes and crops one encoded image.

    Resizing and cropping are one resampling of the cropped region, so the cost and the memory of
    an extreme aspect ratio stay bounded; against resizing everything and cropping afterwards fewer
    than one sample in a thousand differs, by 1. JPEG is decoded at 1/2, 1/4 or 1/8 where that
    leaves at least twice the resized size (`_draft`): more than 50 dB from the full decode.

    Args:
        data: the whole encoded file.
        preprocessing: geometry and kernel; its mean and std are applied by the engine.
        limits: bounds on bytes and pixels.
        region: what is resized to the whole frame, instead of the recipe's resize and crop; the
            same for the same size, as it is asked more than once.

    Raises:
        DecodeError: empty, cut short, damaged.
        UnsupportedError: not one of `FORMATS`, or samples that have no one way to be shown.
        TooLargeError: over ``limits``, or compressed metadata that unpacks to too much.
        OutOfMemoryError: an allocation failed.
    """
    if not data:
        raise DecodeError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise TooLargeError(
            f"the image has {len(data):,} bytes; at most {limits.max_bytes:,} are allowed"
        )
    detected = detect_type(data)
    if detected not in _OPENERS:
        raise UnsupportedError(
            f"not an image that can be read: the bytes are {detected}; "
            f"supported are {', '.join(FORMATS)}"
        )
    try:
        return _decode(data, detected, preprocessing, limits, region)
    except RecordError:
        raise
    except MemoryError:
        raise OutOfMemoryError(f"out of memory while decoding this {detected} image") from None
    except Image.DecompressionBombError as error:
        raise TooLargeError(_describe(detected, error)) from error
    except Exception as error:
        # Hostile bytes get anything out of Pillow: OSError, SyntaxError, struct.error, ValueError,
        # OverflowError, RecursionError, zlib.error, AttributeError ...
        message = _describe(detected, error)
        raise _kind_of_failure(message)(message) from error


def _decode(
    data: bytes,
    image_format: str,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    region: Region | None,
) -> DecodedImage:
    def resized_size(width: int, height: int) -> tuple[float, float]:
        """Returns what the whole image would be resized to."""
        if region is None:
            return preprocessing.resized_size(width, height)
        left, top, right, bottom = region(width, height)
        size = preprocessing.image_size
        return size * width / (right - left), size * height / (bottom - top)

    with _OPENERS[image_format](io.BytesIO(data)) as image:
        stored_width, stored_height = image.size
        check_size(stored_width, stored_height, limits)
        orientation = 1
        content: tuple[float, float] = (stored_width, stored_height)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            orientation = orientation_of(image)
            content = _draft(image, orientation, preprocessing.interpolation, resized_size)
        image.load()
        if image_format == "PNG":
            scale_transparent_grey(image, bit_depth=data[24])
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            # Only now: PNG may keep it behind the pixels, and TIFF has turned itself in load().
            orientation = orientation_of(image)
        shown = as_shown(image)
    swaps = orientation in _SWAPS_SIDES
    width, height = (stored_height, stored_width) if swaps else (stored_width, stored_height)
    content_width, content_height = content[::-1] if swaps else content
    if orientation in _TRANSPOSES:
        shown = shown.transpose(_TRANSPOSES[orientation])
    # A scaled decode pads the stored right and bottom edges to whole pixels.
    left = shown.width - content_width if orientation in _FAR_EDGE_LEFT else 0.0
    top = shown.height - content_height if orientation in _FAR_EDGE_TOP else 0.0
    if region is None:
        box = (left, top, left + content_width, top + content_height)
        whole = preprocessing.resized_size(width, height)
        resized = _resize_and_crop(shown, box, whole, preprocessing)
    else:
        scale_x, scale_y = content_width / width, content_height / height
        part = region(width, height)
        size = (preprocessing.image_size, preprocessing.image_size)
        box = (
            left + part[0] * scale_x,
            top + part[1] * scale_y,
            min(left + part[2] * scale_x, shown.width),
            min(top + part[3] * scale_y, shown.height),
        )
        resized = _resample(shown, size, box, _RESAMPLING[preprocessing.interpolation])
    return DecodedImage(frame=np.array(resized.convert("RGB")), width=width, height=height)


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuses an image of no pixels, or of more than ``limits`` allow."""
    if width < 1 or height < 1:
        raise DecodeError(f"the image has no pixels ({width}x{height})")
    if width * height > limits.max_pixels:
        raise TooLargeError(
            f"the image has {width}x{height} = {width * height:,} pixels; "
            f"at most {limits.max_pixels:,} are allowed"
        )


def orientation_of(image: ImageFile.ImageFile) -> int:
    """Returns the EXIF orientation 1..8; 1 where it is absent, unknown or unreadable."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - viewers show an image with damaged metadata as it is stored
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSES else 1


def _draft(
    image: JpegImagePlugin.JpegImageFile,
    orientation: int,
    interpolation: str,
    resized_size: Callable[[int, int], tuple[float, float]],
) -> tuple[float, float]:
    """Asks libjpeg for the smallest scaled decode that is at least twice the resized size.

    At twice the size the antialiased kernel still decides the result (52-54 dB from the full
    decode); at once the size the decoder's box filter would (39 dB). ``nearest`` picks single
    samples, which scaling would replace by means, so it gets the full decode.

    Returns:
        Width and height of the stored image in pixels of the scaled decode; they are fractional
        where the scale does not divide the size and the decoder pads the last row or column.
    """
    if interpolation == "nearest":
        return image.size
    width, height = image.size
    if orientation in _SWAPS_SIDES:
        target_height, target_width = resized_size(height, width)
    else:
        target_width, target_height = resized_size(width, height)
    drafted = image.draft("RGB", (math.ceil(2 * target_width), math.ceil(2 * target_height)))
    if drafted is None:
        return image.size
    _, (_, _, content_width, content_height) = drafted
    return content_width, content_height


def _resize_and_crop(
    image: Image.Image,
    content: tuple[float, float, float, float],
    resized_size: tuple[int, int],
    preprocessing: Preprocessing,
) -> Image.Image:
    """Resamples only what the model sees of the resized image.

    Args:
        image: mode L or RGB.
        content: left, top, right, bottom of the source in ``image``, in pixels.
        resized_size: (width, height) that ``content`` as a whole would be resized to.
        preprocessing: kernel and crop.

    Returns:
        ``image_size`` squared, in the mode of ``image``; black where ``pad`` leaves a margin.
    """
    size = preprocessing.image_size
    crop_left, crop_top = preprocessing.crop_origin(*resized_size)
    left, top = max(crop_left, 0), max(crop_top, 0)
    right = min(crop_left + size, resized_size[0])
    bottom = min(crop_top + size, resized_size[1])
    scale_x = (content[2] - content[0]) / resized_size[0]
    scale_y = (content[3] - content[1]) / resized_size[1]
    resized = _resample(
        image,
        (right - left, bottom - top),
        (
            content[0] + left * scale_x,
            content[1] + top * scale_y,
            min(content[0] + right * scale_x, image.width),
            min(content[1] + bottom * scale_y, image.height),
        ),
        _RESAMPLING[preprocessing.interpolation],
    )
    if resized.size == (size, size):
        return resized
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(resized, (left - crop_left, top - crop_top))
    return canvas


def _resample(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    resampling: Image.Resampling,
) -> Image.Image:
    """Resamples ``box`` to ``size``, the rows first and then the columns.

    Samples are rounded and clipped to 8 bits between the two passes, so their order shows (by up
    to 2, and more next to hard edges). Pillow chose rows first until version 12 and decides by the
    aspect since; here it never changes, except that nothing is enlarged before the other axis is
    shrunk: one pixel wide and a million high must not become 224 wide and a million high.
    """
    left, top, right, bottom = box
    width, height = size
    if width > right - left and height < bottom - top:
        columns = image.resize((image.width, height), resampling, (0, top, image.width, bottom))
        return columns.resize(size, resampling, (left, 0, right, height))
    # Only the rows that the second pass looks at; no kernel reaches further than 3 steps.
    reach = 3 * max(1.0, (bottom - top) / height) + 1
    first = max(0, math.floor(top - reach))
    last = min(image.height, math.ceil(bottom + reach))
    if last - first < image.height:
        image = image.crop((0, first, image.width, last))
    rows = image.resize((width, image.height), resampling, (left, 0, right, image.height))
    return rows.resize(size, resampling, (0, top - first, width, bottom - first))


def _kind_of_failure(message: str) -> type[RecordError]:
    """Tells Pillow's limits and gaps from damage; it raises the same types for all three."""
    if "MAX_TEXT_" in message:  # PNG text that unpacks beyond Pillow's bounds
        return TooLargeError
    if any(words in message for words in _UNSUPPORTED_MESSAGES):
        return UnsupportedError
    return DecodeError


def _describe(image_format: str, error: Exception) -> str:
    """Returns one short line without line breaks, object addresses or file-like objects."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-fA-F]+>", "the data", str(error))
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "(address)", " ".join(text.split()))
    text = "".join(character if character.isprintable() else "?" for character in text)
    reason = text or type(error).__name__
    return f"cannot decode this {image_format} image: {reason}"[:MAX_MESSAGE_CHARACTERS]
