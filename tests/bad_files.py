"""One of every bad and hostile file, and the record that it must become."""

import ctypes
import gzip
import io
import os
import socket
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
from photographs import encode, photograph, small_jpegs
from PIL import Image
from raw_images import png
from shard_files import make_parquet, make_tar, make_zip

MAX_IMAGE_BYTES = 1_000_000
CANARY_SIZE = (97, 61)
"""Width and height of the image outside the input that nothing may read."""

Outcome = tuple[str, str | None]
"""Status and error_type."""
OK: Outcome = ("ok", None)
DAMAGED: Outcome = ("decode_error", "DecodeError")
UNSUPPORTED: Outcome = ("unsupported", "UnsupportedError")
TOO_LARGE: Outcome = ("too_large", "TooLargeError")
LONG_NAME = f"{'n' * 251}.jpg"
NAME_NOT_UTF8 = b"\xff\xfe.jpg"


class Watch:
    """Tells whether anybody on this machine opened a file (inotify)."""

    IN_ACCESS, IN_OPEN = 0x1, 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        mask = self.IN_ACCESS | self.IN_OPEN
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask) >= 0

    def was_opened(self) -> bool:
        """Returns whether it was opened since the last call."""
        try:
            return bool(os.read(self._descriptor, 65_536))
        except BlockingIOError:
            return False


