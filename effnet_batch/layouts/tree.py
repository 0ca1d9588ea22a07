"""What a dataset's folder holds, and what a reader makes of one of its files."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa

from effnet_batch.errors import InputError, RecordError
from effnet_batch.storage import ObjectInfo, Storage, canonical_uri, join

FAKE: Final = "fake"
REAL: Final = "real"
SPLITS: Final = ("train", "val", "test")
VIDEO_EXTENSIONS: Final = (".mp4", ".avi", ".mov", ".mkv", ".webm")
IMAGE_EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MAX_LIST_BYTES: Final = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One video or image of a dataset, and what the dataset says of it."""

    info: ObjectInfo
    label: str
    """``fake`` or ``real``, or the name of a class."""
    group: str
    """Who or what is seen: videos of one group must not stand in two splits."""
    split: str | None = None
    """One of `SPLITS`; None where the dataset has none."""
    method: str | None = None
    """How a fake was made."""
    compression: str | None = None
    """``raw``, ``c23``, ``c40``."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Labelled images that a dataset keeps inside a file of its own."""

    split: str
    """One of `SPLITS`."""
    images: pa.Table
    """A Parquet shard's columns: ``image`` (an encoded image) and ``label``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """The files under a folder."""

    root: str
    """Canonical URI."""
    files: dict[str, ObjectInfo]
    """By their path below the root, with slashes."""
    storage: Storage

    @classmethod
    def scan(cls, root: str, storage: Storage) -> "Tree":
        """Lists a folder with everything below it.

        Raises:
            StorageError: it cannot be listed.
        """
        uri = canonical_uri(root)
        prefix = uri.rstrip("/") + "/"
        files = {
            info.uri.removeprefix(prefix): info
            for page in storage.list(uri, recursive=True)
            for info in page
        }
        return cls(uri, files, storage)

    def text(self, name: str) -> str:
        """Returns a file's text.

        Raises:
            InputError: it cannot be read, or is no UTF-8.
        """
        try:
            data = self.storage.read(join(self.root, name), max_bytes=_MAX_LIST_BYTES)
            return data.decode("utf-8-sig")
        except (RecordError, UnicodeDecodeError) as error:
            raise InputError(f"{join(self.root, name)}: {error}") from None

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a file that are not blank; the first counts like any other."""
        return [line for line in map(str.strip, self.text(name).splitlines()) if line]

    def document(self, name: str) -> Any:
        """Returns a JSON file's content.

        Raises:
            InputError: it cannot be read, or is no JSON.
        """
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{join(self.root, name)} is no JSON: {error}") from None

    def named(self, extensions: Iterable[str]) -> Iterator[tuple[str, ObjectInfo]]:
        """Yields path and info of the files with these extensions, in the listing's order."""
        wanted = tuple(extensions)
        for name, info in self.files.items():
            if name.lower().endswith(wanted):
                yield name, info


def stem(name: str) -> str:
    """Returns a path's last part without its extension."""
    return name.rpartition("/")[2].rpartition(".")[0]
