"""The one door to storage: every read and write of the package goes through :class:`Storage`."""

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar, cast

from effnet_batch.errors import FetchError, RecordError, TooLargeError
from effnet_batch.storage.objects import (
    Backend,
    ObjectInfo,
    ReadRequest,
    Span,
    StorageOptions,
)
from effnet_batch.storage.spool import spool_stream
from effnet_batch.storage.uris import AZURE_SCHEMES, LOCAL, S3, WEB_SCHEMES, scheme_of

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Key = tuple[str, StorageOptions, str]

# Connections, credentials and rates belong to the process: all Storage objects share them. They do
# not survive a fork, whose child has none of the threads and must not share the sockets.
_backends: dict[_Key, Backend] = {}
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_ENVIRONMENT_PREFIXES = ("AWS_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_", "AZURE_", "HF_")


def _forget_connections() -> None:
    global _lock
    _lock = threading.Lock()
    _backends.clear()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_connections)


class Storage:
    """Reads, lists and writes objects by their canonical URIs, wherever they are.

    It pickles as its options alone: every process opens connections of its own, with the
    credentials of its own environment.

    Reads of one object raise :class:`~effnet_batch.errors.FetchError` (or ``TooLargeError``), and
    :class:`~effnet_batch.errors.OutageError` where the storage refuses as a whole. Writes raise
    ``OutageError``; listings and checks :class:`~effnet_batch.errors.StorageError`.

    Args:
        options: how storage is reached.
    """

    def __init__(self, options: StorageOptions | None = None) -> None:
        self.options = options or StorageOptions()
        # A process whose credentials change gets new connections with a new Storage.
        self._environment = _digest_environment()

    def __reduce__(self) -> tuple[type["Storage"], tuple[StorageOptions]]:
        return Storage, (self.options,)

    def read(self, uri: str, *, etag: str | None = None, max_bytes: int | None = None) -> bytes:
        """Returns the bytes of an object, fetched with one request.

        Args:
            uri: canonical URI.
            etag: the object must still be this one, where the storage knows etags.
            max_bytes: over it the object is given up.
        """
        request = ReadRequest(uri, None, etag)
        return self._backend(uri).get(request, max_bytes=max_bytes).data

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        """Reads objects at once, each with one request, in the given order.

        Returns:
            For each request the bytes, or why there are none.

        Raises:
            OutageError: the storage refuses as a whole.
        """

        def read(request: ReadRequest) -> bytes | RecordError:
            try:
                uri = request.fetch_uri or request.uri
                return self._backend(uri).get(request, max_bytes=max_bytes).data
            except RecordError as error:
                return error

        return _map_in_order(read, requests, self.options.num_connections)

    def read_tails(self, uris: Sequence[str], num_bytes: int) -> list[bytes | FetchError]:
        """Reads the last ``num_bytes`` of each object (less if it is shorter), at once, in order.

        Raises:
            OutageError: the storage refuses as a whole.
        """
        span = Span(-num_bytes)

        def read(uri: str) -> bytes | FetchError:
            try:
                return self._backend(uri).get(ReadRequest(uri), span=span).data
            except FetchError as error:
                return error

        return _map_in_order(read, uris, self.options.num_connections)

    def read_spans(self, uris: Sequence[str], spans: Sequence[Span]) -> list[bytes]:
        """Reads a range of bytes of each object, at once, in the given order.

        Raises:
            FetchError: an object is not there, or cannot be read.
            OutageError: the storage refuses as a whole.
        """

        def read(place: tuple[str, Span]) -> bytes:
            uri, span = place
            return self._backend(uri).get(ReadRequest(uri), span=span).data

        places = list(zip(uris, spans, strict=True))
        return _map_in_order(read, places, self.options.num_connections)

    def open(
        self,
        uri: str,
        *,
        etag: str | None = None,
        version: str | None = None,
        fetch_uri: str | None = None,
    ) -> BinaryIO:
        """Opens an object as a seekable file that reads ahead in blocks of 8 MiB.

        Every read may raise ``FetchError``, with ``error_type="SourceChanged"`` where the object is
        not, or no longer, the one of the etag or, on a disk, of the version.

        Args:
            uri: canonical URI.
            etag: the object must still be this one, where the storage knows etags.
            version: the file must still be this one; see :class:`ReadRequest`.
            fetch_uri: presigned URL that is fetched instead.
        """
        from effnet_batch.storage.local import open_local
        from effnet_batch.storage.ranged import open_ranged

        if scheme_of(uri) == LOCAL:
            return open_local(ReadRequest(uri, version=version))
        backend = self._backend(fetch_uri or uri)
        return cast("BinaryIO", open_ranged(backend, ReadRequest(uri, fetch_uri, etag)))

    def open_whole(self, request: ReadRequest, *, max_bytes: int) -> tuple[BinaryIO, int]:
        """Opens an object as a seekable file of this machine, for one that is read here and there.

        A local file is opened where it is, and every read may raise ``FetchError`` as with `open`;
        all else is first spooled to a temporary file, which is gone when it is closed.

        Args:
            request: what to read.
            max_bytes: over it the object is given up, before it is read.

        Returns:
            The file, and its size in bytes.
        """
        uri = request.uri
        stream = self.open(
            uri, etag=request.etag, version=request.version, fetch_uri=request.fetch_uri
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(stream)
            size_bytes = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if size_bytes > max_bytes:
                raise TooLargeError(
                    f"{uri} holds {size_bytes} bytes, over the limit of {max_bytes}"
                )
            if scheme_of(uri) != LOCAL:
                return spool_stream(stream), size_bytes
            stack.pop_all()
        return stream, size_bytes

    def info(self, uri: str) -> ObjectInfo:
        """Returns size, etag and mtime of an object."""
        return self._backend(uri).info(uri)

    def exists(self, uri: str) -> bool:
        """Tells whether there is an object of this name (a folder is none)."""
        try:
            self.info(uri)
        except FetchError as error:
            if error.error_type in ("FileNotFoundError", "NotADirectoryError", "IsADirectoryError"):
                return False
            raise
        return True

    def list(self, uri: str, recursive: bool = True) -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects in a folder or under a glob, or of the one object named.

        Nothing there yields nothing. A page has at most some thousand objects, so that a listing
        of any length needs little memory.

        Args:
            uri: folder, object, or glob (``*``, ``?`` and ``[…]`` in a name, ``**`` over folders).
            recursive: also what is in folders below; a glob decides that by itself.

        Raises:
            StorageError: it cannot be listed.
        """
        pages = self._backend(uri).list_pages(uri, recursive=recursive)
        yield from (page for page in pages if page)

    def write(self, uri: str, data: bytes) -> None:
        """Creates or replaces an object: readers see all of it or nothing of it."""
        self._backend(uri).write(uri, data)

    def create(self, uri: str, data: bytes) -> str | None:
        """Creates an object that does not exist yet and returns its version.

        Raises:
            FileExistsError: it exists.
        """
        return self._backend(uri).create(uri, data)

    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Replaces an object that is still at ``version`` and returns its new version.

        Raises:
            FileExistsError: somebody else changed or deleted it.
        """
        return self._backend(uri).replace(uri, data, version)

    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Returns the bytes of an object and the version that :meth:`replace` takes."""
        return self._backend(uri).read_with_version(uri)

    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes objects; those that do not exist are no error."""
        by_scheme: dict[str, list[str]] = {}
        for uri in uris:
            by_scheme.setdefault(scheme_of(uri), []).append(uri)
        for some in by_scheme.values():
            self._backend(some[0]).delete_many(some)

    def check_readable(self, uri: str) -> None:
        """Checks within seconds that something can be read at a URI, folder or glob.

        Raises:
            StorageError: it cannot; the message says why and what to do.
        """
        self._backend(uri).check_readable(uri)

    def check_writable(self, uri: str) -> None:
        """Checks within seconds that objects can be created below a URI, by creating one.

        Raises:
            StorageError: they cannot; the message says why and what to do.
        """
        self._backend(uri).check_writable(uri)

    def _backend(self, uri: str) -> Backend:
        key = (scheme_of(uri), self.options, self._environment)
        backend = _backends.get(key)
        if backend is None:
            with _lock:
                # Connections are opened with the environment of now, so they are known by it.
                self._environment = _digest_environment()
                key = (key[0], self.options, self._environment)
                backend = _backends.get(key) or _new_backend(key[0], self.options)
                _backends[key] = backend
        return backend


def _digest_environment() -> str:
    """Returns a digest of the variables that credentials come from."""
    environment = sorted(
        item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT_PREFIXES)
    )
    return hashlib.sha256(repr(environment).encode()).hexdigest()


