import dataclasses
import io
import math
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
from photographs import encode, photograph
from PIL import Image, ImageOps

from effnet_batch.errors import (
    DecodeError,
    OutOfMemoryError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media import image as image_module
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing

# What image.py silences on import; pytest puts the filters back before every test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
LIMITS = ImageLimits()
CROP = Preprocessing(image_size=224, resize_size=256)
# A recipe whose resizing is the identity on a 64 x 64 image: what comes out is what is shown.
SHOWN = Preprocessing(image_size=64, resize_size=64)
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


def square(mode: str = "RGB") -> Image.Image:
    return photograph("astronaut").crop((200, 60, 264, 124)).convert(mode)


def shown(data: bytes) -> np.ndarray:
    return decode_image(data, SHOWN, LIMITS).frame


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


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


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_is_grey_or_adobe_cmyk(mode: str) -> None:
    data = encode(square(mode), quality=100)  # Pillow writes Adobe's inverted CMYK, and its marker
    assert psnr(shown(data), np.asarray(square(mode).convert("RGB"))) > 35


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


def grey_tiff(samples: bytes, *, order: str, bits: int, photometric: int) -> bytes:
    """A 64 x 64 TIFF of one strip; ``order`` is ``<`` or ``>``."""
    short, long = 3, 4
    tags = (
        (256, short, 64), (257, short, 64), (258, short, bits), (259, short, 1),
        (262, short, photometric), (273, long, 8), (277, short, 1), (278, short, 64),
        (279, long, len(samples)),
    )  # fmt: skip
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1)
        + (
            struct.pack(order + "HH", value, 0)
            if kind == short
            else struct.pack(order + "I", value)
        )
        for tag, kind, value in tags
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(samples))
    return start + samples + struct.pack(order + "H", len(tags)) + entries + bytes(4)


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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"<!DOCTYPE html><html><title>404</title>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b'{"error": "not found"}', "JSON text"),
        (b"BMW builds cars, and this is a text about them.", "text"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "an MP4 video"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF image"),
        (b"RIFF\x10\0\0\0AVI LIST", "an AVI video"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript document"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(1000), "only zeros"),
        (bytes(range(128, 256)) * 2, "of no known type"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        shown(data)


def test_no_other_plugin_of_pillow_is_reached() -> None:
    for image_format in ("PPM", "TGA", "ICO", "EPS", "PCX", "DDS", "JPEG2000", "AVIF"):
        data = encode(square(), image_format)
        with pytest.raises(UnsupportedError):
            shown(data)


def test_empty_is_damaged() -> None:
    with pytest.raises(DecodeError, match="0 bytes"):
        shown(b"")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_a_truncated_image_is_damaged(image_format: str, kept: float) -> None:
    data = encode(photograph("coffee"), image_format)
    with pytest.raises(DecodeError) as caught:
        decode_image(data[: int(len(data) * kept)], CROP, LIMITS)
    assert len(str(caught.value).splitlines()) == 1
    assert "0x" not in str(caught.value)


def test_too_many_bytes_are_refused() -> None:
    data = encode(square(), "PNG")
    with pytest.raises(TooLargeError, match=f"{len(data):,} bytes"):
        decode_image(data, SHOWN, ImageLimits(max_bytes=len(data) - 1))
    decode_image(data, SHOWN, ImageLimits(max_bytes=len(data)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_too_many_pixels_are_refused(image_format: str) -> None:
    data = encode(square(), image_format)
    with pytest.raises(TooLargeError, match="64x64 = 4,096 pixels"):
        decode_image(data, SHOWN, ImageLimits(max_pixels=4095))
    decode_image(data, SHOWN, ImageLimits(max_pixels=4096))


def bombs() -> dict[str, bytes]:
    """Files of under 1 MB that would unpack to gigabytes."""
    jpeg = bytearray(encode(square()))
    start_of_frame = jpeg.index(b"\xff\xc0")
    jpeg[start_of_frame + 5 : start_of_frame + 9] = b"\xff\xdc\xff\xdc"
    gif = bytearray(encode(square("P"), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    frame_of_gif = bytearray(encode(square("P"), "GIF"))
    descriptor = frame_of_gif.index(b",\0\0\0\0\x40\0\x40\0")
    frame_of_gif[descriptor + 5 : descriptor + 9] = b"\xff\xff\xff\xff"
    bmp = bytearray(encode(square(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    text = b"key\0\0" + zlib.compress(bytes(50 << 20))
    return {
        "PNG header": png(60_000, 60_000, depth=8, colour=2, rows=bytes(100)),
        "PNG pixels": png(60_000, 50_000, depth=1, colour=0, rows=bytes(50 << 20)),
        "PNG text": png(1, 1, depth=8, colour=0, rows=b"\0\0", extra=png_chunk(b"zTXt", text)),
        "JPEG": bytes(jpeg),
        "GIF screen": bytes(gif),
        "GIF frame": bytes(frame_of_gif),
        "BMP": bytes(bmp),
        "WebP": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_too_large(name: str) -> None:
    with pytest.raises(TooLargeError):
        decode_image(bombs()[name], CROP, LIMITS)


def test_between_pillows_limits_nothing_warns() -> None:
    # Pillow warns from 89 million pixels; a 10,000 x 10,000 image is within ours.
    script = (
        "import io, sys; from PIL import Image\n"
        "from effnet_batch.media.image import ImageLimits, decode_image\n"
        "from effnet_batch.media.preprocess import Preprocessing\n"
        "data = io.BytesIO(); Image.new('1', (10_000, 10_000)).save(data, 'PNG')\n"
        "recipe = Preprocessing(image_size=8, resize_size=8)\n"
        "print(decode_image(data.getvalue(), recipe, ImageLimits()).width)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "10000\n"
    assert done.stderr == ""


@pytest.mark.parametrize("num_entries", [5_000, 60_000])
def test_huge_and_damaged_metadata_does_not_matter(num_entries: int) -> None:
    # Every entry claims the same 60 kB: read one by one they are up to 3.6 GB.
    entry = struct.pack("<II", 60_000, 8)
    entries = b"".join(struct.pack("<HH", 1000 + index, 7) + entry for index in range(num_entries))
    directory = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", num_entries) + entries
    data = encode(square(), "PNG")
    chunk = png_chunk(b"eXIf", directory[6:])
    end_of_header = 8 + 25
    np.testing.assert_array_equal(
        shown(data[:end_of_header] + chunk + data[end_of_header:]), np.asarray(square())
    )
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece
        for start in range(0, len(directory) - 6, 60_000)
        if (piece := directory[6 + start : 6 + start + 60_000])
    )
    jpeg = encode(square(), quality=100)
    np.testing.assert_array_equal(shown(jpeg[:2] + segments + jpeg[2:]), shown(jpeg))


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


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), OutOfMemoryError),
        (RecursionError("maximum recursion depth exceeded"), DecodeError),
        (struct.error("unpack requires a buffer of 4 bytes"), DecodeError),
        (OverflowError("size at <PIL.X object at 0x7f11aa22bb33> is\ntoo big"), DecodeError),
        (Image.DecompressionBombWarning("100 pixels"), DecodeError),
        (Image.DecompressionBombError("100 pixels"), TooLargeError),
    ],
)
def test_whatever_pillow_raises_becomes_a_record_error(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[RecordError]
) -> None:
    def fail(_: io.BytesIO) -> None:
        raise raised

    monkeypatch.setitem(image_module._OPENERS, "PNG", fail)
    with pytest.raises(expected) as caught:
        shown(encode(square(), "PNG"))
    message = str(caught.value)
    assert "PNG" in message
    assert "\n" not in message
    assert "0x" not in message


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Damages a file: flipped bytes, bits in its header, a cut, exchanged or repeated pieces."""
    damaged = bytearray(data)
    kind = generator.randrange(6)
    if kind == 0:
        for _ in range(generator.randint(1, 40)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    elif kind == 1:
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(min(64, len(damaged)))] ^= 1 << generator.randrange(8)
    elif kind == 2:
        del damaged[generator.randrange(len(damaged)) :]
    else:
        start, end = sorted(generator.sample(range(len(damaged)), 2))
        length = min(end - start, generator.randint(1, 400))
        if kind == 3:
            damaged[start : start + length], damaged[end - length : end] = (
                damaged[end - length : end],
                damaged[start : start + length],
            )
        elif kind == 4:
            del damaged[start : start + length]
        else:
            damaged[end:end] = damaged[start : start + length]
    return bytes(damaged)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "group4"])
def test_a_mutated_image_decodes_or_raises_a_record_error(
    image_format: str, compression: str
) -> None:
    if image_format != "TIFF" and compression != "raw":
        return
    small = photograph("cat").crop((100, 60, 260, 180))
    if image_format == "TIFF":
        image = small.convert("1") if compression == "group4" else small
        data = encode(image, "TIFF", compression=compression, exif=exif(6))
    else:
        data = encode(small, image_format, exif=exif(6))
    generator = random.Random(f"{image_format} {compression}")
    messages: list[str] = []
    for _ in range(80):
        try:
            decoded = decode_image(mutate(data, generator), SHOWN, LIMITS)
            assert decoded.frame.shape == (64, 64, 3)
        except RecordError as error:
            messages.append(str(error))
    assert 5 < len(messages) < 80
    assert not any("\n" in message or "0x" in message for message in messages)


def test_files_that_come_with_scikit_image_are_decoded_or_refused() -> None:
    refused = []
    for path in sorted(Path(skimage.data_dir).glob("*.*")):
        if path.suffix in (".png", ".jpg", ".gif", ".tif"):
            try:
                decode_image(path.read_bytes(), CROP, LIMITS)
            except UnsupportedError:
                refused.append(path.name)
    assert refused == ["multipage_rgb.tif"]  # no photometric interpretation that Pillow knows


@pytest.mark.parametrize("bad", [{"max_pixels": 0}, {"max_bytes": -1}])
def test_limits_must_be_positive(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        ImageLimits(**bad)
