"""Objects behind http:// and https:// URLs; read only, and not from private networks.

A list of URLs may come from anybody. Were it followed blindly, it could read the metadata service
of a cloud machine, which hands out credentials, or services that trust their own network. So every
host is looked up first, its addresses are checked, and the connection goes to the very address
that was checked (a name that answers differently the second time gains nothing). Redirects are
followed by the same rule.
"""

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from effnet_batch.errors import FetchError, StorageError
from effnet_batch.storage.hosts import is_public
from effnet_batch.storage.objects import (
    Backend,
    Body,
    ObjectInfo,
    ReadRequest,
    Span,
    StorageOptions,
    changed_error,
)
from effnet_batch.storage.transport import Response, Target, Transport
from effnet_batch.storage.uris import redact, split_signature

MAX_REDIRECTS: Final = 5
MAX_SECONDS: Final = 300.0
"""How long a body may take: strangers' servers may drip for ever."""

_LOOKUP_SECONDS = 60.0
_MAX_BYTES_WITHOUT_RANGES = 256 << 20
_SAFE = "/%:@!$&'()*+,;=~-._?"


class WebBackend(Backend):
    """Reads from web servers."""

    def __init__(self, options: StorageOptions) -> None:
        self._allow_private_hosts = options.allow_private_hosts
        self._transport = Transport(options)
        self._looked_up: dict[tuple[str, int], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads ``fetch_uri``, or ``uri`` if there is none."""
        headers = {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = span.header()
        if request.etag is not None and not request.etag.startswith("W/"):
            headers["If-Match"] = f'"{request.etag}"'  # weak tags never match by the standard
        # Not every server knows ranges; one that sends the whole object must not be cut short.
        limit = _MAX_BYTES_WITHOUT_RANGES if span is not None else max_bytes
        response = self._send("GET", request, headers, max_bytes=limit)
        if span is not None and response.status == 416:
            return Body(b"")
        if response.status not in (200, 206):
            raise _error(response, request.uri)
        data, size = response.data, _size_bytes(response)
        if span is not None and response.status == 200:
            data = data[span.start : span.stop]
        return Body(data, size, response.headers.get("etag", "").strip('"') or None)

    def info(self, uri: str) -> ObjectInfo:
        """Returns what a HEAD request says."""
        response = self._send("HEAD", ReadRequest(uri), {"Accept-Encoding": "identity"})
        if response.status != 200:
            raise _error(response, uri)
        modified = response.headers.get("last-modified")
        try:
            mtime = parsedate_to_datetime(modified).astimezone(UTC) if modified else None
        except ValueError:
            mtime = None
        etag = response.headers.get("etag", "").strip('"') or None
        return ObjectInfo(uri, _size_bytes(response), etag, mtime)

    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields the one object; web servers have no folders."""
        yield [ObjectInfo(uri)]

    def write(self, uri: str, data: bytes) -> NoReturn:
        """Refuses: this room only reads from web servers."""
        raise StorageError(f"{uri} cannot be written to; write to a folder, s3://, gs:// or az://")

    def create(self, uri: str, data: bytes) -> NoReturn:
        """Refuses."""
        self.write(uri, data)

    def replace(self, uri: str, data: bytes, version: str) -> NoReturn:
        """Refuses."""
        self.write(uri, data)

    def read_with_version(self, uri: str) -> NoReturn:
        """Refuses."""
        self.write(uri, b"")

    def delete_many(self, uris: Sequence[str]) -> None:
        """Refuses."""
        for uri in uris:
            self.write(uri, b"")

    def check_readable(self, uri: str) -> None:
        """Asks for the first byte."""
        headers = {"Range": "bytes=0-0"}
        try:
            response = self._send("GET", ReadRequest(uri), headers, max_bytes=None, is_quick=True)
            if response.status not in (200, 206, 416):
                raise _error(response, uri)
        except FetchError as error:
            raise StorageError(str(error)) from None

    def check_writable(self, uri: str) -> None:
        """Refuses."""
        self.write(uri, b"")

    def _send(
        self,
        method: str,
        request: ReadRequest,
        headers: Mapping[str, str],
        *,
        max_bytes: int | None = None,
        is_quick: bool = False,
    ) -> Response:
        url = request.fetch_uri or request.uri
        for _ in range(MAX_REDIRECTS + 1):
            target, host = self._target(url, request.uri)
            response = self._transport.send(
                method,
                partial(_prepared, target, {"Host": host, **headers}),
                uri=request.uri,
                max_bytes=max_bytes,
                max_seconds=MAX_SECONDS,
                is_quick=is_quick,
            )
            location = response.headers.get("location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            url = urljoin(url, location)
        raise FetchError(
            f"cannot read {request.uri}: more than {MAX_REDIRECTS} redirects",
            error_type="TooManyRedirectsError",
            is_transient=False,
        )

    def _target(self, url: str, uri: str) -> tuple[Target, str]:
        """Returns the checked address for a URL, and the value of the header ``Host``."""
        try:
            parts = urlsplit(url)
            name, port = parts.hostname, parts.port
        except ValueError as error:
            raise _refused(uri, f"not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not name or "@" in parts.netloc:
            raise _refused(uri, "it leads to what is not a plain http or https URL")
        try:
            name = name.encode("idna").decode() if not name.isascii() else name
        except UnicodeError:
            raise _refused(uri, f"{name!r} is not a host name") from None
        port = port or (443 if parts.scheme == "https" else 80)
        path = quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            path += "?" + quote(parts.query, safe=_SAFE)
        # A proxy looks names up by itself and decides by its own rules what may be reached; here
        # only addresses and the names that we can look up are checked.
        if Transport.proxy_of(f"{parts.scheme}://{parts.netloc}"):
            self._check_behind_proxy(name, port, uri)
            return Target(parts.scheme, name, port, path), parts.netloc
        return Target(parts.scheme, self._look_up(name, port, uri), port, path, name), parts.netloc

    def _look_up(self, name: str, port: int, uri: str) -> str:
        now = time.monotonic()
        known = self._looked_up.get((name, port))
        if known is not None and now - known[0] < _LOOKUP_SECONDS:
            return known[1]
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError(
                f"cannot read {uri}: the name {name!r} cannot be resolved: {error}",
                error_type="NameResolutionError",
            ) from None
        addresses = [str(each[4][0]) for each in found]
        self._check_addresses(addresses, name, uri)
        with self._lock:
            if len(self._looked_up) > 10_000:
                self._looked_up.clear()
            self._looked_up[name, port] = (now, addresses[0])
        return addresses[0]

    def _check_behind_proxy(self, name: str, port: int, uri: str) -> None:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        self._check_addresses([str(each[4][0]) for each in found], name, uri)

    def _check_addresses(self, addresses: Sequence[str], name: str, uri: str) -> None:
        if self._allow_private_hosts:
            return
        for address in addresses:
            if not is_public(address):
                raise _refused(
                    uri,
                    f"the host {name!r} ({address}) is loopback, link-local or private; "
                    "--allow-private-hosts permits it",
                )


def _prepared(target: Target, headers: Mapping[str, str]) -> tuple[Target, Mapping[str, str]]:
    return target, headers


def _refused(uri: str, reason: str) -> FetchError:
    return FetchError(
        redact(f"refused to read {uri}: {reason}"),
        error_type="RefusedHostError",
        is_transient=False,
    )


def _size_bytes(response: Response) -> int | None:
    total = response.headers.get("content-range", "").rpartition("/")[2]
    if not total and response.status == 200:
        total = response.headers.get("content-length", "")
    return int(total) if total.isdigit() else None


def _error(response: Response, uri: str) -> FetchError:
    shown = redact(split_signature(uri)[0])
    match response.status:
        case 404 | 410:
            kind, what, is_transient = "FileNotFoundError", "does not exist", False
        case 401 | 403:
            # A list whose signatures have run out is an outage, one forbidden image is not.
            kind, what, is_transient = "PermissionError", "is forbidden", True
        case 412:
            return changed_error(shown, f"HTTP status {response.status}")
        case _:
            kind, what, is_transient = "HTTPError", "cannot be read", True
    return FetchError(
        f"{shown} {what} (HTTP status {response.status})",
        error_type=kind,
        is_transient=is_transient,
    )
