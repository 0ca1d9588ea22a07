"""Files on a disk, written whole or not at all.

The bytes go to a temporary file, are flushed to the disk (fsync), and get their name only then. So
a reader sees the old content or the new one, and a crash leaves nothing half written.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

TMP_FOLDER: Final = "_tmp"
"""Where files are while they are written; see :func:`_tmp_folder`."""

_LOCK_FILE: Final = "_lock.json"
"""Tells an output that a run holds from any other folder."""

_MAX_STEM_CHARS: Final = 60
_MAX_TRIES: Final = 10


def replace_file(path: str, data: bytes) -> None:
    """Creates or replaces a file, and leaves no folder behind that is there for that alone.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with _temporary(path, data) as temporary:
            os.replace(temporary, path)
    finally:
        folder = _tmp_folder(path)
        if not _is_held(os.path.dirname(folder)):
            with suppress(OSError):  # another writer uses it
                os.rmdir(folder)
    _sync_folder(path)


def create_file(path: str, data: bytes) -> None:
    """Creates a file: of several who try, one succeeds.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written.
    """
    with _temporary(path, data) as temporary:
        try:
            # Exclusive like O_EXCL, but nobody ever sees the file without its content.
            os.link(temporary, path)
        except OSError as error:
            # Mounted buckets and FAT know no hard links.
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    _sync_folder(path)


def replace_file_if(path: str, data: bytes, is_expected: Callable[[bytes], bool]) -> bool:
    """Replaces a file whose content is as expected, one process at a time; tells whether it did.

    Raises:
        OSError: it cannot be written.
    """
    with _temporary(path, data) as temporary, open(f"{_tmp_stem(path)}.flock", "ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            with open(path, "rb") as file:
                if not is_expected(file.read()):
                    return False
        except FileNotFoundError:
            return False
        os.replace(temporary, path)
    _sync_folder(path)
    return True


def _tmp_folder(path: str) -> str:
    """Returns ``_tmp`` in the target's folder; beside that folder in an output that a run holds.

    The lock lies at the top of an output and so makes ``OUTPUT/_tmp``; the parts in ``OUTPUT/data``
    use it too, and ``data`` never holds anything but parts. Any other folder above may be on
    another disk, or somebody else's.
    """
    parent = os.path.dirname(path)
    above = os.path.dirname(parent)
    return os.path.join(above if _is_held(above) else parent, TMP_FOLDER)


def _is_held(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, _LOCK_FILE))


def _tmp_stem(path: str) -> str:
    # Names may be up to 255 bytes long, and ours are longer than their target's.
    return os.path.join(_tmp_folder(path), os.path.basename(path)[:_MAX_STEM_CHARS])


@contextmanager
def _temporary(path: str, data: bytes) -> Iterator[str]:
    stem = _tmp_stem(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{stem}.{secrets.token_hex(8)}"
    try:
        with _open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)


def _open_new(path: str) -> BinaryIO:
    """Creates a file in a folder that another writer may remove at any moment while it is empty."""
    for _ in range(_MAX_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "xb")
    return open(path, "xb")


def _sync_folder(path: str) -> None:
    # The new name itself must reach the disk as well.
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
