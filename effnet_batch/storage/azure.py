"""Azure Blob Storage, through the connections and credentials of adlfs."""

import contextlib
from collections.abc import Iterator
from typing import Any

from fsspec.asyn import sync

from effnet_batch.errors import StorageError
from effnet_batch.storage.cloud import CloudBackend, Refusal, import_package
from effnet_batch.storage.objects import Body, ObjectInfo, Span, StorageOptions


class AzureBackend(CloudBackend):
    """Reads from and writes to containers of one storage account."""

    BUCKET = "container"
    ADDRESS = "the name of the account"
    NO_CREDENTIALS = NO_PERMISSION = (
        "Azure does not accept the credentials, or there are none; check "
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, "
        "AZURE_STORAGE_CONNECTION_STRING, or the role of the identity (Storage Blob Data "
        "Contributor)"
    )

    def __init__(self, scheme: str, options: StorageOptions) -> None:
        super().__init__(scheme, options)
        adlfs = import_package("adlfs", scheme, "azure")
        from azure.core import MatchConditions
        from azure.core.exceptions import AzureError
        from azure.storage.blob.aio import BlobPrefix

        self.ERRORS = (*CloudBackend.ERRORS, AzureError)
        self._unchanged = MatchConditions.IfNotModified
        self._folder = BlobPrefix
        try:
            self._fs = adlfs.AzureBlobFileSystem(
                skip_instance_cache=True,
                use_listings_cache=False,
                connection_timeout=options.connect_timeout_seconds,
                read_timeout=options.read_timeout_seconds,
            )
        except ValueError as error:
            raise StorageError(
                f"cannot open {scheme}://: {self.NO_CREDENTIALS} ({error})"
            ) from None

    def _endpoint(self) -> str:
        return str(self._fs.service_client.url)

    def _condition(self, etag: str | None) -> dict[str, Any]:
        return {"etag": f'"{etag}"', "match_condition": self._unchanged} if etag else {}

    def _get(
        self, bucket: str, key: str, span: Span | None, etag: str | None, max_bytes: int | None
    ) -> Body:
        async def download() -> Body:
            async with self._fs.service_client.get_blob_client(bucket, key) as blob:
                start = None if span is None else span.start
                if start is not None and start < 0:
                    start = max(0, (await blob.get_blob_properties()).size + start)
                length = None
                if span is not None and span.stop is not None:
                    length = span.stop - span.start
                stream = await blob.download_blob(
                    offset=start, length=length, **self._condition(etag)
                )
                found = stream.properties
                size = stream.size
                if span is not None:
                    size = int(found.content_range.rpartition("/")[2])
                is_too_large = span is None and max_bytes is not None and size > max_bytes
                data = b"" if is_too_large else await stream.readall()
                return Body(data, size, _bare(found.etag))

        try:
            body: Body = sync(self._fs.loop, download)
        except self.ERRORS as error:
            if self._refusal(error).status != 416:
                raise
            stat = self._stat(bucket, key)  # past the end, or the object is empty
            return Body(b"", stat.size_bytes, stat.etag)
        return body

    def _stat(self, bucket: str, key: str) -> ObjectInfo:
        async def ask() -> Any:
            async with self._fs.service_client.get_blob_client(bucket, key) as blob:
                return await blob.get_blob_properties()

        return self._info(bucket, sync(self._fs.loop, ask))

    def _pages(
        self, bucket: str, prefix: str, *, recursive: bool = True
    ) -> Iterator[list[ObjectInfo]]:
        container = self._fs.service_client.get_container_client(bucket)
        list_blobs = container.list_blobs if recursive else container.walk_blobs
        pages = list_blobs(name_starts_with=prefix, include=["metadata"]).by_page()

        async def next_page() -> list[Any]:
            return [each async for each in await anext(pages)]

        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield [
                    self._info(bucket, each)
                    for each in sync(self._fs.loop, next_page)
                    if not isinstance(each, self._folder) and not _is_folder(each)
                ]

    def _info(self, bucket: str, found: Any) -> ObjectInfo:
        uri = self._uri(bucket, found.name)
        return ObjectInfo(uri, found.size, _bare(found.etag), found.last_modified)

    def _put(self, bucket: str, key: str, data: bytes) -> None:
        self._fs.pipe_file(f"{bucket}/{key}", data)

    def _put_if(self, bucket: str, key: str, data: bytes, version: str | None) -> str:
        made = self._fs.pipe_file(
            f"{bucket}/{key}", data, overwrite=version is not None, **self._condition(version)
        )
        return _bare(made["etag"])

    def _delete(self, bucket: str, key: str) -> None:
        async def delete() -> None:
            async with self._fs.service_client.get_blob_client(bucket, key) as blob:
                await blob.delete_blob()

        sync(self._fs.loop, delete)

    def _refusal(self, error: BaseException) -> Refusal:
        from azure.core.exceptions import ClientAuthenticationError

        status = getattr(error, "status_code", None) or 0
        if not status and isinstance(error, ClientAuthenticationError):
            status = 401  # no credentials were found, so nothing was asked
        return Refusal(status, str(error).partition("\n")[0])


def _bare(etag: str) -> str:
    return etag.strip('"')


def _is_folder(found: Any) -> bool:
    """Tells whether a blob only marks a folder, as accounts with a hierarchy have them."""
    return (found.metadata or {}).get("hdi_isfolder") == "true"