def _map_in_order(
    function: Callable[[_Item], _Result], items: Sequence[_Item], num_threads: int
) -> list[_Result]:
    """Returns the results in order; the first exception stops the others and is raised."""
    if num_threads == 1 or len(items) <= 1:
        return [function(item) for item in items]
    results: dict[int, _Result] = {}
    indexes = iter(range(len(items)))
    has_failed = threading.Event()

    def work() -> None:
        for index in indexes:
            if has_failed.is_set():
                return
            try:
                results[index] = function(items[index])
            except BaseException:
                has_failed.set()
                raise

    # One future per thread and not per item, of which there are many small ones.
    pool = _pool(num_threads)
    futures = [pool.submit(work) for _ in range(min(num_threads, len(items)))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


def _pool(num_threads: int) -> ThreadPoolExecutor:
    with _lock:
        if num_threads not in _pools:
            _pools[num_threads] = ThreadPoolExecutor(num_threads, "storage")
        return _pools[num_threads]


def _new_backend(scheme: str, options: StorageOptions) -> Backend:
    # Imported here: botocore, s3fs and the rest cost half a second that `--help` must not pay.
    if scheme == LOCAL:
        from effnet_batch.storage.local import LocalBackend

        return LocalBackend()
    if scheme == S3:
        from effnet_batch.storage.s3 import S3Backend

        return S3Backend(options)
    if scheme in WEB_SCHEMES:
        from effnet_batch.storage.web import WebBackend

        return WebBackend(options)
    if scheme in AZURE_SCHEMES:
        from effnet_batch.storage.azure import AzureBackend

        return AzureBackend(scheme, options)
    if scheme == "hf":
        from effnet_batch.storage.hub import HubBackend

        return HubBackend(scheme, options)
    from effnet_batch.storage.google import GoogleBackend

    return GoogleBackend(scheme, options)
