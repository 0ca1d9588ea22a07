"""Small shards made in memory, and one call that reads them."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from effnet_batch.shards import Member, iter_members

URI = "s3://bucket/shard"


IMAGES = [(f"{i:04}.jpg", random.Random(i).randbytes(300 + 700 * i)) for i in range(6)]


def make_tar(files: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def edit_zip(data: bytes, name: str, offset: int, value: bytes) -> bytes:
    """Overwrites a field of a member's central directory entry."""
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    return data[: entry + offset] + value + data[entry + offset + len(value) :]


def make_parquet(table: pa.Table, rows_per_group: int = 100) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return buffer.getvalue()


def read(
    kind: str,
    data: bytes | BinaryIO,
    *,
    wants: Callable[[str | None, int], bool] = lambda name, occurrence: True,
    max_bytes: int = 1 << 20,
    medium: str = "image",
    media_column: str | None = None,
) -> list[Member]:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    return list(
        iter_members(
            kind,
            URI,
            stream,
            is_wanted=wants,
            max_bytes=max_bytes,
            medium=medium,
            media_column=media_column,
        )
    )


def whats(members: list[Member]) -> list[tuple[str | None, str]]:
    """Names with their statuses."""
    return [(m.name, "ok" if m.error is None else m.error.status) for m in members]


def check_one_error(members: list[Member], status: str, text: str) -> None:
    assert whats(members) == [(None, status)]
    assert members[0].num_members == 1
    assert members[0].data is None
    assert text in str(members[0].error)
    assert URI in str(members[0].error)


class CountingStream(io.BytesIO):
    """Counts the bytes read, and fails at the position it is told to."""

    def __init__(self, data: bytes, fail_at: int | None = None, error: Exception | None = None):
        super().__init__(data)
        self.num_read = 0
        self.largest_read = 0
        self._fail_at = fail_at
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self._error is not None and self._fail_at is not None and self.tell() > self._fail_at:
            raise self._error
        self.num_read += len(data)
        self.largest_read = max(self.largest_read, len(data))
        return data


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "gz in two members": lambda data: gzip.compress(data[:900]) + gzip.compress(data[900:]),
    "zst in two frames": lambda data: (
        zstandard.ZstdCompressor().compress(data[:900])
        + zstandard.ZstdCompressor().compress(data[900:])
    ),
}


def hf_table(rows: list[dict[str, Any] | None], **columns: Any) -> pa.Table:
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({"image": image, **columns})
