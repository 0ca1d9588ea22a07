"""Sources to be read, storage that notes or makes up what it gives, and what lies on disk."""

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from typing import BinaryIO, cast

from effnet_batch.errors import RecordError
from effnet_batch.schema import source_id
from effnet_batch.stages.read import Item, OutageGuard, Source, read_items
from effnet_batch.storage import ReadRequest, Storage, StorageOptions

MIB = 1 << 20


class Recorder(Storage):
    """Counts the objects of every call."""

    def __init__(self) -> None:
        super().__init__(StorageOptions())
        self.groups: list[list[str]] = []

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        self.groups.append([request.uri.rpartition("/")[2] for request in requests])
        return super().read_many(requests, max_bytes=max_bytes)

    def open_whole(self, request: ReadRequest, *, max_bytes: int) -> tuple[BinaryIO, int]:
        self.groups.append([request.uri.rpartition("/")[2]])
        return super().open_whole(request, max_bytes=max_bytes)


class Made(Recorder):
    """Gives every object the size that its name ends in, in MiB, without storage."""

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        self.groups.append([request.uri for request in requests])
        return [bytes(int(request.uri.rpartition("-")[2]) * MIB) for request in requests]

    def open(self, uri: str, **options: object) -> BinaryIO:
        return cast("BinaryIO", Zeros(int(uri.rpartition("-")[2]) * MIB))


class Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._num_bytes if whence == io.SEEK_END else 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = bytes(min(size, self._num_bytes - self._position))
        self._position += len(data)
        return data


def source(
    uri: str, kind: str, size_bytes: int | None = None, skip: frozenset[str] = frozenset()
) -> Source:
    return Source(
        uri=uri,
        source_id=source_id(uri),
        kind=kind,
        size_bytes=size_bytes,
        etag=None,
        label=None,
        group=None,
        split=None,
        source_version=None,
        attempt=1,
        skip=skip,
        fetch_uri=None,
    )


def read(
    sources: list[Source],
    storage: Storage,
    *,
    medium: str = "image",
    max_bytes: int = 1 << 30,
    media_column: str | None = None,
    incomplete: list[str] | None = None,
) -> list[Item]:
    told: list[str] = [] if incomplete is None else incomplete
    return list(
        read_items(
            sources,
            storage,
            OutageGuard(),
            max_bytes=max_bytes,
            media_column=media_column,
            on_incomplete=lambda source, error: told.append(source.uri),
            medium=medium,
        )
    )


def content_of(item: Item) -> bytes | None:
    """Returns what the item holds, and closes it."""
    with contextlib.closing(item):
        return item.data if item.file is None else item.file.read()


def num_spooled() -> int:
    """Returns how many files without a name this process has open below the temporary folder."""
    targets, folder = [], tempfile.gettempdir()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(name.startswith(folder) and name.endswith("(deleted)") for name in targets)
