"""S3 and what speaks its language.

Reads and listings go through :mod:`effnet_batch.storage.s3_client`, since there are many of them;
writes, of which there are few, through s3fs, which knows encryption and multipart uploads.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final
from xml.etree import ElementTree

import s3fs
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync

from effnet_batch.errors import FetchError, OutageError, StorageError
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
from effnet_batch.storage.s3_client import S3Client
from effnet_batch.storage.s3_listing import Listing, parse_listing, unquoted
from effnet_batch.storage.s3_refusals import Refusal, RefusedError
from effnet_batch.storage.s3_writer import new_writer
from effnet_batch.storage.transport import Response

ANSWER_SECONDS: Final = 30.0
"""How long the last answer of a bucket counts as a sign of life."""

_MAX_DELETES = 1000
_WRITE_PERMISSIONS = "s3:PutObject and s3:DeleteObject"


class S3Backend(Backend):
    """Reads from and writes to buckets."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._client = S3Client(options)
        self._lock = threading.Lock()
        self._writers: dict[bool, s3fs.S3FileSystem] = {}
        self._answered_at: dict[str, float] = {}

    def get(
        self, request: ReadRequest, *, span: Span | None = None, max_bytes: int | None = None
    ) -> Body:
        """Reads with one GET: no HEAD before it; If-Match where the etag is known."""
        bucket, key = split(request.uri)
        headers = {}
        if request.etag is not None:
            headers["If-Match"] = f'"{request.etag}"'
        if span is not None:
            headers["Range"] = span.header()
        response = self._client.send(
            "GET", bucket, key, uri=request.uri, headers=headers, max_bytes=max_bytes
        )
        if response.status in (200, 206):
            self._answered_at[bucket] = time.monotonic()
            return Body(response.data, _size_bytes(response), _etag(response))
        if response.status == 416 and span is not None:
            return Body(b"")  # wholly past the end, or the object is empty
        raise self._read_error(response, request.uri)

    def info(self, uri: str) -> ObjectInfo:
        """Returns what a HEAD request says."""
        bucket, key = split(uri)
        response = self._client.send("HEAD", bucket, key, uri=uri)
        if response.status != 200:
            # The answer to a HEAD has no body that says why; that to a GET has.
            self.get(ReadRequest(uri), span=Span(0, 1))
            raise self._read_error(response, uri)
        modified = response.headers.get("last-modified")
        mtime = parsedate_to_datetime(modified).astimezone(UTC) if modified else None
        return ObjectInfo(uri, _size_bytes(response), _etag(response), mtime)

    def list_pages(self, uri: str, *, recursive: bool) -> Iterator[list[ObjectInfo]]:
        """Yields pages of up to 1,000 objects; size, etag and mtime come from the listing itself.

        Raises:
            StorageError: the bucket cannot be listed.
        """
        bucket, key = split(uri)
        if has_wildcard(key):
            glob = Glob(key)
            for page in self._pages(uri, {"prefix": glob.prefix}):
                yield [each for each in page if glob.matches(split(each.uri)[1])]
            return
        folder = {"prefix": f"{key.rstrip('/')}/" if key else ""}
        num_found = 0
        for page in self._pages(uri, folder if recursive else {**folder, "delimiter": "/"}):
            num_found += len(page)
            yield page
        if num_found == 0 and key and not key.endswith("/"):
            found = self._list_once(uri, {"prefix": key, "max-keys": "1"})
            yield [each for each in found.objects(bucket) if each.uri == uri]

    def _pages(self, uri: str, query: Mapping[str, str]) -> Iterator[list[ObjectInfo]]:
        token: str | None = ""
        while token is not None:
            more = {"continuation-token": token} if token else {}
            found = self._list_once(uri, {**query, **more})
            yield found.objects(split(uri)[0])
            token = found.next_token

    def _list_once(self, uri: str, query: Mapping[str, str], *, is_quick: bool = False) -> Listing:
        """Sends one ListObjectsV2."""
        bucket, _ = split(uri)
        query = {"list-type": "2", "encoding-type": "url", **query}
        try:
            response = self._client.send("GET", bucket, uri=uri, query=query, is_quick=is_quick)
        except FetchError as error:
            raise self._unreachable(error) from None
        if response.status != 200:
            refusal = Refusal.of_response(response)
            told = self._outage(refusal, uri, verb="list", needed="s3:ListBucket")
            raise StorageError(str(told))
        try:
            return parse_listing(response.data)
        except ElementTree.ParseError as error:
            where = self._client.location(bucket).base_url
            raise StorageError(
                f"cannot list {uri}: {where} does not answer like S3 ({error}); check the endpoint"
            ) from None

    def write(self, uri: str, data: bytes) -> None:
        """Puts an object in one piece; s3fs makes one multipart upload of more than 100 MB."""
        bucket, key = split(uri)
        fs = self._writer()
        try:
            fs.pipe_file(f"{bucket}/{key}", data)
        except (OSError, BotoCoreError) as error:
            raise self._write_error(Refusal.of_exception(error), uri) from None

    def create(self, uri: str, data: bytes) -> str | None:
        """Puts an object with ``If-None-Match: *``."""
        bucket, key = split(uri)
        try:
            response = self._call("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except RefusedError as error:
            if error.refusal.status not in (409, 412):
                raise self._write_error(error.refusal, uri) from None
            if error.refusal.num_retries:
                # The answer to the first attempt may have been lost after the object was made.
                found, version = self.read_with_version(uri)
                if found == data:
                    return version
            raise FileExistsError(f"{uri} exists already") from None
        return unquoted(response["ETag"])

    def replace(self, uri: str, data: bytes, version: str) -> str:
        """Puts an object with ``If-Match``."""
        bucket, key = split(uri)
        match = f'"{version}"'
        try:
            response = self._call("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=match)
        except RefusedError as error:
            refusal = error.refusal
            if refusal.status not in (404, 409, 412) or refusal.concerns_bucket:
                raise self._write_error(refusal, uri) from None
            raise FileExistsError(f"{uri} was changed by somebody else") from None
        return unquoted(response["ETag"])

    def read_with_version(self, uri: str) -> tuple[bytes, str]:
        """Reads an object and its etag."""
        body = self.get(ReadRequest(uri))
        return body.data, body.etag or ""

    def delete_many(self, uris: Sequence[str]) -> None:
        """Deletes up to 1,000 objects per request."""
        by_bucket: dict[str, list[str]] = {}
        for bucket, key in map(split, uris):
            by_bucket.setdefault(bucket, []).append(key)
        for bucket, keys in by_bucket.items():
            for start in range(0, len(keys), _MAX_DELETES):
                self._delete(bucket, keys[start : start + _MAX_DELETES])

    def _delete(self, bucket: str, keys: Sequence[str]) -> None:
        batch = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            response = self._call("delete_objects", Bucket=bucket, Delete=batch)
        except RefusedError as error:
            raise self._write_error(error.refusal, f"s3://{bucket}/{keys[0]}") from None
        for each in response.get("Errors", []):
            refusal = Refusal(403, each.get("Code", ""), each.get("Message", ""))
            raise self._write_error(refusal, f"s3://{bucket}/{each.get('Key')}")

    def check_readable(self, uri: str) -> None:
        """Lists one key, or reads one byte where listing is not allowed."""
        bucket, key = split(uri)
        is_glob = has_wildcard(key)
        prefix = Glob(key).prefix if is_glob else key
        try:
            found = self._list_once(uri, {"prefix": prefix, "max-keys": "1"}, is_quick=True)
        except OutageError as error:
            raise StorageError(str(error)) from None
        except StorageError:
            if key and not is_glob and self._has_readable_object(bucket, key, uri):
                return
            raise
        if found.is_empty:
            raise StorageError(f"{uri} does not exist, and nothing below it; check the spelling")

    def _has_readable_object(self, bucket: str, key: str, uri: str) -> bool:
        headers = {"Range": "bytes=0-0"}
        try:
            response = self._client.send(
                "GET", bucket, key, uri=uri, headers=headers, is_quick=True
            )
        except FetchError:
            return False
        return response.status in (200, 206, 416)

    def check_writable(self, uri: str) -> None:
        """Creates a small object and deletes it; a missing bucket is never created by that."""
        bucket, key = split(uri)
        query = {"list-type": "2", "max-keys": "1", "prefix": key}
        name = f"{key.rstrip('/')}/" if key else ""
        name += f"_probe-{secrets.token_hex(8)}"
        try:
            # First, since some servers create a missing bucket on the first write into it.
            response = self._client.send("GET", bucket, uri=uri, query=query, is_quick=True)
            refusal = Refusal.of_response(response)
            if refusal.status != 200 and refusal.code != "AccessDenied":
                raise self._outage(refusal, uri, verb="reach", needed="s3:ListBucket")
            self._probe("put_object", uri, "s3:PutObject", Bucket=bucket, Key=name, Body=b"probe")
            self._probe("delete_object", uri, "s3:DeleteObject", Bucket=bucket, Key=name)
        except OutageError as error:
            raise StorageError(str(error)) from None
        except FetchError as error:
            raise self._unreachable(error) from None

    def _probe(self, operation: str, uri: str, needed: str, **arguments: Any) -> None:
        try:
            self._call(operation, is_quick=True, **arguments)
        except RefusedError as error:
            raise self._outage(error.refusal, uri, verb="write to", needed=needed) from None

    def _unreachable(self, error: FetchError) -> StorageError:
        where = "the endpoint" if self._options.endpoint_url else "AWS_ENDPOINT_URL"
        return StorageError(f"{error}; check {where}, the network and the proxy settings")

    def _read_error(self, response: Response, uri: str) -> Exception:
        refusal = Refusal.of_response(response)
        outage = self._outage(refusal, uri, verb="read", needed="s3:GetObject")
        if refusal.concerns_bucket:
            return outage
        kind, is_transient = refusal.code or "HTTPError", False
        match refusal.status:
            case 404:
                kind, what = "FileNotFoundError", "does not exist"
            case 412:
                return changed_error(uri, str(refusal))
            case 403 if refusal.code == "InvalidObjectState":
                what = "is archived and must be restored first"
            case 401 | 403:
                if not self._is_answering(uri):
                    return outage
                # S3 also answers so for a missing object, to those who may not list.
                kind, what, is_transient = "PermissionError", "may not be read", True
            case _:
                what, is_transient = "cannot be read", response.is_retryable
        return FetchError(f"{uri} {what} ({refusal})", error_type=kind, is_transient=is_transient)

    def _is_answering(self, uri: str) -> bool:
        """Tells whether the bucket as a whole still lets us in, asking at most every 30 seconds."""
        bucket, _ = split(uri)
        if time.monotonic() - self._answered_at.get(bucket, -ANSWER_SECONDS) < ANSWER_SECONDS:
            return True
        response = self._client.send("HEAD", bucket, uri=uri, is_quick=True)
        if response.status == 200:
            self._answered_at[bucket] = time.monotonic()
        return response.status == 200

    def _outage(self, refusal: Refusal, uri: str, *, verb: str, needed: str) -> OutageError:
        location = self._client.location(split(uri)[0])
        return refusal.outage(uri, location, verb=verb, needed=needed)

    def _write_error(self, refusal: Refusal, uri: str) -> OutageError:
        return self._outage(refusal, uri, verb="write", needed=_WRITE_PERMISSIONS)

    def _writer(self, *, is_quick: bool = False) -> s3fs.S3FileSystem:
        with self._lock:
            if is_quick not in self._writers:
                self._writers[is_quick] = new_writer(self._options, is_quick=is_quick)
            return self._writers[is_quick]

    def _call(self, operation: str, *, is_quick: bool = False, **arguments: Any) -> Any:
        fs = self._writer(is_quick=is_quick)
        try:
            return sync(fs.loop, fs._call_s3, operation, **arguments)
        except (OSError, BotoCoreError) as error:
            raise RefusedError(Refusal.of_exception(error)) from None


def split(uri: str) -> tuple[str, str]:
    """Returns bucket and key of a canonical URI; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _etag(response: Response) -> str | None:
    return unquoted(response.headers.get("etag", "")) or None


def _size_bytes(response: Response) -> int | None:
    total = response.headers.get("content-range", "").rpartition("/")[2]
    if response.status == 200:
        total = response.headers.get("content-length", "")
    return int(total) if total.isdigit() else None
