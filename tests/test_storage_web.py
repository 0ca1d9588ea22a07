import io
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from effnet_batch.errors import FetchError, RecordError, StorageError, TooLargeError
from effnet_batch.storage import ReadRequest, Storage, StorageOptions, web
from effnet_batch.storage.hosts import is_public


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self._answer(302, b"", Location=self.path.removeprefix("/to/"))
        elif path == "/loop":
            self._answer(302, b"", Location="/loop")
        elif path == "/endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            except OSError:
                self.close_connection = True
        elif path == "/drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.01)
            except OSError:
                self.close_connection = True
        elif path.startswith("/status/"):
            self._answer(int(path.rpartition("/")[2]), b"no")
        else:
            self._answer(200, path.encode() * 100, ETag='"v1"')

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (_Handler,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _error(result: bytes | RecordError) -> tuple[str, bool]:
    assert isinstance(result, FetchError)
    return result.error_type, result.is_transient


def test_read_from_a_web_server(server: ThreadingHTTPServer) -> None:
    storage = Storage(StorageOptions(allow_private_hosts=True, num_attempts=1))
    top = f"http://127.0.0.1:{server.server_port}"
    assert storage.read(f"{top}/a%20b.jpg?x=%2F") == b"/a%20b.jpg" * 100
    assert server.RequestHandlerClass.seen == [  # type: ignore[attr-defined]
        ("/a%20b.jpg?x=%2F", f"127.0.0.1:{server.server_port}")
    ]
    assert storage.read(f"{top}/to//a.jpg") == b"/a.jpg" * 100
    assert storage.read_tails([f"{top}/a.jpg"], 5) == [b"a.jpg"]
    assert (storage.info(f"{top}/a.jpg").etag, storage.info(f"{top}/a.jpg").size_bytes) == (
        "v1",
        600,
    )
    assert isinstance(storage.open(f"{top}/a.jpg"), io.BufferedReader)
    storage.check_readable(f"{top}/a.jpg")
    statuses = {
        404: ("FileNotFoundError", False),
        410: ("FileNotFoundError", False),
        403: ("PermissionError", True),
        412: ("SourceChanged", False),
        500: ("HTTPError", True),
    }
    results = storage.read_many([ReadRequest(f"{top}/status/{status}") for status in statuses])
    assert [_error(result) for result in results] == list(statuses.values())
    assert str(results[3]).endswith("(HTTP status 412); run with --update to take in the new one")
    (loop,) = storage.read_many([ReadRequest(f"{top}/loop")])
    assert _error(loop) == ("TooManyRedirectsError", False)
    (endless,) = storage.read_many([ReadRequest(f"{top}/endless")], max_bytes=1 << 20)
    assert isinstance(endless, TooLargeError)
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write(f"{top}/a.jpg", b"")


def test_a_body_that_drips_for_ever_is_given_up(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_SECONDS", 0.1)
    storage = Storage(StorageOptions(allow_private_hosts=True, num_attempts=1))
    uri = f"http://127.0.0.1:{server.server_port}/drip"
    (error,) = storage.read_many([ReadRequest(uri)], max_bytes=1 << 20)
    assert _error(error) == ("TimeoutError", True)


def test_a_signed_url_is_fetched_but_never_shown(
    server: ThreadingHTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    storage = Storage(StorageOptions(allow_private_hosts=True, num_attempts=1))
    top = f"http://127.0.0.1:{server.server_port}"
    requests = [
        ReadRequest(f"{top}{path}", f"{top}{path}?X-Amz-Signature=hush")
        for path in ("/a", "/status/404")
    ]
    good, bad = storage.read_many(requests)
    assert good == b"/a" * 100
    assert server.RequestHandlerClass.seen[0][0] in (  # type: ignore[attr-defined]
        "/a?X-Amz-Signature=hush",
        "/status/404?X-Amz-Signature=hush",
    )
    assert f"{top}/status/404" in str(bad)
    assert "hush" not in str(bad)
    assert "GET /status/404" in caplog.text
    assert "hush" not in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "0"])
def test_private_hosts_need_a_flag(server: ThreadingHTTPServer, host: str) -> None:
    storage = Storage(StorageOptions(num_attempts=1))
    (error,) = storage.read_many([ReadRequest(f"http://{host}:{server.server_port}/a")])
    assert _error(error) == ("RefusedHostError", False)
    assert "--allow-private-hosts" in str(error)
    assert server.RequestHandlerClass.seen == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://me@127.0.0.1/a"],
)
def test_redirects_pass_the_same_guard(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    storage = Storage(StorageOptions(num_attempts=1, num_connections=2))
    top = f"http://127.0.0.1:{server.server_port}"
    (error,) = storage.read_many([ReadRequest(f"{top}/to/{location}")])
    assert _error(error) == ("RefusedHostError", False)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_is_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected
