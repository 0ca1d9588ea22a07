"""Decoding in one killable child process, for images that may kill or hang their decoder.

The child handles hostile bytes, so nothing it sends is trusted: its answers are fixed frames
(`effnet_batch.media.decoder_process`), checked against what can be right, never pickles. Its
environment is an allow-list, so that no credential is within its reach. Linux only: the limit on
memory reads ``/proc``.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Final, Self

import numpy as np

from effnet_batch.errors import (
    CrashedError,
    JobError,
    OutOfMemoryError,
    RecordError,
    TimeoutRecordError,
    TooLargeError,
)
from effnet_batch.media.decoder_process import (
    ANSWER,
    KIND_ERRORS,
    KIND_IMAGE,
    KIND_READY,
    MAX_MESSAGE_BYTES,
    REQUEST,
)
from effnet_batch.media.image import DecodedImage, ImageLimits
from effnet_batch.media.preprocess import Preprocessing

START_TIMEOUT_SECONDS: Final = 60.0

_MAX_STDERR_BYTES: Final = 1 << 20

_CHILD_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from effnet_batch.media.decoder_process import serve; serve(sys.argv[2])"
)
# What Python and the dynamic loader need; everything else, credentials included, stays behind.
_KEPT_ENVIRONMENT: Final = (
    "PATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "PYTHONHOME",
    "PYTHONPATH",
    "TMPDIR",
)


class _ChildGoneError(Exception):
    """The pipe to the child broke or closed; its exit status says why."""


class _DeadlineError(Exception):
    """The child did not answer in time."""


class _NonsenseError(Exception):
    """The child answered something that no sound child sends."""


class IsolatedDecoder:
    """Decodes like `decode_image`, in a child process that is replaced when it dies.

    One caller at a time: give every thread a decoder of its own. The child starts with the first
    image and serves until one kills it or memory runs out. A death after earlier images is tried
    once more in a fresh child, so that damage left by one image is not blamed on the next.

    Attributes:
        num_started: child processes started so far.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        timeout_seconds: float,
        memory_bytes: int,
    ) -> None:
        """Prepares a decoder; no process is started yet.

        Args:
            preprocessing: as for `decode_image`.
            limits: as for `decode_image`.
            timeout_seconds: wall-clock limit for one image, its transfer included.
            memory_bytes: address space that one image may take on top of what the idle child has
                mapped, the encoded image included.
        """
        if timeout_seconds <= 0 or memory_bytes <= 0:
            raise ValueError(
                f"timeout_seconds and memory_bytes must be positive, "
                f"got {timeout_seconds} and {memory_bytes}"
            )
        self._preprocessing = preprocessing
        self._limits = limits
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self.num_started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """Ends the child. A later `decode` starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def decode(self, data: bytes) -> DecodedImage:
        """Decodes one encoded image in the child.

        Raises:
            RecordError: whatever `decode_image` raised in the child.
            TimeoutRecordError: no answer within the limit; the child was killed.
            CrashedError: the child died; names the signal.
            OutOfMemoryError: over the limit on memory, or killed by the system for want of it.
            JobError: the child cannot be started at all, which is no fault of the image.
        """
        if len(data) > self._limits.max_bytes:
            raise TooLargeError(  # The child would say so too, after a transfer for nothing.
                f"the image has {len(data):,} bytes; at most {self._limits.max_bytes:,} are allowed"
            )
        has_served = self._child is not None and self._child.is_alive()
        try:
            return self._decode_once(data)
        except (CrashedError, OutOfMemoryError):
            if not has_served:
                raise
        return self._decode_once(data)

    def _decode_once(self, data: bytes) -> DecodedImage:
        child = self._running_child()
        try:
            return self._open_answer(
                *child.ask(data, deadline=time.monotonic() + self._timeout_seconds)
            )
        except _DeadlineError:
            self.close()
            raise TimeoutRecordError(
                f"decoding took longer than {self._timeout_seconds:g} s and was ended"
            ) from None
        except _ChildGoneError:
            exit_status = child.wait()
            self.close()
            raise _explain_death(exit_status) from None
        except _NonsenseError as error:
            self.close()
            raise CrashedError(f"the decoder's process went wrong: {error}") from None
        except OutOfMemoryError:
            self.close()  # Its memory is in pieces; the next image gets a whole one.
            raise
        except RecordError:
            raise
        except BaseException:
            self.close()  # Interrupted: a late answer must not be taken for the next image's.
            raise

    def _running_child(self) -> "_Child":
        if self._child is None or not self._child.is_alive():
            self.close()
            settings = {
                "preprocessing": self._preprocessing.to_dict(),
                "limits": dataclasses.asdict(self._limits),
                "timeout_seconds": self._timeout_seconds,
                "memory_bytes": self._memory_bytes,
            }
            frame_bytes = 3 * self._preprocessing.image_size**2
            self._child = _Child(json.dumps(settings), max(frame_bytes, MAX_MESSAGE_BYTES))
            self.num_started += 1
        return self._child

    def _open_answer(self, kind: int, width: int, height: int, payload: bytearray) -> DecodedImage:
        if kind in KIND_ERRORS:
            message = payload.decode("utf-8", errors="replace")
            raise KIND_ERRORS[kind](" ".join(message.split()))
        size = self._preprocessing.image_size
        if kind != KIND_IMAGE or len(payload) != 3 * size * size:
            raise _NonsenseError(f"an answer of kind {kind} with {len(payload)} bytes")
        if not 0 < width * height <= self._limits.max_pixels:
            raise _NonsenseError(f"an image of {width}x{height} pixels")
        frame = np.frombuffer(payload, dtype=np.uint8).reshape(size, size, 3)
        return DecodedImage(frame=frame, width=width, height=height)


class _Child:
    """One running child process and the pipes to it."""

    def __init__(self, settings_json: str, max_payload_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        # The child finds every module where this process does, except in the working directory.
        path = json.dumps([entry for entry in sys.path if entry])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD_CODE, path, settings_json],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            bufsize=0,
            # Ctrl-C is for the parent; it would look like a crash of whatever is being decoded.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        try:
            kind, *_ = self._read_answer(time.monotonic() + START_TIMEOUT_SECONDS)
            if kind != KIND_READY:
                raise _NonsenseError(f"an answer of kind {kind} before the first image")
        except (_ChildGoneError, _DeadlineError, _NonsenseError) as error:
            reason = self._last_line_of_stderr() or str(error) or "no message"
            self.end()
            raise JobError(
                f"the process for isolated decoding did not start within "
                f"{START_TIMEOUT_SECONDS:g} s: {reason}"
            ) from None
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes, deadline: float) -> tuple[int, int, int, bytearray]:
        """Sends one image; returns kind, width, height and payload of the answer.

        Args:
            data: the encoded image.
            deadline: on the monotonic clock, in seconds.
        """
        # A child that gives up while receiving closes the pipe, and its answer is still to be read.
        with contextlib.suppress(_ChildGoneError):
            self._write(REQUEST.pack(len(data)), deadline)
            self._write(data, deadline)
        return self._read_answer(deadline)

    def wait(self) -> int | None:
        """Returns the exit status, negative for a signal; None when the process lives on."""
        try:
            # The pipes close a moment before the process can be waited for.
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kills the process and gives back what belongs to it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait_for(self._stdin.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
            except BrokenPipeError:
                raise _ChildGoneError from None

    def _read_answer(self, deadline: float) -> tuple[int, int, int, bytearray]:
        kind, width, height, length = ANSWER.unpack(self._read(ANSWER.size, deadline))
        if length > self._max_payload_bytes:
            raise _NonsenseError(f"an answer of {length:,} bytes")
        return kind, width, height, self._read(length, deadline)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < num_bytes:
            _wait_for(self._stdout.fileno(), select.POLLIN, deadline)
            piece = os.read(self._stdout.fileno(), num_bytes - len(data))
            if not piece:
                raise _ChildGoneError
            data += piece
        return data

    def _last_line_of_stderr(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read(_MAX_STDERR_BYTES).decode("utf-8", errors="replace")
        return text.strip().rpartition("\n")[2]


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    # poll, not select: a worker with many open sockets has descriptors above 1024.
    poll = select.poll()
    poll.register(descriptor, event)
    remaining_seconds = deadline - time.monotonic()
    if remaining_seconds <= 0 or not poll.poll(remaining_seconds * 1000):
        raise _DeadlineError


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # Idle BLAS threads would only use up address space.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _explain_death(exit_status: int | None) -> RecordError:
    if exit_status is None:
        return CrashedError("decoding closed the pipes of its process")
    if exit_status >= 0:
        return CrashedError(f"decoding ended its process with exit status {exit_status}")
    if exit_status == -signal.SIGKILL:
        # Not ours, which is a timeout: the system kills when memory runs out.
        return OutOfMemoryError("the decoder's process was killed by the system (SIGKILL)")
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    return CrashedError(f"decoding killed its process with {name}")
