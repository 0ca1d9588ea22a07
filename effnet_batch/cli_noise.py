"""Keeping native libraries' log lines off the console.

Ray's C++ core and a few codecs write to file descriptor 2 directly, past Python's logging. While a
command runs, that descriptor leads through a filter; Ray has the same lines in its own log files.
What Ray prints on standard output of workers that died takes the same way.
"""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, TextIO, cast

_NOISE: Final = re.compile(
    rb"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [IWE] \d+ \d+\] "
    rb"|^(\x1b\[\d+m)?\(raylet[^)]*\)"
    rb"|^[^ ]+ [^ ]+\t(WARNING|ERROR) (streaming_executor|exceptions\.py)"
)
"""How Ray's core begins a line below the level of a fatal error, and what it says of workers."""


_RAY_LISTENER: Final = "ray_listen_error_messages"
"""Name of the thread in which Ray's driver prints what its cluster reports."""


@contextlib.contextmanager
def quiet_streams() -> Iterator[TextIO]:
    """Filters file descriptor 2, and Ray's words on standard output.

    Yields:
        A stream that leads to the real standard error.
    """
    sys.stderr.flush()
    real = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_pass_on, args=(reader, real), name="stderr", daemon=True)
    thread.start()
    try:
        with (
            os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace") as stream,
            contextlib.redirect_stdout(cast(TextIO, _OurStdout(sys.stdout))),
        ):
            yield stream
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)  # closes our end of the pipe; children that hold one do not keep us
        thread.join(timeout=1)
        os.close(real)


class _OurStdout:
    """A stream that sends what Ray's listener writes to standard error, and is another one else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        is_ray = threading.current_thread().name == _RAY_LISTENER
        return (sys.stderr if is_ray else self._stream).write(text)


def _pass_on(reader: int, real: int) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if not _NOISE.match(line):
                with contextlib.suppress(OSError):
                    os.write(real, line)
