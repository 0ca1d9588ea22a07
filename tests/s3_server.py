"""A real S3 server for tests: SeaweedFS on free ports, with its own access log.

What was read how often is counted in the server's access log and not by our own counters:
SeaweedFS sends every finished request as a Fluentd message, which :class:`AccessLog` receives.

    with S3Server(folder) as server:
        server.put("images/cat.jpg", data)
        mark = server.access_log.mark()
        ...
        assert server.access_log.gets(since=mark)["images/cat.jpg"] == 1
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.config
import botocore.exceptions
import botocore.session
import msgpack

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-7f3a"
READER_ACCESS_KEY = "reader-access-key"
READER_SECRET_KEY = "reader-secret-key-91c2"
BUCKET = "effnet-test"

NUM_START_TRIES = 3
NUM_READY_TRIES = 300
READY_PAUSE_SECONDS = 0.1
PORT_NAMES = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """One finished request as the server saw it."""

    method: str
    """``GET``, ``HEAD``, ``PUT``, ``POST`` or ``DELETE``."""

    bucket: str

    key: str
    """Empty for requests on the bucket, such as a listing."""

    status: int
    """206 for a range of an object."""

    requester: str


class AccessLog:
    """Receives SeaweedFS's access log (Fluentd's forward protocol) on a port of its own."""

    def __init__(self) -> None:
        self.requests: list[LoggedRequest] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.settle = lambda: None  # replaced by the server, which can send a marker
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._receive, args=(connection,), daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        with connection:
            while data := connection.recv(1 << 16):
                unpacker.feed(data)
                for _tag, _time, entry, *_options in unpacker:
                    _, method, *_ = entry["operation"].split(".")  # such as REST.GET.OBJECT
                    self.requests.append(
                        LoggedRequest(
                            method=method,
                            bucket=entry["bucket"],
                            key=entry["key"],
                            status=entry["status"],
                            requester=entry["requester"],
                        )
                    )

    def mark(self) -> int:
        """Return a position; what finishes from now on is ``since`` it."""
        self.settle()
        return len(self.requests)

    def since(self, mark: int = 0) -> list[LoggedRequest]:
        """Return what was requested since ``mark``, the log's own markers left out."""
        self.settle()
        return [each for each in self.requests[mark:] if not each.key.startswith("_marker/")]

    def gets(self, *, since: int = 0, prefix: str = "") -> Counter[str]:
        """Count the successful reads (whole or ranges) of every object under ``prefix``."""
        return Counter(
            each.key
            for each in self.since(since)
            if each.method == "GET"
            and each.key
            and each.key.startswith(prefix)
            and each.status in (200, 206)
        )

    def close(self) -> None:
        self._listener.close()


