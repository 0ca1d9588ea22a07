import dataclasses
import io
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
from PIL import Image
from raw_images import SHOWN, exif, png, png_chunk, shown, square

from effnet_batch.errors import (
    DecodeError,
    OutOfMemoryError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media import image as image_module
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.isolation import IsolatedDecoder
from effnet_batch.media.preprocess import RESIZE_MODES, Preprocessing

# What image.py silences on import; pytest puts the filters back before every test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
LIMITS = ImageLimits()
CROP = Preprocessing(image_size=224, resize_size=256)


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
    chunk = png_chunk(b"eXIf", directory[6:])
    data = encode(square(), "PNG")
    end_of_header = 8 + 25
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece
        for start in range(0, len(directory) - 6, 60_000)
        if (piece := directory[6 + start : 6 + start + 60_000])
    )
    jpeg = encode(square(), quality=100)
    with IsolatedDecoder(SHOWN, LIMITS, timeout_seconds=60, memory_bytes=200 << 20) as decoder:
        from_png = decoder.decode(data[:end_of_header] + chunk + data[end_of_header:])
        from_jpeg = decoder.decode(jpeg[:2] + segments + jpeg[2:])
    np.testing.assert_array_equal(from_png.frame, np.asarray(square()))
    np.testing.assert_array_equal(from_jpeg.frame, shown(jpeg))


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 5_000_000), (5_000_000, 1)])
def test_an_extreme_aspect_ratio_needs_little_memory(
    size: tuple[int, int], resize_mode: str
) -> None:
    # Resized as a whole it would be gigabytes.
    preprocessing = dataclasses.replace(CROP, resize_mode=resize_mode)
    data = encode(Image.new("L", size, 200), "PNG")
    with IsolatedDecoder(preprocessing, LIMITS, 60, memory_bytes=256 << 20) as decoder:
        decoded = decoder.decode(data)
    assert (decoded.width, decoded.height) == size
    assert set(np.unique(decoded.frame)) == ({0, 200} if resize_mode == "pad" else {200})


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


@pytest.mark.parametrize(
    ("image_format", "compression"),
    [
        ("JPEG", None),
        ("PNG", None),
        ("WEBP", None),
        ("GIF", None),
        ("BMP", None),
        ("TIFF", "raw"),
        ("TIFF", "tiff_lzw"),
        ("TIFF", "jpeg"),
        ("TIFF", "group4"),
    ],
)
def test_a_mutated_image_decodes_or_raises_a_record_error(
    image_format: str, compression: str | None
) -> None:
    image = photograph("cat").crop((100, 60, 260, 180))
    if compression == "group4":
        image = image.convert("1")
    options = {} if compression is None else {"compression": compression}
    data = encode(image, image_format, exif=exif(6), **options)
    generator = random.Random(f"{image_format} {compression}")
    messages: list[str] = []
    for _ in range(80):
        try:
            decoded = decode_image(mutate(data, generator), SHOWN, LIMITS)
            assert decoded.frame.shape == (64, 64, 3)
        except RecordError as error:
            messages.append(str(error))
    assert len(messages) > 5  # PNG, with its checksums, fails every time
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
