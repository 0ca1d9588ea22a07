import struct

import numpy as np
import pytest
from photographs import encode
from PIL import Image, ImageOps
from raw_images import grey_tiff, png, png_chunk, shown, square

from effnet_batch.errors import (
    UnsupportedError,
)


@pytest.mark.parametrize(
    ("image_format", "modes"),
    [
        ("PNG", ("RGB", "L", "P", "1", "RGBA", "LA")),
        ("TIFF", ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBX", "RGBA", "LA")),
        ("WEBP", ("RGB", "RGBA")),
        ("GIF", ("L", "P", "1")),
        ("BMP", ("RGB", "L", "P", "1", "RGBA")),
    ],
)
def test_every_mode_is_shown_in_its_colours(image_format: str, modes: tuple[str, ...]) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    for mode in modes:
        image = square().convert(mode)
        frame = shown(encode(image, image_format, **options))
        np.testing.assert_array_equal(frame, np.asarray(image.convert("RGB")), err_msg=mode)


def mean_difference(frame: np.ndarray, image: Image.Image) -> float:
    return float(np.abs(frame.astype(int) - np.asarray(image.convert("RGB"))).mean())


def test_a_grey_jpeg() -> None:
    assert mean_difference(shown(encode(square("L"), quality=100)), square("L")) < 1


def test_an_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    data = encode(square("CMYK"), quality=100)
    assert b"Adobe" in data
    assert mean_difference(shown(data), square()) < 1


def test_an_adobe_ycck_jpeg_is_not_a_negative() -> None:
    # YCCK holds the inks, as if they were RGB, in YCbCr, and the black ink inverted.
    luma, blue, red = ImageOps.invert(square()).convert("YCbCr").split()
    stored = (luma, blue, red, Image.new("L", luma.size, 255))
    # Pillow inverts what it writes as CMYK, and marks it as not transformed.
    made = Image.merge("CMYK", [ImageOps.invert(band) for band in stored])
    data = bytearray(encode(made, quality=100))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert mean_difference(shown(bytes(data)), square()) < 2


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_white(image_format: str) -> None:
    image = square("RGBA")
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    weight = alpha[..., None] / 255
    expected = np.asarray(square()) * weight + 255 * (1 - weight)
    assert np.abs(shown(encode(image, image_format, **options)) - expected).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(image_format: str) -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 32, 64))
    frame = shown(encode(image, image_format, transparency=0))
    assert (frame[:, :32] == 255).all()
    assert (frame[:, 32:] == (200, 100, 50)).all()


@pytest.mark.parametrize(("depth", "transparent"), [(1, 1), (2, 3), (4, 9), (8, 77), (16, 40000)])
def test_the_transparent_sample_of_a_grey_png_is_white(depth: int, transparent: int) -> None:
    num_bytes = 64 * depth // 8
    other = 0
    half = int(f"{transparent:0{depth}b}" * 32 + f"{other:0{depth}b}" * 32, 2)
    rows = (b"\0" + half.to_bytes(num_bytes, "big")) * 64
    chunk = png_chunk(b"tRNS", struct.pack(">H", transparent))
    frame = shown(png(64, 64, depth=depth, colour=0, rows=rows, extra=chunk))
    assert (frame[:, :32] == 255).all()
    assert (frame[:, 32:] == 0).all()


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(image_format: str) -> None:
    samples = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    frame = shown(encode(Image.fromarray(samples), image_format))
    expected = np.round(samples / 257).astype(np.uint8)
    np.testing.assert_array_equal(frame, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(("order", "photometric"), [("<", 1), (">", 1), ("<", 0)])
def test_16_bit_tiff_of_either_byte_order_and_sense(order: str, photometric: int) -> None:
    samples = np.linspace(0, 65535, 64 * 64).astype(order + "u2").reshape(64, 64)
    frame = shown(grey_tiff(samples.tobytes(), order=order, bits=16, photometric=photometric))
    expected = np.round(samples / 257).astype(np.uint8)
    np.testing.assert_array_equal(frame[..., 0], expected if photometric else 255 - expected)


def test_12_bit_tiff_reaches_white() -> None:
    samples = np.linspace(0, 4095, 64 * 64).astype(int)
    packed = b"".join(
        (int(first) << 12 | int(second)).to_bytes(3, "big")
        for first, second in samples.reshape(-1, 2)
    )
    frame = shown(grey_tiff(packed, order="<", bits=12, photometric=1))
    expected = np.round(samples * 255 / 4095).astype(np.uint8).reshape(64, 64)
    np.testing.assert_array_equal(frame[..., 0], expected)


def test_32_bit_float_samples_are_unsupported() -> None:
    data = encode(Image.fromarray(np.full((64, 64), 0.5, np.float32)), "TIFF")
    with pytest.raises(UnsupportedError, match="mode F"):
        shown(data)


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_only_the_first_frame_is_decoded(image_format: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert (shown(data) == (255, 0, 0)).all()


def test_a_colour_profile_is_ignored() -> None:
    data = encode(square(), "PNG", icc_profile=b"no profile at all" * 100)
    np.testing.assert_array_equal(shown(data), np.asarray(square()))
