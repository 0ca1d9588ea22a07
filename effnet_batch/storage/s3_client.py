"""Signed GET and HEAD requests to S3, without the layers above that make them expensive.

botocore says where a bucket is, finds the credentials (environment, profile, container, instance)
and signs; :mod:`effnet_batch.storage.transport` carries. Nothing between them is needed to fetch
bytes, and it costs two thirds of the CPU.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import botocore.session
import urllib3
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from effnet_batch.errors import OutageError
from effnet_batch.storage.objects import StorageOptions
from effnet_batch.storage.transport import Response, Target, Transport
from effnet_batch.storage.uris import redact

_KEY_SAFE = "/-._~"
_DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Location:
    """Where the objects of a bucket are.

    Attributes:
        base_url: URL of the bucket, without a slash at the end.
        region: for which requests are signed.
    """

    base_url: str
    scheme: str
    host: str
    port: int
    path: str
    region: str


class S3Client:
    """Sends requests for buckets and objects.

    Args:
        options: endpoint, profile and limits; the rest comes from the AWS environment.
    """

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._transport = Transport(options)
        self._lock = threading.Lock()
        self._locations: dict[str, Location] = {}
        self._session: Any = None
        self._credentials: Any = None

    def send(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        uri: str,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
        is_quick: bool = False,
    ) -> Response:
        """Sends a request for an object, or for the bucket itself if ``key`` is empty.

        Returns:
            The response, whatever its status; a bucket in another region is followed there.

        Raises:
            FetchError: no response.
            OutageError: there are no credentials to sign with.
            TooLargeError: the body is over ``max_bytes``.
        """

        def send() -> Response:
            return self._transport.send(
                method,
                lambda: self._signed(method, bucket, key, headers or {}, query),
                uri=uri,
                max_bytes=max_bytes,
                is_quick=is_quick,
            )

        response = send()
        region = response.headers.get("x-amz-bucket-region")
        if response.status in (301, 307, 400) and region and region != self.location(bucket).region:
            self._locations[bucket] = self._locate(bucket, region)
            response = send()
        return response

    def location(self, bucket: str) -> Location:
        """Returns where a bucket is, as botocore would address it."""
        location = self._locations.get(bucket)
        if location is None:
            with self._lock:
                location = self._locations.get(bucket) or self._locate(bucket, None)
                self._locations[bucket] = location
        return location

    def _signed(
        self,
        method: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None,
    ) -> tuple[Target, Mapping[str, str]]:
        location = self.location(bucket)
        path = f"/{quote(key, safe=_KEY_SAFE)}" if key else "" if location.path else "/"
        if query:
            path += "?" + urlencode(query, quote_via=quote)
        target = Target(location.scheme, location.host, location.port, location.path + path)
        if self._options.requester_pays:
            headers = {**headers, "x-amz-request-payer": "requester"}
        if self._options.anonymous:
            return target, headers
        request = AWSRequest(method, location.base_url + path, headers=dict(headers))
        S3SigV4Auth(self._frozen_credentials(), "s3", location.region).add_auth(request)
        return target, dict(request.headers.items())

    def _frozen_credentials(self) -> Any:
        try:
            if self._credentials is None:
                with self._lock:
                    self._credentials = self._botocore().get_credentials()
            if self._credentials is not None:
                # Refreshed by botocore when they are about to expire.
                return self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise OutageError(f"no AWS credentials: {redact(str(error))}") from None
        raise OutageError(
            "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or read a public bucket with --anonymous"
        )

    def _botocore(self) -> Any:
        if self._session is None:
            self._session = botocore.session.Session(profile=self._options.profile)
        return self._session

    def _locate(self, bucket: str, region: str | None) -> Location:
        """Asks botocore for the URL it would use, by catching a request before it is sent."""
        try:
            client = self._botocore().create_client(
                "s3",
                region_name=region,
                endpoint_url=self._options.endpoint_url,
                config=Config(signature_version=UNSIGNED),
            )
            urls = []

            def catch(request: Any, **_: Any) -> AWSResponse:
                urls.append(request.url)
                body = urllib3.HTTPResponse(BytesIO(), preload_content=False)
                return AWSResponse(request.url, 200, {}, body)

            client.meta.events.register("before-send.s3.HeadObject", catch)
            client.head_object(Bucket=bucket, Key="k")
        except (BotoCoreError, ValueError) as error:
            raise OutageError(f"cannot address s3://{bucket}: {redact(str(error))}") from None
        base_url = urls[0].removesuffix("/k")
        parts = urlsplit(base_url)
        used = region or client.meta.region_name or _DEFAULT_REGION
        return Location(
            base_url=base_url,
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or (443 if parts.scheme == "https" else 80),
            path=parts.path,
            region=_DEFAULT_REGION if used == "aws-global" else used,
        )
