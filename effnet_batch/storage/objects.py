"""What the storage room takes and gives, and what one kind of storage must be able to do."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from effnet_batch.errors import FetchError


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How storage is reached. Holds no secret: credentials come from each process's environment."""

    requester_pays: bool = False
    """S3: pay for the requests and traffic on somebody else's bucket."""

    kms_key_id: str | None = None
    """S3: encrypt what is written with this KMS key (SSE-KMS)."""

    max_requests_per_second: float | None = None
    """Upper bound on the reads that this process starts each second from one kind of storage."""

    allow_private_hosts: bool = False
    """HTTP: also read from loopback, link-local and private addresses."""

    num_attempts: int = 5
    """How often a request is tried before its failure counts."""

    profile: str | None = None
    """S3: profile of the AWS configuration; ``AWS_PROFILE`` by default."""

    endpoint_url: str | None = None
    """S3: server other than AWS; ``AWS_ENDPOINT_URL`` by default."""

    anonymous: bool = False
    """S3: send no credentials, for public buckets."""

    num_connections: int = 16
    """Reads under way at once in this process."""

    connect_timeout_seconds: float = 10.0
    """How long a connection may take to open."""

    read_timeout_seconds: float = 60.0
    """How long a server may say nothing before the request is tried again."""

    def __post_init__(self) -> None:
        for name in ("num_attempts", "num_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("connect_timeout_seconds", "read_timeout_seconds", "max_requests_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says about one object. What the storage does not say is None."""

    uri: str
    """Canonical URI."""

    size_bytes: int | None = None
    etag: str | None = None
    """Without quotes."""

    mtime: datetime | None = None
    """When it was last written; time zone aware, UTC."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One object to read."""

    uri: str
    """Canonical URI; the only one that messages name."""

    fetch_uri: str | None = None
    """Presigned URL that is fetched instead; never stored, logged or shown."""

    etag: str | None = None
    """The object must still be this one (If-Match), where the storage can tell."""

    version: str | None = None
    """A local file must still be this one: its mtime in microseconds and size, ``"mtime-size"``."""


def changed_error(uri: str, reason: str = "") -> FetchError:
    """Returns the error of an object that is not the version that was listed.

    Args:
        uri: as it may be shown.
        reason: what the storage answered.
    """
    answer = f" ({reason})" if reason else ""
    return FetchError(
        f"{uri} was changed since it was listed{answer}; run with --update to take in the new one",
        error_type="SourceChanged",
        is_transient=False,
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes: ``stop`` exclusive, or the last ``-start`` bytes if ``start`` is negative.

    A range past the end is cut; one that lies wholly past the end is empty.
    """

    start: int
    stop: int | None = None

    def header(self) -> str:
        """Returns the value of the HTTP header ``Range``."""
        if self.start < 0:
            return f"bytes={self.start}"
        return f"bytes={self.start}-{'' if self.stop is None else self.stop - 1}"


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of an object, or of a part of it."""

    data: bytes
    size_bytes: int | None = None
    """Size of the whole object, where it is known."""

    etag: str | None = None
    """Without quotes."""


class Backend(ABC):
    """One kind of storage. All methods are called from several threads at once.

    Reads raise :class:`~effnet_batch.errors.FetchError` for what concerns one object,
    :class:`~effnet_batch.errors.TooLargeError`, and :class:`~effnet_batch.errors.OutageError`
    where the storage as a whole refuses; writes raise ``OutageError``.
    """

    @abstractmethod
    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads an object, or a range of it, with one request that is repeated while it fails."""

    @abstractmethod
    def info(self, uri: str) -> ObjectInfo:
        """Returns what the storage knows about an object, without its bytes."""

    @abstractmethod
    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects in a folder or under a glob, or of the one object named."""

    @abstractmethod
    def write(self, uri: str, data: bytes) -> None:
        """Creates or replaces an object, all of it or nothing."""

    @abstractmethod
    def create(self, uri: str, data: bytes) -> str | None:
        """Creates an object that does not exist yet, else raises ``FileExistsError``."""

    @abstractmethod
    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Replaces an object that is still at ``version``, else raises ``FileExistsError``."""

    @abstractmethod
    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Reads an object and the version that :meth:`replace` takes."""

    @abstractmethod
    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes objects; those that do not exist are no error."""

    @abstractmethod
    def check_readable(self, uri: str) -> None:
        """Raises ``StorageError`` unless something can be read at ``uri``; quick."""

    @abstractmethod
    def check_writable(self, uri: str) -> None:
        """Raises ``StorageError`` unless objects can be created below ``uri``; quick."""