class S3Server:
    """One SeaweedFS process. Stopping and starting it again keeps its data and its ports.

    Attributes:
        folder: data and logs of the server.
        host: address that it listens on.
        access_log: what was requested of it.
    """

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY
    bucket = BUCKET

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.access_log = AccessLog()
        self.access_log.settle = self._settle_log
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._sockets = tempfile.TemporaryDirectory(prefix="weed-")  # their paths must be short

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self._ports['s3.port']}"

    @property
    def env(self) -> dict[str, str]:
        """Environment with which any S3 client reaches this server as its administrator."""
        return self._env(ACCESS_KEY, SECRET_KEY)

    @property
    def reader_env(self) -> dict[str, str]:
        """The same for a user who may read and list but not write."""
        return self._env(READER_ACCESS_KEY, READER_SECRET_KEY)

    def _env(self, access_key: str, secret_key: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client_env(self, monkeypatch: Any, **changes: str | None) -> None:
        """Point this process (and its children) at the server.

        Args:
            monkeypatch: pytest's.
            changes: variables that shall differ, such as ``AWS_SECRET_ACCESS_KEY="wrong"``;
                None unsets one.
        """
        import s3fs

        for name, value in {**self.env, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        # fsspec keeps instances by their arguments and would go on with the old environment.
        s3fs.S3FileSystem.clear_instance_cache()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until it stores an object.

        Raises:
            RuntimeError: it does not come up; the message ends with its log.
        """
        assert self._process is None, "already started"
        for _ in range(NUM_START_TRIES):
            if not self._ports:
                self._ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
                self._client = self._connect()
            self._process = self._spawn()
            if self._wait_until_ready():
                return
            self.stop()
            self._ports = {}  # somebody took one of the ports in between
        log = (self.folder / "weed.log").read_text(errors="replace")
        raise RuntimeError(f"SeaweedFS did not start; its log ends with:\n{log[-2000:]}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        audit = {"fluent_host": "127.0.0.1", "fluent_port": self.access_log.port}
        (self.folder / "audit.json").write_text(json.dumps(audit))
        (self.folder / "users.json").write_text(json.dumps(_users()))
        command = [
            str(Path(sys.executable).parent / "weed"),
            f"-logdir={self.folder}",
            "mini",
            f"-dir={self.folder / 'data'}",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            f"-bucket={BUCKET}",
            f"-s3.config={self.folder / 'users.json'}",
            f"-s3.auditLogConfig={self.folder / 'audit.json'}",
            f"-s3.localSocket={self._sockets.name}/s3.sock",
            f"-filer.localSocket={self._sockets.name}/filer.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self.folder / "weed.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def _wait_until_ready(self) -> bool:
        assert self._process is not None
        for _ in range(NUM_READY_TRIES):
            if self._process.poll() is not None:
                return False
            try:
                self._client.put_object(Bucket=BUCKET, Key="_marker/ready", Body=b"ready")
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                time.sleep(READY_PAUSE_SECONDS)
            else:
                return True
        return False

    def stop(self, *, is_crash: bool = False) -> None:
        """Stop the server, keeping its data; ``is_crash`` kills it with no time to say goodbye."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if is_crash else signal.SIGTERM)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self.access_log.close()
        self._sockets.cleanup()

    def client(self) -> Any:
        """Return the server's botocore S3 client, which shares no code with the storage room."""
        return self._client

    def _connect(self) -> Any:
        session = botocore.session.Session()
        return session.create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=botocore.config.Config(
                retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20
            ),
        )

    def put(self, key: str, data: bytes) -> str:
        """Store an object and return its URI."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def put_files(self, prefix: str, files: list[Path]) -> list[str]:
        """Store files under ``prefix`` by their base names and return their URIs."""
        for file in files:
            self._client.put_object(
                Bucket=BUCKET, Key=f"{prefix}{file.name}", Body=file.read_bytes()
            )
        return [f"s3://{BUCKET}/{prefix}{file.name}" for file in files]

    def get(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str = "") -> list[str]:
        """List all keys under ``prefix``, sorted."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(each["Key"] for page in pages for each in page.get("Contents", []))

    def _settle_log(self) -> None:
        """Wait until all that finished before this call is in the access log.

        A handler logs just after it has answered, so one marker may overtake the entry before it:
        the log has settled when nothing but the second marker came between two of them.
        """
        if self._process is None:
            return
        length = -1
        while len(self.access_log.requests) != length + 1:
            length = len(self.access_log.requests)
            self._send_marker()

    def _send_marker(self) -> None:
        key = f"_marker/{uuid.uuid4().hex}"
        self._client.put_object(Bucket=BUCKET, Key=key, Body=b"")
        for _ in range(NUM_READY_TRIES):
            # Backwards, since the marker is among the newest.
            if any(each.key == key for each in reversed(self.access_log.requests[-100:])):
                return
            time.sleep(0.01)
        raise RuntimeError("the access log of SeaweedFS does not arrive")


def _users() -> dict[str, Any]:
    def user(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": access_key, "secretKey": secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    return {
        "identities": [
            user("admin", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
            user("reader", READER_ACCESS_KEY, READER_SECRET_KEY, ["Read", "List"]),
        ]
    }


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def die_with_parent() -> None:
    # Linux: a test run that is killed leaves no server behind (PR_SET_PDEATHSIG is 1).
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
