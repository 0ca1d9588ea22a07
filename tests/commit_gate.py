"""A door before the S3 server that holds commits back until a test has struck the run.

    with CommitGate(server) as gate:
        gate.num_allowed = 5  # parts; the sixth waits
        ...  # a run whose AWS_ENDPOINT_URL is gate.endpoint_url
        gate.num_allowed = math.inf

Everything else goes through as it is.
"""

import contextlib
import math
import re
import socket
import threading
from types import TracebackType
from typing import BinaryIO

from s3_gate import S3Gate, copy
from s3_server import S3Server

_HEAD_END = b"\r\n\r\n"


class CommitGate(S3Gate):
    """Counts the parts that are written through it and holds those that are too many.

    A part that is written again, by a unit that is done again, is the same part. Other objects may
    be held instead, by how their names begin.
    """

    def __init__(self, server: S3Server, begin: str = "data/part-") -> None:
        super().__init__(server)
        self._part = re.compile(rf"PUT /[^/\s]+/(\S+/{begin}[^\s?]+)".encode())
        self._changed = threading.Condition()
        self._num_allowed = math.inf
        self._passed: set[str] = set()

    @property
    def passed(self) -> set[str]:
        """Keys of the parts that were let through; each is written sooner or later."""
        with self._changed:
            return set(self._passed)

    @property
    def num_passed(self) -> int:
        """How many parts were let through."""
        return len(self._passed)

    @property
    def num_allowed(self) -> float:
        """How many parts may have passed; those that wait go on as soon as it allows them."""
        return self._num_allowed

    @num_allowed.setter
    def num_allowed(self, number: float) -> None:
        with self._changed:
            self._num_allowed = number
            self._changed.notify_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.num_allowed = math.inf
        super().__exit__(kind, error, trace)

    def _serve(self, client: socket.socket) -> None:
        """Passes the requests of one connection on, one after the other."""
        with contextlib.suppress(OSError), self.connect() as server:
            threading.Thread(target=copy, args=(server, client), daemon=True).start()
            with client.makefile("rb") as requests:
                while head := _read_head(requests):
                    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                    body_length = int(length[1]) if length else 0
                    if part := self._part.match(head):
                        if re.search(rb"(?i)\r\nexpect: 100", head):
                            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                            head = re.sub(rb"(?i)\r\nexpect: [^\r]+", b"", head)
                        # Whole, so that a client that dies in the middle has not passed.
                        body = requests.read(body_length)
                        if len(body) < body_length or not self._wait(client, part[1].decode()):
                            return
                        server.sendall(head + body)
                        continue
                    server.sendall(head)
                    while body_length and (some := requests.read1(min(body_length, 1 << 16))):
                        server.sendall(some)
                        body_length -= len(some)

    def _wait(self, client: socket.socket, part: str) -> bool:
        """Waits until the part may pass; returns whether the client still lives."""
        with self._changed:
            self._changed.wait_for(
                lambda: part in self._passed or self.num_passed < self._num_allowed
            )
            if _is_gone(client):
                return False
            self._passed.add(part)
            return True


def _read_head(requests: BinaryIO) -> bytes:
    head = b""
    while not head.endswith(_HEAD_END):
        line = requests.readline()
        if not line:
            return b""
        head += line
    return head


def _is_gone(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
