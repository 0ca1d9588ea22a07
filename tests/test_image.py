import dataclasses
import io
import math

import numpy as np
import pytest
from photographs import encode, photograph
from PIL import Image, ImageOps
from raw_images import exif

from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing

LIMITS = ImageLimits()
CROP = Preprocessing(image_size=224, resize_size=256)
KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def reference(upright: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes everything, then cuts the centre out: torchvision's Resize and CenterCrop."""
    size, resize_size = preprocessing.image_size, preprocessing.resize_size
    width, height = upright.size
    if width <= height:
        target = resize_size, int(resize_size * height / width)
    else:
        target = int(resize_size * width / height), resize_size
    # Rows, then columns: the order of Pillow until version 12, whatever the aspect.
    kernel = KERNELS[preprocessing.interpolation]
    resized = upright.convert("RGB").resize((target[0], height), kernel).resize(target, kernel)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def assert_equal_within_rounding(frame: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(frame.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def psnr(frame: np.ndarray, expected: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((frame.astype(float) - expected) ** 2))


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize("name", ["cat", "coffee", "rocket", "astronaut"])
def test_a_photograph_equals_resizing_all_of_it_and_cutting_the_centre_out(
    name: str, interpolation: str
) -> None:
    preprocessing = dataclasses.replace(CROP, interpolation=interpolation)
    for image in (photograph(name), photograph(name).transpose(Image.Transpose.ROTATE_90)):
        decoded = decode_image(encode(image, "PNG"), preprocessing, LIMITS)
        assert (decoded.width, decoded.height) == image.size
        assert_equal_within_rounding(decoded.frame, reference(image, preprocessing))


def test_a_small_jpeg_gets_the_full_decode() -> None:
    data = encode(photograph("coffee"), quality=92)
    expected = reference(Image.open(io.BytesIO(data)), CROP)
    assert_equal_within_rounding(decode_image(data, CROP, LIMITS).frame, expected)


@pytest.mark.parametrize("size", [(1920, 1080), (1919, 1079), (1083, 1921), (4000, 3000)])
def test_a_large_jpeg_is_within_50_db_of_the_full_decode(size: tuple[int, int]) -> None:
    data = encode(ImageOps.fit(photograph("coffee"), size), quality=92)
    decoded = decode_image(data, CROP, LIMITS)
    assert (decoded.width, decoded.height) == size
    assert psnr(decoded.frame, reference(Image.open(io.BytesIO(data)), CROP)) > 50


def test_a_large_jpeg_with_the_nearest_kernel_is_exact() -> None:
    nearest = dataclasses.replace(CROP, interpolation="nearest")
    data = encode(ImageOps.fit(photograph("coffee"), (1920, 1080)))
    expected = reference(Image.open(io.BytesIO(data)), nearest)
    assert_equal_within_rounding(decode_image(data, nearest, LIMITS).frame, expected)


def test_a_frame_is_writable_contiguous_rgb() -> None:
    frame = decode_image(encode(photograph("camera")), CROP, LIMITS).frame
    assert frame.shape == (224, 224, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert frame.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_is_applied_exactly(image_format: str, orientation: int) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(photograph("cat"), image_format, exif=exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode_image(data, CROP, LIMITS)
    assert (decoded.width, decoded.height) == upright.size
    assert upright.size == ((300, 451) if orientation >= 5 else (451, 300))
    assert_equal_within_rounding(decoded.frame, reference(upright, CROP))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_to_a_scaled_decode(orientation: int) -> None:
    # A size that no scale divides: the decoder pads the stored right and bottom edges.
    stored = ImageOps.fit(photograph("rocket"), (1913, 1077))
    data = encode(stored, exif=exif(orientation), quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode_image(data, CROP, LIMITS)
    assert (decoded.width, decoded.height) == upright.size
    assert psnr(decoded.frame, reference(upright, CROP)) > 50


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    data = encode(photograph("cat"), "PNG", exif=exif(orientation))
    decoded = decode_image(data, CROP, LIMITS)
    assert_equal_within_rounding(decoded.frame, reference(photograph("cat"), CROP))


def test_squash_ignores_the_aspect_ratio() -> None:
    squash = Preprocessing(image_size=200, resize_size=224, resize_mode="squash")
    rows = photograph("cat").resize((224, 300), Image.Resampling.BICUBIC)
    expected = rows.resize((224, 224), Image.Resampling.BICUBIC)
    frame = decode_image(encode(photograph("cat"), "PNG"), squash, LIMITS).frame
    assert_equal_within_rounding(frame, np.asarray(expected.crop((12, 12, 212, 212))))


def test_pad_fits_the_long_side_and_leaves_black_margins() -> None:
    pad = Preprocessing(image_size=224, resize_size=224, resize_mode="pad")
    expected = Image.new("RGB", (224, 224))
    # 224 * 300 / 451 = 149.002; the odd pixel of the margin stands below.
    expected.paste(photograph("cat").resize((224, 149), Image.Resampling.BICUBIC), (0, 37))
    frame = decode_image(encode(photograph("cat"), "PNG"), pad, LIMITS).frame
    assert_equal_within_rounding(frame, np.asarray(expected))


@pytest.mark.parametrize("resize_mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (1, 1), (3, 20_000)])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_an_extreme_aspect_ratio_is_decoded(
    image_format: str, size: tuple[int, int], resize_mode: str
) -> None:
    preprocessing = dataclasses.replace(CROP, resize_mode=resize_mode)
    data = encode(Image.new("RGB", size, (250, 40, 90)), image_format)
    decoded = decode_image(data, preprocessing, LIMITS)
    assert (decoded.width, decoded.height) == size
    colours = decoded.frame.reshape(-1, 3).astype(int)
    is_margin = (colours == 0).all(axis=1)
    assert np.abs(colours[~is_margin] - (250, 40, 90)).max() <= 3
    assert is_margin.any() == (resize_mode == "pad" and size != (1, 1))
