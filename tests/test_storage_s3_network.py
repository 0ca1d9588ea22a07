"""S3 behind a network that fails: a proxy in front of the real server puts the faults in."""

import http.client
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from s3_server import S3Server

from effnet_batch.config import EmbedConfig
from effnet_batch.errors import FetchError, OutageError, RecordError
from effnet_batch.pipelines.run import storage_options
from effnet_batch.storage import (
    ReadRequest,
    Storage,
    StorageOptions,
    dispatch,
    pacing,
    transport,
)
from effnet_batch.storage.s3_client import S3Client


def _key(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[2]


def _error(result: bytes | RecordError) -> tuple[str, bool]:
    assert isinstance(result, FetchError)
    return result.error_type, result.is_transient


@dataclass
class _Fault:
    """An answer in place of the server's; ``cut`` sends the real one but only half of its body."""

    status: int = 0
    code: str = ""
    cut: bool = False
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class _Proxy:
    faults: list[_Fault] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def proxy(s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Proxy]:
    monkeypatch.setattr(pacing, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(pacing, "FIRST_THROTTLED_PAUSE_SECONDS", 0.001)
    state = _Proxy()
    upstream = urlsplit(s3.endpoint_url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.seen.append((self.command, self.path, headers))
            body = self.rfile.read(int(headers.get("content-length", "0")))
            fault = next((each for each in state.faults if each.method == self.command), None)
            if fault is not None:
                state.faults.remove(fault)
                if not fault.cut:
                    data = f"<Error><Code>{fault.code}</Code></Error>".encode()
                    data = data if fault.status >= 400 else b""
                    headers = {"Content-Length": str(len(data)), **fault.headers}
                    self.answer(fault.status, headers, data)
                    return
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port)
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            kept = dict(response.getheaders())
            if fault is not None:
                data = data[: len(data) // 2]
                self.close_connection = True
            self.answer(response.status, kept, data)
            connection.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data if self.command != "HEAD" else b"")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield state
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "fault",
    [
        _Fault(503, "SlowDown"),
        _Fault(500, "InternalError"),
        _Fault(400, "RequestTimeout"),
        _Fault(429, ""),
        _Fault(cut=True),
    ],
)
def test_transient_errors_are_retried(
    s3: S3Server, s3_prefix: str, proxy: _Proxy, fault: _Fault
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"0123456789")
    storage = Storage(StorageOptions(num_attempts=3))
    proxy.faults = [fault, fault]
    assert storage.read_many([ReadRequest(uri)]) == [b"0123456789"]
    assert len(proxy.seen) == 3
    proxy.faults = [fault] * 3
    (error,) = storage.read_many([ReadRequest(uri)])
    assert isinstance(error, FetchError)
    assert error.is_transient
    assert error.error_type == (fault.code or ("ConnectionError" if fault.cut else "HTTPError"))
    assert len(proxy.seen) == 6


def test_writes_are_retried(s3: S3Server, s3_prefix: str, proxy: _Proxy) -> None:
    storage = Storage(StorageOptions(num_attempts=3))
    proxy.faults = [_Fault(503, "SlowDown", method="PUT")]
    storage.write(f"{s3_prefix}a", b"x")
    assert s3.get(f"{_key(s3_prefix)}a") == b"x"
    # The answer to the first attempt is lost; the second finds what the first has made.
    proxy.faults = [_Fault(503, "SlowDown", method="PUT")]
    s3.put(f"{_key(s3_prefix)}lock", b"me")
    assert storage.create(f"{s3_prefix}lock", b"me") is not None
    proxy.faults = [_Fault(503, "SlowDown", method="PUT")]
    with pytest.raises(FileExistsError):
        storage.create(f"{s3_prefix}lock", b"you")


def test_forbidden_objects_and_forbidden_buckets_differ(
    s3: S3Server, s3_prefix: str, proxy: _Proxy
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    storage = Storage(StorageOptions(num_connections=1))
    proxy.faults = [_Fault(403, "AccessDenied")] * 3
    results = storage.read_many([ReadRequest(uri)] * 4)
    assert [_error(each) for each in results[:3]] == [("PermissionError", True)] * 3
    assert results[3] == b"x"
    # The bucket itself was asked once, when nothing had been read from it yet.
    assert [method for method, *_ in proxy.seen].count("HEAD") == 1
    storage = Storage(StorageOptions(num_connections=1, num_attempts=1))
    proxy.faults = [_Fault(403, "AccessDenied"), _Fault(403, method="HEAD")]
    with pytest.raises(OutageError, match="no permission; the credentials need s3:GetObject"):
        storage.read(uri)


def test_options_that_travel_in_headers(s3: S3Server, s3_prefix: str, proxy: _Proxy) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    storage = Storage(StorageOptions(requester_pays=True, kms_key_id="key-1", num_attempts=1))
    assert storage.read(uri) == b"x"
    list(storage.list(s3_prefix))
    proxy.faults = [_Fault(200, method="PUT")]
    storage.write(uri, b"y")
    assert [headers.get("x-amz-request-payer") for *_, headers in proxy.seen] == ["requester"] * 3
    written = proxy.seen[-1][2]
    assert written["x-amz-server-side-encryption"] == "aws:kms"
    assert written["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"


def test_a_bucket_in_another_region_is_followed(
    s3: S3Server, s3_prefix: str, proxy: _Proxy
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    region = {"x-amz-bucket-region": "eu-central-1"}
    proxy.faults = [_Fault(400, "AuthorizationHeaderMalformed", headers=region)]
    storage = Storage()
    assert [storage.read(uri), storage.read(uri)] == [b"x", b"x"]
    regions = [headers["authorization"].split("/")[2] for *_, headers in proxy.seen]
    assert sorted(set(regions)) == ["eu-central-1", "us-east-1"]
    assert regions[-1] == "eu-central-1"


@pytest.mark.parametrize(
    ("bucket", "expected"),
    [
        ("photos", "https://photos.s3.eu-central-1.amazonaws.com"),
        ("photos.example", "https://s3.eu-central-1.amazonaws.com/photos.example"),
    ],
)
def test_buckets_of_aws_are_addressed_as_botocore_does(
    monkeypatch: pytest.MonkeyPatch, bucket: str, expected: str
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    location = S3Client(StorageOptions()).location(bucket)
    assert (location.base_url, location.region) == (expected, "eu-central-1")


def test_anonymous_requests_are_not_signed(s3: S3Server, s3_prefix: str, proxy: _Proxy) -> None:
    proxy.faults = [_Fault(200)]
    options = storage_options(EmbedConfig.from_flat({"anonymous": True}))
    Storage(options).read(f"{s3_prefix}a.jpg")
    assert "authorization" not in proxy.seen[0][2]


def test_without_credentials_the_way_to_read_public_buckets_is_named(
    s3_prefix: str, proxy: _Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(OutageError) as caught:
        Storage().read(f"{s3_prefix}a.jpg")
    (flag,) = re.findall("--[a-z-]+", str(caught.value))
    assert flag.removeprefix("--") in EmbedConfig.settings()
    assert not proxy.seen


def test_the_rate_is_bounded(s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    pauses: list[float] = []

    def new_limiter(per_second: float | None) -> pacing.RateLimiter:
        return pacing.RateLimiter(per_second, clock=lambda: 0.0, sleep=pauses.append)

    monkeypatch.setattr(transport, "RateLimiter", new_limiter)
    monkeypatch.setattr(dispatch, "_backends", {})
    storage = Storage(StorageOptions(max_requests_per_second=10))
    mark = s3.access_log.mark()
    assert storage.read_many([ReadRequest(uri)] * 14) == [b"x"] * 14
    assert len(s3.access_log.since(mark)) == 14
    # All in the same moment: ten at once, then a tenth of a second more for each.
    assert sorted(pauses) == pytest.approx([0.1, 0.2, 0.3, 0.4])
