"""A turnstile in front of the S3 server: a test says how many objects of a folder may be read.

    with S3Gate(server, "in/") as gate:
        ...  # clients get gate.endpoint_url as AWS_ENDPOINT_URL
        gate.admit(20)  # the 21st read waits, and with it whoever wants it
        gate.open()

So a job stands in its middle for as long as the test needs it there, on a slow machine too.
"""

import math
import select
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from s3_server import S3Server

_CHUNK_BYTES = 1 << 16
_PAUSE_SECONDS = 0.02


class S3Gate:
    """Hands bytes on between clients and the server; open at first."""

    def __init__(self, server: S3Server, prefix: str = "") -> None:
        self._guarded = f"GET /{server.bucket}/{prefix}".encode()
        upstream = urlsplit(server.endpoint_url)
        self._upstream = (server.host, upstream.port)
        self._num_admitted = math.inf
        self._lock = threading.Lock()
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                gate._serve(self.request)

        self._server = socketserver.ThreadingTCPServer((server.host, 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def endpoint_url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def connect(self) -> socket.socket:
        """Return a connection to the server itself."""
        return socket.create_connection(self._upstream)

    def admit(self, number: int) -> None:
        """Let so many reads pass from now on, and then none."""
        with self._lock:
            self._num_admitted = number

    def open(self) -> None:
        """Let all pass."""
        with self._lock:
            self._num_admitted = math.inf

    def _serve(self, client: socket.socket) -> None:
        with self.connect() as server:
            threading.Thread(target=copy, args=(server, client), daemon=True).start()
            # A client sends the next request when it has the answer: each begins a chunk.
            while data := _receive(client):
                if data.startswith(self._guarded) and not self._pass(client):
                    return
                server.sendall(data)

    def _pass(self, client: socket.socket) -> bool:
        """Wait for a place; return whether the client has waited too."""
        while True:
            with self._lock:
                if self._num_admitted > 0:
                    self._num_admitted -= 1
                    return True
            if select.select([client], [], [], _PAUSE_SECONDS)[0]:
                return False  # it says no more before it is answered: this is its end


def copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until either end is closed."""
    try:
        while data := _receive(source):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client is gone


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(_CHUNK_BYTES)
    except OSError:
        return b""
