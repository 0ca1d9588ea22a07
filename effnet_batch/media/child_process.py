"""A child process that handles hostile bytes, and can be killed without harm.

Nothing that it sends is trusted, so answers are fixed structures, never pickles; its environment is
an allow-list, so that no credential is within its reach. Linux only: limits on memory read
``/proc``.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from effnet_batch.errors import CrashedError, JobError, OutOfMemoryError, RecordError

START_TIMEOUT_SECONDS: Final = 60.0

_MAX_STDERR_BYTES: Final = 1 << 20
_CHILD_CODE: Final = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).serve(sys.argv[3])"
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


class ChildGoneError(Exception):
    """The pipe to the child broke or closed; its exit status says why."""


class DeadlineError(Exception):
    """The child did not answer in time."""


class NonsenseError(Exception):
    """The child answered something that no sound child sends."""


class ChildProcess:
    """One running child process and the pipes to it."""

    def __init__(
        self, module: str, settings_json: str, ready: bytes, *, descriptors: Sequence[int] = ()
    ) -> None:
        """Starts the child and waits until it is ready.

        Args:
            module: dotted name of the module whose ``serve`` runs in the child.
            settings_json: its argument.
            ready: what it sends first.
            descriptors: open files that it inherits under the same numbers.

        Raises:
            JobError: it does not start, which is no fault of what it is to decode.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        # The child finds every module where this process does, except in the working directory.
        path = json.dumps([entry for entry in sys.path if entry])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD_CODE, path, module, settings_json],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            bufsize=0,
            pass_fds=descriptors,
            # Ctrl-C is for the parent; it would look like a crash of whatever is being decoded.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        try:
            first = self.read(len(ready), time.monotonic() + START_TIMEOUT_SECONDS)
            if first != ready:
                raise NonsenseError("it began with something else than it must")
        except (ChildGoneError, DeadlineError, NonsenseError) as error:
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
        """Process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Returns whether the process runs."""
        return self._process.poll() is None

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

    def write(self, data: bytes, deadline: float) -> None:
        """Sends bytes.

        Args:
            data: all of them are sent.
            deadline: on the monotonic clock, in seconds.

        Raises:
            ChildGoneError: nobody reads them.
            DeadlineError: they were not read in time.
        """
        rest = memoryview(data)
        while rest:
            _wait_for(self._stdin.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
            except BrokenPipeError:
                raise ChildGoneError from None

    def read(self, num_bytes: int, deadline: float) -> bytearray:
        """Returns so many bytes.

        Raises:
            ChildGoneError: the child ended first.
            DeadlineError: they did not come in time.
        """
        data = bytearray()
        while len(data) < num_bytes:
            _wait_for(self._stdout.fileno(), select.POLLIN, deadline)
            piece = os.read(self._stdout.fileno(), num_bytes - len(data))
            if not piece:
                raise ChildGoneError
            data += piece
        return data

    def _last_line_of_stderr(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read(_MAX_STDERR_BYTES).decode("utf-8", errors="replace")
        return text.strip().rpartition("\n")[2]


def explain_death(exit_status: int | None) -> RecordError:
    """Returns the error of the record that a child died of, from what `ChildProcess.wait` said."""
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


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    # poll, not select: a worker with many open sockets has descriptors above 1024.
    poll = select.poll()
    poll.register(descriptor, event)
    remaining_seconds = deadline - time.monotonic()
    if remaining_seconds <= 0 or not poll.poll(remaining_seconds * 1000):
        raise DeadlineError


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # Idle BLAS threads would only use up address space.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
