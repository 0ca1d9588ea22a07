"""Objects of any size as files: read in big ranges, with bounded memory."""

import io
from typing import Final

from effnet_batch.errors import FetchError
from effnet_batch.storage.objects import Backend, ReadRequest, Span

READ_AHEAD_BYTES: Final = 8 << 20
"""How much is fetched at once. A request costs some 10 ms of waiting, 8 MiB some 100 ms."""


class RangedFile(io.RawIOBase):
    """A file whose every ``readinto`` is one ranged request; see :func:`open_ranged`.

    The first answer says which version of the object this is, and all others must be of the same
    one: a file never mixes two versions.
    """

    def __init__(self, backend: Backend, request: ReadRequest) -> None:
        super().__init__()
        self._backend = backend
        self._request = request
        self._position = 0
        self._ahead = backend.get(request, span=Span(0, READ_AHEAD_BYTES))
        if self._ahead.size_bytes is not None:
            self._size_bytes = self._ahead.size_bytes
        elif len(self._ahead.data) < READ_AHEAD_BYTES:
            self._size_bytes = len(self._ahead.data)
        else:
            size_bytes = backend.info(request.uri).size_bytes
            if size_bytes is None:
                raise FetchError(f"{request.uri}: the server does not say how many bytes it has")
            self._size_bytes = size_bytes
        etag = request.etag or self._ahead.etag
        self._request = ReadRequest(request.uri, request.fetch_uri, etag)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves without reading."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer with one request, or from what the first one brought."""
        start = self._position
        stop = min(start + len(buffer), self._size_bytes)
        if start >= stop:
            return 0
        data = self._ahead.data[start:stop]
        if not data:
            data = self._backend.get(self._request, span=Span(start, stop)).data
            if len(data) != stop - start:
                raise FetchError(f"{self._request.uri} gave {len(data)} bytes of {stop - start}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_ranged(backend: Backend, request: ReadRequest) -> io.BufferedReader:
    """Opens an object for reading, with one buffer of 8 MiB between its requests and the reader.

    Raises:
        FetchError: it cannot be read, now or later; ``error_type="SourceChanged"`` if it is not,
            or is no longer, the version of the etag.
    """
    return io.BufferedReader(RangedFile(backend, request), READ_AHEAD_BYTES)
