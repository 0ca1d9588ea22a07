"""What Google's, Azure's and Hugging Face's storage have in common; each has a room of its own.

Their packages carry the requests, with the credentials that they find in the environment and with
their own repetitions. What they raise becomes our errors here.
"""

import contextlib
import importlib
import logging
import secrets
import socket
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import urlsplit

from effnet_batch.errors import FetchError, OutageError, StorageError, TooLargeError
from effnet_batch.storage.globs import Glob, has_wildcard
from effnet_batch.storage.objects import (
    Backend,
    Body,
    ObjectInfo,
    ReadRequest,
    Span,
    StorageOptions,
    changed_error,
)
from effnet_batch.storage.pacing import RateLimiter
from effnet_batch.storage.transport import Transport
from effnet_batch.storage.uris import redact

ANSWER_SECONDS: Final = 30.0
"""How long the last answer of a bucket counts as a sign of life."""

_STATUS_OK = 200
_QUICK_SECONDS = 5.0

for _name in ("gcsfs", "google", "azure"):
    # They log what they raise as well; without a handler of the user's that goes to the console.
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Refusal(NamedTuple):
    """What a service, or the way there, answered."""

    status: int
    """Of HTTP; 0 if there was no answer."""

    message: str


class CloudBackend(Backend):
    """Buckets behind a package of their own.

    Args:
        scheme: of the URIs.
        options: how storage is reached; what only concerns S3 is left aside.
    """

    ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError)
    """What the package raises."""

    BUCKET: ClassVar[str] = "bucket"
    """What the service calls the first part of a path."""

    ADDRESS: ClassVar[str]
    """The variable that says where the service is."""

    NO_CREDENTIALS: ClassVar[str]
    """What to do where credentials are missing or refused."""

    NO_PERMISSION: ClassVar[str]
    """What to do where they do not suffice."""

    def __init__(self, scheme: str, options: StorageOptions) -> None:
        self._scheme = scheme
        self._limiter = RateLimiter(options.max_requests_per_second)
        self._answered_at: dict[str, float] = {}

    @abstractmethod
    def _endpoint(self) -> str:
        """Returns the URL of the service."""

    @abstractmethod
    def _get(
        self, bucket: str, key: str, span: Span | None, etag: str | None, max_bytes: int | None
    ) -> Body: ...

    @abstractmethod
    def _stat(self, bucket: str, key: str) -> ObjectInfo: ...

    @abstractmethod
    def _pages(
        self, bucket: str, prefix: str, *, recursive: bool = True
    ) -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects whose keys begin with ``prefix``, at least one page."""

    @abstractmethod
    def _put(self, bucket: str, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _put_if(self, bucket: str, key: str, data: bytes, version: str | None) -> str:
        """Puts an object that is still at ``version``, or that does not exist (None).

        Raises:
            FileExistsError: it is at another version, or exists.
        """

    @abstractmethod
    def _delete(self, bucket: str, key: str) -> None: ...

    @abstractmethod
    def _refusal(self, error: BaseException) -> Refusal: ...

    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads an object; one that is not of the etag any more is refused."""
        self._limiter.wait()
        bucket, key = self._split(request.uri)
        try:
            body = self._get(bucket, key, span, request.etag, max_bytes)
        except self.ERRORS as error:
            raise self._read_error(error, request.uri) from None
        self._answered_at[bucket] = time.monotonic()
        if request.etag is not None and body.etag != request.etag:
            raise changed_error(request.uri)
        if span is None and max_bytes is not None and (body.size_bytes or 0) > max_bytes:
            raise TooLargeError(
                f"{request.uri} holds {body.size_bytes} bytes, over the limit of {max_bytes}"
            )
        return body

    def info(self, uri: str) -> ObjectInfo:
        """Returns what the service knows about an object."""
        try:
            return self._stat(*self._split(uri))
        except self.ERRORS as error:
            raise self._read_error(error, uri) from None

    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields the service's pages.

        Raises:
            StorageError: the bucket cannot be listed.
        """
        bucket, key = self._split(uri)
        glob = Glob(key) if has_wildcard(key) else None
        num_found = 0
        try:
            if glob is not None:
                for page in self._pages(bucket, glob.prefix):
                    yield [each for each in page if glob.matches(self._split(each.uri)[1])]
                return
            folder = f"{key.rstrip('/')}/" if key else ""
            for page in self._pages(bucket, folder, recursive=recursive):
                num_found += len(page)
                yield page
            if num_found == 0 and key and not key.endswith("/"):
                page = next(self._pages(bucket, key, recursive=False))
                yield [each for each in page if each.uri == uri]
        except self.ERRORS as error:
            raise StorageError(self._told(error, uri, "list")) from None

    def write(self, uri: str, data: bytes) -> None:
        """Puts an object, all of it or nothing."""
        with self._writing(uri):
            self._put(*self._split(uri), data)

    def create(self, uri: str, data: bytes) -> str:
        """Puts an object if there is none."""
        try:
            with self._writing(uri):
                return self._put_if(*self._split(uri), data, None)
        except FileExistsError:
            # The package may have sent it again, since the answer to the first was lost.
            with contextlib.suppress(FetchError):
                found, version = self.read_with_version(uri)
                if found == data:
                    return version
            raise FileExistsError(f"{uri} exists already") from None

    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Puts an object that is still at ``version``."""
        try:
            with self._writing(uri):
                return self._put_if(*self._split(uri), data, version)
        except FileExistsError:
            raise FileExistsError(f"{uri} was changed by somebody else") from None

    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Reads an object and its etag."""
        body = self.get(ReadRequest(uri))
        return body.data, body.etag or ""

    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes objects."""
        for uri in uris:
            bucket, key = self._split(uri)
            try:
                self._delete(bucket, key)
            except self.ERRORS as error:
                if self._refusal(error).status != 404 or self._status(bucket) == 404:
                    raise OutageError(self._told(error, uri, "delete")) from None

    def check_readable(self, uri: str) -> None:
        """Lists one page, or asks for the object where listing is not allowed."""
        self._check_answers(uri)
        bucket, key = self._split(uri)
        is_glob = has_wildcard(key)
        try:
            pages = self._pages(bucket, Glob(key).prefix if is_glob else key)
            is_empty = not any(pages)
        except self.ERRORS as error:
            if self._refusal(error).status == 403 and key and not is_glob:
                with contextlib.suppress(FetchError, OutageError):
                    self.info(uri)
                    return
            raise StorageError(self._told(error, uri, "read")) from None
        if is_empty:
            raise StorageError(f"{uri} does not exist, and nothing below it; check the spelling")

    def check_writable(self, uri: str) -> None:
        """Creates a small object and deletes it."""
        self._check_answers(uri)
        probe = f"{uri.rstrip('/')}/_probe-{secrets.token_hex(8)}"
        try:
            self.write(probe, b"probe")
            self.delete_many([probe])
        except OutageError as error:
            raise StorageError(str(error)) from None

    def _check_answers(self, uri: str) -> None:
        """Refuses a service that does not answer, which the packages try for a minute and more."""
        parts = urlsplit(self._endpoint())
        if Transport.proxy_of(self._endpoint()):
            return
        server = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        try:
            socket.create_connection(server, timeout=_QUICK_SECONDS).close()
        except OSError as error:
            raise StorageError(
                f"cannot reach {uri}: {parts.scheme}://{parts.netloc} does not answer ({error}); "
                f"check {self.ADDRESS}, the network and the proxy settings"
            ) from None

    @contextlib.contextmanager
    def _writing(self, uri: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except self.ERRORS as error:
            if self._refusal(error).status == 412:
                raise FileExistsError(uri) from None
            raise OutageError(self._told(error, uri, "write")) from None

    def _read_error(self, error: Exception, uri: str) -> Exception:
        bucket, _ = self._split(uri)
        status, message = self._refusal(error)
        kind, is_transient = type(error).__name__, True
        match status:
            case 401:
                return OutageError(self._told(error, uri, "read"))
            case 404 if self._status(bucket) == 404:
                return OutageError(self._told(error, uri, "read"))
            case 404:
                kind, is_transient = "FileNotFoundError", False
                message = "it does not exist"
            case 403 if self._status(bucket) != _STATUS_OK:
                return OutageError(self._told(error, uri, "read"))
            case 403:
                kind = "PermissionError"
            case 412:
                return changed_error(uri)
        return FetchError(
            redact(f"cannot read {uri}: {message}"), error_type=kind, is_transient=is_transient
        )

    def _status(self, bucket: str) -> int:
        """Returns what the bucket as a whole answers, asking at most every 30 s while it does."""
        if time.monotonic() - self._answered_at.get(bucket, -ANSWER_SECONDS) < ANSWER_SECONDS:
            return _STATUS_OK
        try:
            next(self._pages(bucket, "", recursive=False))
        except self.ERRORS as error:
            return self._refusal(error).status
        self._answered_at[bucket] = time.monotonic()
        return _STATUS_OK

    def _told(self, error: BaseException, uri: str, verb: str) -> str:
        status, message = self._refusal(error)
        match status:
            case 401:
                reason = self.NO_CREDENTIALS
            case 403:
                reason = self.NO_PERMISSION
            case 404:
                reason = f"the {self.BUCKET} does not exist; create it or correct its name"
            case _:
                reason = ""
        return redact(f"cannot {verb} {uri}: " + (f"{reason} ({message})" if reason else message))

    def _split(self, uri: str) -> tuple[str, str]:
        bucket, _, key = uri.removeprefix(f"{self._scheme}://").partition("/")
        return bucket, key

    def _uri(self, bucket: str, key: str) -> str:
        return f"{self._scheme}://{bucket}/{key}"


def import_package(name: str, scheme: str, extra: str) -> Any:
    """Returns the module of a package that an extra brings.

    Raises:
        StorageError: it is not installed.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except ImportError:
        raise StorageError(
            f"{scheme}:// needs the package {package}; install it with "
            f"pip install 'effnet-batch[{extra}]'"
        ) from None
