"""What kind of file some bytes are, told by their first bytes and never by their name."""

import re
from typing import Final

NUM_BYTES_LOOKED_AT: Final = 512

_IMAGE_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_OTHER_SIGNATURES: Final = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"FLV\x01", "a Flash video"),
    (b"\0\0\x01\xba", "an MPEG video"),
    (b"\0\0\x01\xb3", "an MPEG video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"%!PS", "a PostScript document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer (the object was never downloaded)"),
)
_ISO_MEDIA_BRANDS: Final = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"hevc": "a HEIC image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
    b"crx ": "a Canon raw photograph",
    b"qt  ": "a QuickTime video",
}
# Sizes of the header that follows a BMP's 14 bytes: two letters alone would take in texts.
_BMP_HEADER_SIZES: Final = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def detect_type(data: bytes) -> str:
    """Returns what the bytes are.

    Args:
        data: the file, or at least its first `NUM_BYTES_LOOKED_AT` bytes.

    Returns:
        ``"JPEG"``, ``"PNG"``, ``"WebP"``, ``"GIF"``, ``"BMP"`` or ``"TIFF"`` for the formats that
        are read, otherwise words that complete "the bytes are ...", such as ``"a PDF document"``.
    """
    head = bytes(data[:NUM_BYTES_LOOKED_AT])
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":
        return "a Canon raw photograph"
    for signature, name in _IMAGE_SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF":
        kinds = {b"WEBP": "WebP", b"AVI ": "an AVI video", b"WAVE": "a WAVE file"}
        return kinds.get(head[8:12], "a RIFF file of an unknown kind")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _ISO_MEDIA_BRANDS.get(head[8:12], "an MP4 video")
    for signature, name in _OTHER_SIGNATURES:
        if head.startswith(signature):
            return name
    return _detect_text(head)


def _detect_text(head: bytes) -> str:
    if not any(head):
        return "only zeros"
    # A character cut by the end of the look is not damage.
    text = head.decode("utf-8-sig", errors="ignore")
    if len(text.encode()) < len(head) - 6 or re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return "of no known type"
    start = text.lstrip().lower()
    if re.search(r"<svg[\s>]", start):
        return "an SVG drawing"
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page"
    if start.startswith("<?xml"):
        return "an XML document"
    if start.startswith(("{", "[")):
        return "JSON text"
    return "text"
