"""The local disk, and whatever is mounted into it."""

import errno
import hashlib
import io
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from effnet_batch.errors import FetchError, OutageError, StorageError, TooLargeError
from effnet_batch.storage.atomic import TMP_FOLDER, create_file, replace_file, replace_file_if
from effnet_batch.storage.globs import Glob, has_wildcard
from effnet_batch.storage.objects import (
    Backend,
    Body,
    ObjectInfo,
    ReadRequest,
    Span,
    changed_error,
)
from effnet_batch.storage.uris import LOCAL, canonical_uri, local_path, scheme_of

_PAGE_SIZE = 1000
_CHUNK_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
_log = logging.getLogger(__name__)

# What a network file system says when its server went away; everything else is about the one file.
_TRANSIENT = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO)
)


class LocalBackend(Backend):
    """Reads and writes files."""

    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads a regular file of the version asked for; all else is refused unread."""
        path = local_path(request.uri)
        try:
            descriptor = open_regular(path, request.uri)
            try:
                _check_version(descriptor, request)
                size = os.fstat(descriptor).st_size
                start, stop = _bounds(span, size)
                if max_bytes is not None and stop - start > max_bytes:
                    raise TooLargeError(
                        f"{request.uri} holds {size} bytes, over the limit of {max_bytes}"
                    )
                data = _pread(descriptor, start, stop)
                _check_version(descriptor, request)  # not written to while it was read
                return Body(data, size)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise _fetch_error(error, request.uri) from None

    def info(self, uri: str) -> ObjectInfo:
        """Returns size and mtime of a regular file."""
        try:
            result = os.stat(local_path(uri))
        except (OSError, ValueError) as error:
            raise _fetch_error(error, uri) from None
        if not stat.S_ISREG(result.st_mode):
            raise _not_regular(result.st_mode, uri)
        return _info(uri, result)

    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields pages of files, in the order of their names folder by folder.

        Symlinked files are listed, also broken ones; symlinked folders are not walked, since they
        may lead in circles or out of the folder. Pipes, sockets and devices are left out.
        """
        path = local_path(uri)
        page: list[ObjectInfo] = []
        for found in _walk_from(path, recursive=recursive):
            page.append(found)
            if len(page) == _PAGE_SIZE:
                yield page
                page = []
        if page:
            yield page

    def write(self, uri: str, data: bytes) -> None:
        """Writes a temporary file and renames it to the target."""
        try:
            replace_file(local_path(uri), data)
        except OSError as error:
            raise _write_error(error, uri) from None

    def create(self, uri: str, data: bytes) -> str | None:
        """Creates a file exclusively and returns the hash of its content."""
        try:
            create_file(local_path(uri), data)
        except FileExistsError:
            raise FileExistsError(f"{uri} exists already") from None
        except OSError as error:
            raise _write_error(error, uri) from None
        return _version(data)

    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Replaces a file if the hash of its content is ``version``."""
        try:
            path = local_path(uri)
            is_replaced = replace_file_if(path, data, lambda found: _version(found) == version)
        except OSError as error:
            raise _write_error(error, uri) from None
        if not is_replaced:
            raise FileExistsError(f"{uri} was changed by somebody else")
        return _version(data)

    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Reads a file and the hash of its content."""
        data = self.get(ReadRequest(uri)).data
        return data, _version(data)

    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes files."""
        for uri in uris:
            try:
                os.unlink(local_path(uri))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _write_error(error, uri) from None

    def check_readable(self, uri: str) -> None:
        """Checks that the path, or the folder above the first wildcard, exists and opens."""
        path = local_path(uri)
        if has_wildcard(path) and not os.path.lexists(path):
            path = Glob(path).root or "/"
        try:
            if os.path.isdir(path):
                with os.scandir(path):
                    return
            os.close(open_regular(path, uri))
        except FetchError as error:
            raise StorageError(str(error)) from None
        except FileNotFoundError:
            raise StorageError(f"{path} does not exist; check the spelling and the mount") from None
        except PermissionError:
            raise StorageError(
                f"no permission to read {path}; run as a user who may, or change its mode"
            ) from None
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {_reason(error)}") from None

    def check_writable(self, uri: str) -> None:
        """Creates the folder and a file in it, and deletes the file."""
        folder = local_path(uri)
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise StorageError(f"{folder} is a file where a folder to write into is needed")
        probe = os.path.join(folder, f"_probe-{secrets.token_hex(8)}")
        try:
            os.makedirs(folder, exist_ok=True)
            with open(probe, "xb") as file:
                file.write(b"probe")
            os.unlink(probe)
        except OSError as error:
            with suppress(OSError):
                os.unlink(probe)
            raise StorageError(f"cannot write into {folder}: {_write_reason(error)}") from None


@contextmanager
def discarding_empty(uri: str) -> Iterator[None]:
    """Removes a local folder again that was made meanwhile, with its parents, if it stays empty."""
    made = []
    folder = local_path(uri) if scheme_of(uri) == LOCAL else ""
    while folder and not os.path.lexists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in (os.path.join(made[0], TMP_FOLDER), *made) if made else ():
                if os.path.isdir(path):
                    os.rmdir(path)


def open_regular(path: str, uri: str) -> int:
    """Opens a regular file for reading and returns its descriptor.

    Raises:
        FetchError: the path is a folder, a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    # Opening a pipe would wait for its writer, reading a device might never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(mode, uri)
    return descriptor


