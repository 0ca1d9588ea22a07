"""Zip archives: the members their central directory lists, inflated under a bound."""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from effnet_batch.errors import DecodeError, RecordError, TooLargeError, UnsupportedError
from effnet_batch.shards.member import (
    Census,
    Member,
    Source,
    is_spooled,
    max_unpacked_bytes,
    medium_of,
    member_name,
)
from effnet_batch.storage import spool_stream

# The other methods cannot be inflated step by step by zipfile, so a bomb could not be stopped.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FLAG_ENCRYPTED: Final = 0x1
_FLAG_UTF8: Final = 0x800
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    struct.error,
)


def iter_zip(
    source: Source, census: Census, max_bytes: int, medium: str
) -> Iterator[Member | None]:
    """Yields a zip's images, or videos, in its directory's order; None for each not wanted.

    Directories and links are no members, and an archive inside is not opened. What all members
    declare is bounded together: overlapping entries let a small file inflate without end.

    Raises:
        DecodeError: the directory cannot be read.
        TooLargeError: what follows the last item would inflate to too much.
    """
    try:
        archive = zipfile.ZipFile(source)
    except _DAMAGE as error:
        raise DecodeError(f"{source.uri}: no readable zip directory: {error}") from None
    max_unpacked = max_unpacked_bytes(source.size_bytes, max_bytes)
    num_left = max_unpacked
    for info in archive.infolist():
        name = _name(info)
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG) or medium_of(name) != medium:
            continue
        if info.file_size <= max_bytes:
            # Declared sizes count, wanted or not: a rerun must stop at the same member.
            num_left -= info.file_size
            if num_left < 0:
                raise TooLargeError(
                    f"{source.uri}: {source.size_bytes} bytes declare members of more than "
                    f"{max_unpacked} bytes"
                )
        occurrence = census.admit(name)
        if occurrence is None:
            yield None
            continue
        where = f"{source.uri}: member {name}"
        result = _read(archive, info, where, max_bytes, medium)
        if source.failure is not None:
            raise source.failure
        if isinstance(result, RecordError):
            yield Member(name, occurrence, error=result, size_bytes=info.file_size)
        elif isinstance(result, bytes):
            yield Member(name, occurrence, data=result, size_bytes=len(result))
        else:
            yield Member(name, occurrence, file=result, size_bytes=info.file_size)


def _name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _FLAG_UTF8:
        return member_name(info.filename.encode("utf-8", "surrogatepass"))
    # Without the flag zipfile reads cp437, but most writers store UTF-8 all the same.
    try:
        return member_name(info.filename.encode("cp437"))
    except UnicodeEncodeError:
        return member_name(info.filename.encode("utf-8", "surrogatepass"))


def _read(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, max_bytes: int, medium: str
) -> bytes | BinaryIO | RecordError:
    if info.flag_bits & _FLAG_ENCRYPTED:
        return UnsupportedError(f"{where}: is encrypted")
    if info.compress_type not in _METHODS:
        return UnsupportedError(
            f"{where}: compression method {info.compress_type}, allowed: stored, deflated"
        )
    if info.file_size > max_bytes:
        return TooLargeError(f"{where}: {info.file_size} bytes, allowed: {max_bytes}")
    content: bytes | BinaryIO
    try:
        with archive.open(info) as stream:
            # zipfile gives out no more than the declared size, then checks the CRC, so a
            # directory that lies about sizes ends here as damage.
            if is_spooled(medium, info.file_size):
                content = spool_stream(stream)
                size_bytes = os.fstat(content.fileno()).st_size
            else:
                content = stream.read(info.file_size + 1)
                size_bytes = len(content)
    except _DAMAGE as error:
        return DecodeError(f"{where}: {error}")
    if size_bytes != info.file_size:
        return DecodeError(f"{where}: {size_bytes} bytes, declared: {info.file_size}")
    return content