def write_bad_images(folder: Path) -> dict[str, Outcome]:
    """Writes files that are named like images; returns what becomes of each, by name."""
    data = small_jpegs(1)[0]
    noise = Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3))
    bmp = bytearray(encode(photograph("camera").crop((0, 0, 40, 40)), "BMP"))
    bmp[18:22] = bytes(4)
    files: dict[str, tuple[bytes, Outcome]] = {
        "good.jpg": (data, OK),
        "png-inside.jpg": (encode(photograph("cat").crop((0, 0, 80, 60)), "PNG"), OK),
        "corrupt.jpg": (b"\xff\xd8\xff\xe0" + data[200:300] * 3, DAMAGED),
        "truncated.jpg": (data[: len(data) // 2], DAMAGED),
        "empty.jpg": (b"", DAMAGED),
        "zeros.jpg": (bytes(5000), UNSUPPORTED),
        "text.jpg": (b"Nothing to see here.\n", UNSUPPORTED),
        "page.jpg": (b"<!DOCTYPE html><html><title>404</title></html>", UNSUPPORTED),
        "paper.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", UNSUPPORTED),
        "film.jpg": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2mdat", UNSUPPORTED),
        "script.jpg": (b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file", UNSUPPORTED),
        "bomb.png": (
            png(60_000, 50_000, depth=1, colour=0, rows=bytes(50 << 20)),
            TOO_LARGE,
        ),
        "giant.bmp": (encode(noise, "BMP"), TOO_LARGE),
        "no-pixels.png": (png(0, 0, depth=8, colour=2, rows=b""), DAMAGED),
        "no-pixels.bmp": (bytes(bmp), DAMAGED),
        LONG_NAME: (data, OK),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    assert (folder / "bomb.png").stat().st_size < MAX_IMAGE_BYTES
    assert (folder / "giant.bmp").stat().st_size > MAX_IMAGE_BYTES
    Path(os.fsdecode(os.fsencode(folder) + b"/" + NAME_NOT_UTF8)).write_bytes(data)
    return {name: outcome for name, (_, outcome) in files.items()}


def write_bad_places(folder: Path) -> dict[str, Outcome]:
    """Makes what is no regular file; returns what becomes of each when a list names it."""
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "loop-a.jpg").symlink_to("loop-b.jpg")
    (folder / "loop-b.jpg").symlink_to("loop-a.jpg")
    (folder / "circle").symlink_to(".", target_is_directory=True)
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket.jpg")  # its own path may be too long
        os.close(here)
    found: dict[str, Outcome] = {
        "folder.jpg": ("fetch_error", "IsADirectoryError"),
        "loop.jpg": ("fetch_error", "OSError"),
        "loop-a.jpg": ("fetch_error", "OSError"),
        "loop-b.jpg": ("fetch_error", "OSError"),
        "pipe.jpg": ("fetch_error", "NotARegularFileError"),
        "socket.jpg": ("fetch_error", "OSError"),
        "missing.jpg": ("fetch_error", "FileNotFoundError"),
        "good.jpg/below.jpg": ("fetch_error", "NotADirectoryError"),
        f"{'m' * 300}.jpg": ("fetch_error", "OSError"),
        "missing.tar": ("fetch_error", "FileNotFoundError"),
    }
    if os.geteuid() != 0:  # root may read everything
        (folder / "closed.jpg").write_bytes(small_jpegs(1)[0])
        (folder / "closed.jpg").chmod(0)
        found["closed.jpg"] = ("fetch_error", "PermissionError")
    return found


def write_bad_shards(folder: Path) -> dict[tuple[str, str | None], Outcome]:
    """Writes damaged shards; returns what becomes of each (name, member)."""
    images = [(f"{index}.jpg", data) for index, data in enumerate(small_jpegs(4))]
    whole = make_tar(images)
    cut = whole.index(images[2][1]) + 100
    (folder / "half.tar").write_bytes(whole[:cut])
    (folder / "empty.tar").write_bytes(b"")
    (folder / "no-members.tar").write_bytes(make_tar([]))
    (folder / "text.tar").write_bytes(b"this is no archive\n" * 100)
    (folder / "bomb.tar.gz").write_bytes(
        gzip.compress(make_tar([images[0], ("bomb.jpg", bytes(50_000_000))]))
    )
    (folder / "bomb.zip").write_bytes(make_zip([images[0], ("bomb.jpg", bytes(50_000_000))]))
    (folder / "encrypted.zip").write_bytes(_encrypted(make_zip(images[:2]), "0.jpg"))
    (folder / "text.zip").write_bytes(b"this is no archive\n")
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "no-column.parquet").write_bytes(make_parquet(pa.table({"caption": ["a", "b"]})))
    (folder / "null.parquet").write_bytes(
        make_parquet(pa.table({"image": pa.array([images[0][1], None, b""], pa.binary())}))
    )
    return {
        ("half.tar", "0.jpg"): OK,
        ("half.tar", "1.jpg"): OK,
        ("half.tar", "2.jpg"): DAMAGED,
        ("empty.tar", None): DAMAGED,
        ("no-members.tar", None): DAMAGED,
        ("text.tar", None): DAMAGED,
        ("bomb.tar.gz", "0.jpg"): OK,
        ("bomb.tar.gz", "bomb.jpg"): TOO_LARGE,
        ("bomb.tar.gz", None): TOO_LARGE,
        ("bomb.zip", "0.jpg"): OK,
        ("bomb.zip", "bomb.jpg"): TOO_LARGE,
        ("encrypted.zip", "0.jpg"): UNSUPPORTED,
        ("encrypted.zip", "1.jpg"): OK,
        ("text.zip", None): DAMAGED,
        ("empty.parquet", None): DAMAGED,
        ("no-column.parquet", None): UNSUPPORTED,
        ("null.parquet", "row-0"): OK,
        ("null.parquet", "row-1"): DAMAGED,
        ("null.parquet", "row-2"): DAMAGED,
    }


def write_hostile_shards(folder: Path, canary: Path) -> dict[tuple[str, str | None], Outcome]:
    """Writes archives that point out of themselves; returns what becomes of (name, member)."""
    data = small_jpegs(1)[0]
    names = ["../../outside/canary.jpg", "/etc/absolute.jpg", str(canary)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for type_, target in (
            (tarfile.SYMTYPE, str(canary)),
            (tarfile.SYMTYPE, "../outside/canary.jpg"),
            (tarfile.LNKTYPE, str(canary)),
            (tarfile.LNKTYPE, "/etc/passwd"),
            (tarfile.FIFOTYPE, ""),
            (tarfile.CHRTYPE, ""),
            (tarfile.BLKTYPE, ""),
        ):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname, info.devmajor, info.devminor = type_, target, 1, 3
            archive.addfile(info)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (folder / "hostile.tar").write_bytes(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for number, target in enumerate((str(canary), "/etc/passwd")):
            link = zipfile.ZipInfo(f"link-{number}.jpg")
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(link, target)
        for name in names:
            zipped.writestr(zipfile.ZipInfo(name), data)
    (folder / "hostile.zip").write_bytes(buffer.getvalue())
    return {(shard, name): OK for shard in ("hostile.tar", "hostile.zip") for name in names}


def _encrypted(archive: bytes, name: str) -> bytes:
    """Marks a member of a zip as encrypted."""
    entry = archive.rindex(name.encode()) - 46
    assert archive[entry : entry + 4] == b"PK\x01\x02"
    return archive[: entry + 8] + struct.pack("<H", 1) + archive[entry + 10 :]
