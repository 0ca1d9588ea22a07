"""Tar shards in the manner of WebDataset, read as a stream.

The walk from header to header is ours: ``tarfile`` takes damage in mid-archive for the end,
keeps every header it saw, and reads extended headers of any declared size.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, Protocol, cast

import zstandard

from effnet_batch.errors import DecodeError, RecordError, TooLargeError, UnsupportedError
from effnet_batch.shards.member import (
    Census,
    Label,
    Member,
    Source,
    is_spooled,
    max_unpacked_bytes,
    medium_of,
    member_name,
)
from effnet_batch.storage import PIECE_BYTES, spool

_BLOCK: Final = 512
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_LABEL_BYTES: Final = 4096
_MAX_ZSTD_WINDOW_BYTES: Final = 1 << 27
_SKIP_BYTES: Final = 1 << 20
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_WITHOUT_DATA: Final = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)


class _CutError(DecodeError):
    """The archive ends before what its headers announce."""


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


def iter_tar(
    source: Source, census: Census, max_bytes: int, medium: str
) -> Iterator[Member | Label | None]:
    """Yields a tar's images, or videos; None for each that is not wanted.

    Directories, links and devices are no members. A ``.cls`` file directly before or after a
    member of the same key gives its label.

    Raises:
        DecodeError: what follows the last item cannot be read.
        TooLargeError: the archive unpacks to more than a shard of its size may.
    """
    try:
        yield from _iter_archive(source, census, max_bytes, medium)
    except _CutError as error:
        raise DecodeError(str(error)) from None


def _iter_archive(
    source: Source, census: Census, max_bytes: int, medium: str
) -> Iterator[Member | Label | None]:
    archive = _Archive(source, max_bytes)
    label_before: tuple[str, str] | None = None
    key_before: str | None = None
    while (entry := archive.next_entry()) is not None:
        name, size, is_sparse = entry
        key, _, extension = name.rpartition("/")[2].partition(".")
        key = f"{name.rpartition('/')[0]}/{key}"
        label, label_before = label_before, None
        if extension.lower() == "cls" and not is_sparse and size <= _MAX_LABEL_BYTES:
            text = archive.read(size).decode("utf-8", "replace").strip().replace("\0", "")
            if text and key == key_before:
                yield Label(text)
            elif text:
                label_before = (key, text)
            key_before = None
            continue
        key_before = None
        if medium_of(name) != medium:
            archive.skip(size)
            continue
        occurrence = census.admit(name)
        key_before = key
        text_before = label[1] if label is not None and label[0] == key else None
        if occurrence is None:
            yield None
            try:
                archive.skip(size)
            except _CutError:
                return  # The cut member was counted and nothing follows it.
            continue
        where = f"{source.uri}: member {name}"
        error: RecordError | None = None
        data: bytes | None = None
        file: BinaryIO | None = None
        damage: DecodeError | TooLargeError | None = None
        try:
            if is_sparse:
                error = UnsupportedError(f"{where}: is a sparse file; store it as a plain one")
                archive.skip(size)
            elif size > max_bytes:
                error = TooLargeError(f"{where}: {size} bytes, allowed: {max_bytes}")
                archive.skip(size)
            elif is_spooled(medium, size):
                file = archive.spool(size)
            else:
                data = archive.read(size)
        except (DecodeError, TooLargeError) as caught:
            damage = caught
            error = error or DecodeError(f"{caught}: member {name}")
        yield Member(
            name,
            occurrence,
            data=data,
            file=file,
            error=error,
            size_bytes=size,
            label=text_before,
        )
        if isinstance(damage, _CutError):
            return
        if damage is not None:
            raise damage


class _Archive:
    """Walks over the headers of a tar and reads or skips what stands between them."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        head = source.read(6)
        source.seek(0)
        unpacked = _unpack(source, head)
        self._is_plain = unpacked is None
        self._stream: _Bytes = source if unpacked is None else unpacked
        self._num_left = max_unpacked_bytes(source.size_bytes, max_bytes)
        self._max_unpacked = self._num_left
        self._padding = 0
        self._global_header: dict[str, bytes] = {}

    def next_entry(self) -> tuple[str, int, bool] | None:
        """Returns (name, size in bytes, is_sparse) of the next file, or None at the end."""
        header: dict[str, bytes] = {}
        long_name: bytes | None = None
        while True:
            self._read_exactly(self._padding, "between two members")
            self._padding = 0
            block = self._read_exactly(_BLOCK, "where a header should be")
            if not any(block):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise DecodeError(
                    f"{self._source.uri}: no tar header where one should be ({error}); "
                    "what follows cannot be read"
                ) from None
            size = info.size
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = self._read_header(size).partition(b"\0")[0]
                continue
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                header = _parse_pax(self._read_header(size))
                continue
            if info.type == tarfile.XGLTYPE:
                self._global_header.update(_parse_pax(self._read_header(size)))
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                is_extended = block[482] != 0
                while is_extended:
                    is_extended = self._read_exactly(_BLOCK, "in a header")[504] != 0
            header = self._global_header | header
            if "size" in header:
                size = _parse_size(header["size"])
            if size < 0:
                raise DecodeError(f"{self._source.uri}: a member declares {size} bytes")
            if info.type in _WITHOUT_DATA:
                header, long_name = {}, None
                continue
            if info.type not in _FILES:
                self.skip(size)
                header, long_name = {}, None
                continue
            raw = header.get("GNU.sparse.name") or header.get("path") or long_name
            if raw is None:
                raw = info.name.encode("utf-8", "surrogateescape")
            is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(
                key.startswith("GNU.sparse.") for key in header
            )
            return member_name(raw), size, is_sparse

    def read(self, size: int) -> bytes:
        """Returns the ``size`` bytes of the current entry.

        Raises:
            _CutError: the archive ends before.
            DecodeError: the compressed stream is damaged.
            TooLargeError: the archive unpacks to too much.
        """
        self._padding = -size % _BLOCK
        return self._read_exactly(size, "in a member")

    def spool(self, size: int) -> BinaryIO:
        """Returns the ``size`` bytes of the current entry as a file of this machine.

        Raises:
            FetchError: there is no room for it.
            RecordError: as for `read`.
        """
        self._padding = -size % _BLOCK
        starts = range(0, size, PIECE_BYTES)
        return spool(
            self._read_exactly(min(PIECE_BYTES, size - start), "in a member") for start in starts
        )

    def skip(self, size: int) -> None:
        """Passes over the current entry, by seeking where the tar is not compressed."""
        self._padding = -size % _BLOCK
        if self._is_plain:
            position = self._source.tell()
            self._source.seek(min(position + size, self._source.size_bytes))
            if position + size > self._source.size_bytes:
                raise _CutError(f"{self._source.uri}: ends in a member of {size} bytes")
            return
        while size:
            num_bytes = min(size, _SKIP_BYTES)
            self._read_exactly(num_bytes, "in a member")
            size -= num_bytes

    def _read_header(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DecodeError(
                f"{self._source.uri}: an extended header declares {size} bytes, "
                f"allowed: {_MAX_HEADER_BYTES}"
            )
        return self.read(size)

    def _read_exactly(self, size: int, where: str) -> bytes:
        uri = self._source.uri
        if not self._is_plain:
            self._num_left -= size
            if self._num_left < 0:
                raise TooLargeError(
                    f"{uri}: {self._source.size_bytes} bytes unpack to more than "
                    f"{self._max_unpacked}"
                )
        chunks: list[bytes] = []
        missing = size
        try:
            while missing:
                chunk = self._stream.read(missing)
                if not chunk:
                    raise _CutError(f"{uri}: ends {where}, {missing} bytes too early")
                chunks.append(chunk)
                missing -= len(chunk)
        except EOFError:
            raise _CutError(f"{uri}: the compressed archive ends {where}") from None
        except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise DecodeError(f"{uri}: damaged {where}: {error}") from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _unpack(source: Source, head: bytes) -> _Bytes | None:
    """Returns the decompressed stream, or None for a plain tar; content decides, not the name."""
    stream = cast(BinaryIO, source)  # What typeshed calls for; reading is all that is used.
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=source)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(source)
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(stream)
    is_skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    if head.startswith(b"\x28\xb5\x2f\xfd") or is_skippable:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        return decompressor.stream_reader(stream, read_across_frames=True)
    return None


def _parse_pax(data: bytes) -> dict[str, bytes]:
    r"""Returns what matters of the records ``LENGTH KEY=VALUE\n`` of a pax extended header."""
    header: dict[str, bytes] = {}
    position = 0
    while position < len(data) and data[position] != 0:
        length_text, space, _ = data[position : position + 20].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        record = data[position : position + length]
        if not space or length <= len(length_text) + 1 or not record.endswith(b"\n"):
            raise DecodeError("damaged extended header; what follows cannot be read")
        key, _, value = record[len(length_text) + 1 : -1].partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            header[key.decode("ascii", "replace")] = value
        position += length
    return header


def _parse_size(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise DecodeError("damaged size in an extended header; what follows cannot be read")
    return int(text)
