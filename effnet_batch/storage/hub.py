"""Repositories of the Hugging Face Hub; read only.

Every write would be a commit, and a lock's heartbeat one every ten seconds. Listings go through
huggingface_hub, reads through our own connections: with its filesystem each would be several
requests to a service that counts them, and would not notice that a file was changed.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from effnet_batch.errors import StorageError
from effnet_batch.storage.cloud import CloudBackend, Refusal, import_package
from effnet_batch.storage.objects import Body, ObjectInfo, Span, StorageOptions
from effnet_batch.storage.transport import Response, Target, Transport

MAX_REDIRECTS: Final = 5

_PAGE_SIZE = 1000
_URI = re.compile(
    r"hf://(?P<root>(?:(?P<type>datasets|spaces|models)/)?(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?)(?:/(?P<path>.*))?"
)


class _RefusedError(Exception):
    """What the Hub answered. Never leaves this module."""

    def __init__(self, response: Response) -> None:
        said = response.headers.get("x-error-message") or f"HTTP status {response.status}"
        super().__init__(said)
        self.status = response.status


class HubBackend(CloudBackend):
    """Reads from ``hf://[datasets/]owner/name[@revision]/path``."""

    BUCKET = "repository or revision"
    ADDRESS = "HF_ENDPOINT"
    NO_CREDENTIALS = (
        "the repository does not exist, or it is private and the credentials do not open it; check "
        "its name and HF_TOKEN"
    )
    NO_PERMISSION = "no permission; accept the repository's terms on its page, and check HF_TOKEN"

    def __init__(self, scheme: str, options: StorageOptions) -> None:
        super().__init__(scheme, options)
        package = import_package("huggingface_hub", scheme, "hub")
        errors = import_package("huggingface_hub.errors", scheme, "hub")
        self.ERRORS = (*CloudBackend.ERRORS, _RefusedError, errors.HTTPError)
        self._transport = Transport(options)
        self._api = package.HfApi()
        self._token = package.get_token()
        self._missing_path = errors.EntryNotFoundError

    def _endpoint(self) -> str:
        return str(self._api.endpoint)

    def _get(
        self, bucket: str, key: str, span: Span | None, etag: str | None, max_bytes: int | None
    ) -> Body:
        headers = {} if span is None else {"Range": span.header()}
        limit = max_bytes if span is None else None
        response, found, size = self._send("GET", bucket, key, headers, max_bytes=limit)
        if response.status == 416 and span is not None:
            return Body(b"", size, found)  # past the end, or the file is empty
        if response.status not in (200, 206):
            raise _RefusedError(response)
        data = response.data
        if span is not None and response.status == 200:
            data = data[span.start : span.stop]
        return Body(data, size, found)

    def _stat(self, bucket: str, key: str) -> ObjectInfo:
        response, etag, size = self._send("HEAD", bucket, key, {})
        if response.status != 200:
            raise _RefusedError(response)
        return ObjectInfo(self._uri(bucket, key), size, etag)

    def _send(
        self,
        method: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        *,
        max_bytes: int | None = None,
    ) -> tuple[Response, str | None, int | None]:
        """Follows redirects; returns the last answer, and the file's etag and size.

        A large file lies on another server, whose etag is not the Hub's.
        """
        uri = self._uri(bucket, key)
        match = self._match(uri)
        kind = f"{match['type']}/" if match["type"] in ("datasets", "spaces") else ""
        revision = quote(match["revision"] or "main", safe="")
        origin = self._endpoint()
        url = f"{origin}/{kind}{match['repo']}/resolve/{revision}/{quote(key)}"
        etag = size = None
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            asked = {"Accept-Encoding": "identity", **headers}
            if self._token and parts.netloc == urlsplit(origin).netloc:
                asked["Authorization"] = f"Bearer {self._token}"
            response = self._transport.send(
                method, partial(_prepared, parts, asked), uri=uri, max_bytes=max_bytes
            )
            linked = response.headers.get("x-linked-etag")
            etag = etag or (_bare(linked) if linked else None)
            size = size or _number(response.headers.get("x-linked-size", ""))
            location = response.headers.get("location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                break
            url = urljoin(url, location)
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if not total and response.status == 200:
            total = response.headers.get("content-length", "")
        found = response.headers.get("etag")
        return response, etag or (_bare(found) if found else None), size or _number(total)

    def _pages(
        self, bucket: str, prefix: str, *, recursive: bool = True
    ) -> Iterator[list[ObjectInfo]]:
        match = self._match(self._uri(bucket, ""))
        folder = prefix.rpartition("/")[0]
        tree = iter(
            self._api.list_repo_tree(
                match["repo"],
                folder or None,
                recursive=recursive,
                revision=match["revision"],
                repo_type=(match["type"] or "models").removesuffix("s"),
            )
        )
        try:
            while page := list(islice(tree, _PAGE_SIZE)):
                yield [
                    self._info(bucket, each)
                    for each in page
                    if hasattr(each, "blob_id") and each.path.startswith(prefix)
                ]
        except self._missing_path:
            pass
        yield []

    def _info(self, bucket: str, found: Any) -> ObjectInfo:
        etag = found.lfs.sha256 if found.lfs else found.blob_id
        return ObjectInfo(self._uri(bucket, found.path), found.size, etag)

    def _refusal(self, error: BaseException) -> Refusal:
        if isinstance(error, _RefusedError):
            return Refusal(error.status, str(error))
        status: int = getattr(getattr(error, "response", None), "status_code", 0)
        return Refusal(status, str(error).strip().partition("\n")[0])

    def _match(self, uri: str) -> re.Match[str]:
        match = _URI.fullmatch(uri)
        if match is None:
            raise StorageError(
                f"{uri} must have the form hf://[datasets/]owner/name[@revision]/path"
            )
        return match

    def _split(self, uri: str) -> tuple[str, str]:
        match = self._match(uri)
        return match["root"], match["path"] or ""

    def _put(self, bucket: str, key: str, data: bytes) -> NoReturn:
        self._refuse(self._uri(bucket, key))

    def _put_if(self, bucket: str, key: str, data: bytes, version: str | None) -> NoReturn:
        self._refuse(self._uri(bucket, key))

    def _delete(self, bucket: str, key: str) -> NoReturn:
        self._refuse(self._uri(bucket, key))

    def _refuse(self, uri: str) -> NoReturn:
        raise StorageError(f"{uri} cannot be written to; write to a folder, s3://, gs:// or az://")


def _prepared(parts: SplitResult, headers: Mapping[str, str]) -> tuple[Target, Mapping[str, str]]:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return Target(parts.scheme, parts.hostname or "", port, path), headers


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
