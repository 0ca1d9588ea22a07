"""Google Cloud Storage: its JSON API, through the connections and credentials of gcsfs."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fsspec.asyn import sync

from effnet_batch.storage.cloud import CloudBackend, Refusal, import_package
from effnet_batch.storage.objects import Body, ObjectInfo, Span, StorageOptions

_PAGE_SIZE = 1000
_BOUNDARY = "==effnet-batch=="


class GoogleBackend(CloudBackend):
    """Reads from and writes to buckets of Google; an object's generation serves as its etag."""

    ADDRESS = "STORAGE_EMULATOR_HOST"
    NO_CREDENTIALS = (
        "no Google credentials were found, or they are not accepted; run `gcloud auth "
        "application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
    )
    NO_PERMISSION = (
        "no permission; the credentials need storage.objects.list and get, and create and delete "
        "to write"
    )

    def __init__(self, scheme: str, options: StorageOptions) -> None:
        super().__init__(scheme, options)
        # Not gcsfs.GCSFileSystem: that asks a gRPC service for the kind of bucket at every call.
        core = import_package("gcsfs.core", scheme, "gcs")
        retry = import_package("gcsfs.retry", scheme, "gcs")
        import aiohttp
        from google.auth.exceptions import GoogleAuthError

        self.ERRORS = (
            *CloudBackend.ERRORS,
            retry.HttpError,
            aiohttp.ClientError,
            GoogleAuthError,
        )
        self._auth_error = GoogleAuthError
        self._fs = core.GCSFileSystem(
            # An emulator wants no credentials, and looking for some takes 15 seconds.
            token="anon" if os.environ.get(self.ADDRESS) else None,
            skip_instance_cache=True,
            use_listings_cache=False,
            requests_timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=options.connect_timeout_seconds,
                sock_read=options.read_timeout_seconds,
            ),
        )

    def _endpoint(self) -> str:
        return str(self._fs._location)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return sync(self._fs.loop, self._fs._call, method, path, **arguments)

    def _get(
        self, bucket: str, key: str, span: Span | None, etag: str | None, max_bytes: int | None
    ) -> Body:
        if span is None and max_bytes is not None:
            span = Span(0, max_bytes + 1)  # what is too large is not read to its end
        headers = {} if span is None else {"Range": span.header()}
        try:
            answer, data = self._call("GET", self._fs.url(f"{bucket}/{key}"), headers=headers)
        except self.ERRORS as error:
            if self._refusal(error).status == 416:  # past the end, or the object is empty
                found = self._stat(bucket, key)
                return Body(b"", found.size_bytes, found.etag)
            raise
        total = answer.get("Content-Range", "").rpartition("/")[2]
        size = int(total) if total.isdigit() else None if span is not None else len(data)
        return Body(data, size, answer.get("X-Goog-Generation"))

    def _stat(self, bucket: str, key: str) -> ObjectInfo:
        return self._info(self._call("GET", f"b/{quote(bucket)}/o/{_quoted(key)}", json_out=True))

    def _pages(
        self, bucket: str, prefix: str, *, recursive: bool = True
    ) -> Iterator[list[ObjectInfo]]:
        token: str | None = ""
        while token is not None:
            found = self._call(
                "GET",
                f"b/{quote(bucket)}/o",
                prefix=prefix,
                delimiter=None if recursive else "/",
                maxResults=_PAGE_SIZE,
                pageToken=token or None,
                json_out=True,
            )
            # Consoles mark folders by empty objects whose names end so.
            yield [
                self._info(each)
                for each in found.get("items", [])
                if not each["name"].endswith("/")
            ]
            token = found.get("nextPageToken")

    def _info(self, found: dict[str, Any]) -> ObjectInfo:
        return ObjectInfo(
            self._uri(found["bucket"], found["name"]),
            int(found["size"]),
            found["generation"],
            datetime.fromisoformat(found["updated"]),
        )

    def _put(self, bucket: str, key: str, data: bytes) -> None:
        self._fs.pipe_file(f"{bucket}/{key}", data)

    def _put_if(self, bucket: str, key: str, data: bytes, version: str | None) -> str:
        head = (
            f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': key})}\r\n"
            f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        made = self._call(
            "POST",
            f"{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
            headers={"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'},
            data=head.encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode(),
            uploadType="multipart",
            ifGenerationMatch=version or "0",  # 0: there is none
            json_out=True,
        )
        return str(made["generation"])

    def _delete(self, bucket: str, key: str) -> None:
        self._call("DELETE", f"b/{quote(bucket)}/o/{_quoted(key)}")

    def _refusal(self, error: BaseException) -> Refusal:
        message = str(error).strip().partition("\n")[2] or str(error)
        match error:
            case FileNotFoundError():
                return Refusal(404, "HTTP status 404")
            case self._auth_error():
                return Refusal(401, message)
            case OSError() if str(error).startswith("Forbidden"):
                return Refusal(403, message)
        code = str(getattr(error, "code", ""))
        return Refusal(int(code) if code.isdigit() else 0, message or type(error).__name__)


def _quoted(key: str) -> str:
    return quote(key, safe="")
