"""Bytes too large to hold, kept on this machine's disk while they are worked on."""

import errno
import tempfile
from collections.abc import Iterable
from functools import partial
from typing import IO, BinaryIO, Final, cast

from effnet_batch.errors import FetchError

PIECE_BYTES: Final = 8 << 20
"""How much is in memory at once while a file is spooled."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def spool(pieces: Iterable[bytes | memoryview]) -> BinaryIO:
    """Writes bytes into a temporary file without a name and returns it, standing at its start.

    Nobody else can open it, and its space is free again when it is closed or its process ends,
    however that ends. It lies in ``TMPDIR``, else where the system keeps temporary files.

    Args:
        pieces: the bytes in order; what getting them raises goes through.

    Raises:
        FetchError: this machine has no room for them; ``error_type="NoSpaceError"``. Another try
            may find room, so it is transient.
    """
    # Unbuffered: a buffer that could not be written would be tried again on closing.
    file = cast("BinaryIO", tempfile.TemporaryFile(prefix="effnet-batch-", buffering=0))  # noqa: SIM115
    try:
        for piece in pieces:
            _write(file, memoryview(piece))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def spool_stream(stream: IO[bytes]) -> BinaryIO:
    """Spools what is left of a stream.

    Raises:
        FetchError: as `spool`, and whatever reading raises.
    """
    return spool(iter(partial(stream.read, PIECE_BYTES), b""))


def _write(file: BinaryIO, rest: memoryview) -> None:
    while rest:
        try:
            rest = rest[file.write(rest) :]
        except OSError as error:
            reason = "no space is left" if error.errno in _FULL else str(error.strerror)
            raise FetchError(
                f"cannot keep {file.tell() + len(rest)} bytes or more in a temporary file in "
                f"{tempfile.gettempdir()}: {reason}; free some space there, point TMPDIR at a "
                "larger disk, or lower --max-video-bytes",
                error_type="NoSpaceError",
            ) from None
