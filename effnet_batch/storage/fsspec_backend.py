"""Google Cloud Storage, Azure Blob Storage and the Hugging Face Hub, through fsspec."""

import hashlib
import importlib
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import fsspec

from effnet_batch.errors import FetchError, OutageError, StorageError, TooLargeError
from effnet_batch.storage.globs import Glob, has_wildcard
from effnet_batch.storage.objects import (
    Backend,
    Body,
    ObjectInfo,
    ReadRequest,
    Span,
    changed_error,
)
from effnet_batch.storage.uris import redact

_PAGE_SIZE = 1000
_EXTRAS: Final = {
    "gs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "hf": ("huggingface_hub", "hub"),
}
_ETAGS = ("etag", "ETag", "blob_id")
_MTIMES = ("mtime", "updated", "last_modified", "LastModified")


def open_filesystem(scheme: str) -> Any:
    """Returns fsspec's filesystem for a scheme, with credentials from its usual environment.

    Raises:
        StorageError: the package for it is not installed.
    """
    package, extra = _EXTRAS[scheme]
    try:
        importlib.import_module(package)
    except ImportError:
        raise StorageError(
            f"{scheme}:// needs the package {package}; install it with "
            f"pip install 'effnet-batch[{extra}]'"
        ) from None
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)


class FsspecBackend(Backend):
    """Reads and writes through a filesystem of fsspec.

    Args:
        scheme: of the URIs.
        filesystem: what carries the requests; it repeats them by its own rules.
    """

    def __init__(self, scheme: str, filesystem: Any) -> None:
        self._scheme = scheme
        self._fs = filesystem

    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads an object; its size is asked for first where it is bounded."""
        path = self._path(request.uri)
        try:
            size = etag = None
            if max_bytes is not None or request.etag is not None:
                found = self.info(request.uri)
                size, etag = found.size_bytes, found.etag
                if request.etag is not None and etag is not None and etag != request.etag:
                    raise changed_error(request.uri)
                if span is None and max_bytes is not None and (size or 0) > max_bytes:
                    raise TooLargeError(
                        f"{request.uri} holds {size} bytes, over the limit of {max_bytes}"
                    )
            start, stop = (None, None) if span is None else (span.start, span.stop)
            return Body(bytes(self._fs.cat_file(path, start=start, end=stop)), size, etag)
        except (OSError, ValueError) as error:
            raise _read_error(error, request.uri) from None

    def info(self, uri: str) -> ObjectInfo:
        """Returns what the filesystem says."""
        try:
            found = self._fs.info(self._path(uri))
        except (OSError, ValueError) as error:
            raise _read_error(error, uri) from None
        if found.get("type") == "directory":
            raise FetchError(
                f"{uri} is a folder", error_type="IsADirectoryError", is_transient=False
            )
        return _info(uri, found)

    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields pages of files, folder by folder."""
        path = self._path(uri)
        glob = Glob(path) if has_wildcard(path) else None
        root = glob.root if glob is not None else path
        page: list[ObjectInfo] = []
        try:
            for found in self._walk(root, recursive=recursive or glob is not None):
                name = found["name"].lstrip("/")
                if glob is not None and not glob.matches(name):
                    continue
                page.append(_info(self._uri(name), found))
                if len(page) == _PAGE_SIZE:
                    yield page
                    page = []
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot list {uri}: {redact(str(error))}") from None
        if page:
            yield page

    def _walk(self, path: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
        for found in sorted(self._fs.ls(path, detail=True), key=lambda each: str(each["name"])):
            if found["type"] != "directory":
                yield found
            elif recursive and found["name"].rstrip("/") != path.rstrip("/"):
                yield from self._walk(found["name"], recursive=True)

    def write(self, uri: str, data: bytes) -> None:
        """Puts an object in one piece."""
        self._pipe(uri, data)

    def create(self, uri: str, data: bytes) -> str | None:
        """Puts an object if there is none; exclusive where the filesystem can tell."""
        if self._fs.exists(self._path(uri)):
            raise FileExistsError(f"{uri} exists already")
        self._pipe(uri, data, mode="create")
        return _version(data)

    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Compares, then replaces; another writer in between is not noticed."""
        if self.read_with_version(uri)[1] != version:
            raise FileExistsError(f"{uri} was changed by somebody else")
        self._pipe(uri, data)
        return _version(data)

    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Reads an object and the hash of its content."""
        data = self.get(ReadRequest(uri)).data
        return data, _version(data)

    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes objects."""
        for uri in uris:
            try:
                self._fs.rm_file(self._path(uri))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise OutageError(f"cannot delete {uri}: {redact(str(error))}") from None

    def check_readable(self, uri: str) -> None:
        """Asks whether the path, or what is before its first wildcard, exists."""
        path = self._path(uri)
        root = Glob(path).root if has_wildcard(path) else path
        try:
            if self._fs.exists(root):
                return
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {uri}: {redact(str(error))}") from None
        raise StorageError(f"{uri} does not exist; check the spelling and the credentials")

    def check_writable(self, uri: str) -> None:
        """Creates a small object and deletes it."""
        probe = f"{uri.rstrip('/')}/_probe-{secrets.token_hex(8)}"
        try:
            self._pipe(probe, b"probe")
            self.delete_many([probe])
        except OutageError as error:
            raise StorageError(str(error)) from None

    def _pipe(self, uri: str, data: bytes, *, mode: str = "overwrite") -> None:
        try:
            self._fs.pipe_file(self._path(uri), data, mode=mode)
        except FileExistsError:
            raise FileExistsError(f"{uri} exists already") from None
        except (OSError, ValueError) as error:
            raise OutageError(f"cannot write {uri}: {redact(str(error))}") from None

    def _path(self, uri: str) -> str:
        return uri.removeprefix(f"{self._scheme}://")

    def _uri(self, name: str) -> str:
        return f"{self._scheme}://{name}"


def _info(uri: str, found: dict[str, Any]) -> ObjectInfo:
    etag = next((str(found[name]).strip('"') for name in _ETAGS if found.get(name)), None)
    mtime = next((found[name] for name in _MTIMES if found.get(name)), None)
    if isinstance(mtime, str):
        mtime = datetime.fromisoformat(mtime)
    if not isinstance(mtime, datetime):
        mtime = None
    elif mtime.tzinfo is None:
        mtime = mtime.replace(tzinfo=UTC)
    return ObjectInfo(uri, found.get("size"), etag, mtime)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_error(error: BaseException, uri: str) -> FetchError:
    is_final = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    return FetchError(
        f"cannot read {uri}: {redact(str(error))}",
        error_type=type(error).__name__,
        is_transient=not is_final,
    )