def _not_regular(mode: int, uri: str) -> FetchError:
    if stat.S_ISDIR(mode):
        return FetchError(
            f"{uri} is a folder, not a file", error_type="IsADirectoryError", is_transient=False
        )
    return FetchError(
        f"{uri} is a pipe, socket or device, not a file",
        error_type="NotARegularFileError",
        is_transient=False,
    )


def _bounds(span: Span | None, size: int) -> tuple[int, int]:
    if span is None:
        return 0, size
    start = max(0, size + span.start) if span.start < 0 else min(span.start, size)
    stop = size if span.stop is None else min(span.stop, size)
    return start, max(start, stop)


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    data = os.pread(descriptor, stop - start, start)
    if len(data) == stop - start:
        return data
    pieces = [data]  # Linux reads 2 GiB at most in one call, network file systems less
    while data and (start := start + len(data)) < stop:
        data = os.pread(descriptor, min(stop - start, _CHUNK_BYTES), start)
        pieces.append(data)
    return b"".join(pieces)


def _walk_from(path: str, *, recursive: bool) -> Iterator[ObjectInfo]:
    if has_wildcard(path) and not os.path.lexists(path):
        glob = Glob(path)
        yield from _walk(glob.root or "/", glob=glob, recursive=True)
    elif os.path.isdir(path):
        yield from _walk(path, glob=None, recursive=recursive)
    elif os.path.lexists(path):
        yield _listed(path)


def _walk(folder: str, *, glob: Glob | None, recursive: bool) -> Iterator[ObjectInfo]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except FileNotFoundError:
        return  # deleted while we walked, or the root of a glob that matches nothing
    except OSError as error:
        raise StorageError(f"cannot list {canonical_uri(folder)}: {_reason(error)}") from None
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            if recursive and (glob is None or glob.may_hold_matches(entry.path)):
                yield from _walk(entry.path, glob=glob, recursive=True)
        elif glob is not None and not glob.matches(entry.path):
            continue
        elif entry.is_symlink() and os.path.isdir(entry.path):
            _log.warning("%s is a symlink to a folder and is not followed", entry.path)
        elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
            yield _listed(entry.path)


def _listed(path: str) -> ObjectInfo:
    try:
        return _info(canonical_uri(path), os.stat(path))
    except OSError:  # a broken symlink: reading it says so in a record of its own
        return ObjectInfo(canonical_uri(path))


def _info(uri: str, result: os.stat_result) -> ObjectInfo:
    mtime = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=_mtime_microseconds(result))
    return ObjectInfo(uri, result.st_size, None, mtime)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _write_reason(error: OSError) -> str:
    hints = {
        errno.EACCES: "no permission; run as a user who may write, or change its mode",
        errno.EPERM: "not permitted; run as a user who may write, or change its mode",
        errno.EROFS: "the disk is mounted read-only; choose another folder or remount it",
        errno.ENOSPC: "no space is left on the disk; free some or choose another",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
    }
    return hints.get(error.errno or 0, _reason(error))


def _write_error(error: OSError, uri: str) -> OutageError:
    return OutageError(f"cannot write {uri}: {_write_reason(error)}")


def _fetch_error(error: OSError | ValueError, uri: str) -> FetchError:
    number = getattr(error, "errno", None)
    return FetchError(
        f"cannot read {uri}: {_reason(error)}",
        error_type=type(error).__name__,
        is_transient=number in _TRANSIENT,
    )


def open_local(request: ReadRequest) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        FetchError: it cannot be opened, or is no regular file; now or in a later read also
            ``error_type="SourceChanged"`` if it is not, or is no longer, the request's version.
    """
    try:
        descriptor = open_regular(local_path(request.uri), request.uri)
    except (OSError, ValueError) as error:
        raise _fetch_error(error, request.uri) from None
    file = _GuardedFile(descriptor, request)
    try:
        _check_version(descriptor, request)
    except FetchError:
        file.close()
        raise
    return io.BufferedReader(file, _BUFFER_BYTES)


class _GuardedFile(io.FileIO):
    """A file that gives no bytes of another version than the one that was asked for."""

    def __init__(self, descriptor: int, request: ReadRequest) -> None:
        super().__init__(descriptor)
        self._request = request

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads, and then looks whether the file was written to before or meanwhile."""
        num_bytes = super().readinto(buffer)
        _check_version(self.fileno(), self._request)
        return num_bytes

    def readall(self) -> bytes:
        """Reads what is left in the same way."""
        data = super().readall()
        _check_version(self.fileno(), self._request)
        return data


def _check_version(descriptor: int, request: ReadRequest) -> None:
    if request.version is None:
        return
    result = os.fstat(descriptor)
    if request.version != f"{_mtime_microseconds(result)}-{result.st_size}":
        raise changed_error(request.uri)


def _mtime_microseconds(result: os.stat_result) -> int:
    """Returns the mtime since 1970, rounded down, also before 1970, as a manifest holds it."""
    return result.st_mtime_ns // 1000
