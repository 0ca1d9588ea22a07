"""Small images made byte by byte or at known sizes, for the tests of decoding."""

import struct
import zlib

import numpy as np
from photographs import photograph
from PIL import Image

from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing

# A recipe whose resizing is the identity on a 64 x 64 image: what comes out is what is shown.
SHOWN = Preprocessing(image_size=64, resize_size=64)


def square(mode: str = "RGB") -> Image.Image:
    return photograph("astronaut").crop((200, 60, 264, 124)).convert(mode)


def shown(data: bytes) -> np.ndarray:
    return decode_image(data, SHOWN, ImageLimits()).frame


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
