"""Keeping native libraries' log lines off the console.

Ray's C++ core and a few codecs write to file descriptor 2 directly, past Python's logging. While a
command runs, that descriptor leads through a filter; Ray has the same lines in its own log files.
"""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Final, TextIO

_NOISE: Final = re.compile(
    rb"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [IWE] \d+ \d+\] "
    rb"|^(\x1b\[\d+m)?\(raylet[^)]*\)"
    rb"|^[^ ]+ [^ ]+\t(WARNING|ERROR) streaming_executor"
)
"""How Ray's core begins a line below the level of a fatal error, and what it says of workers."""


@contextlib.contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Filters file descriptor 2; yields a stream that leads to the real standard error."""
    sys.stderr.flush()
    real = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_pass_on, args=(reader, real), name="stderr", daemon=True)
    thread.start()
    try:
        with os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace") as stream:
            yield stream
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)  # closes our end of the pipe; children that hold one do not keep us
        thread.join(timeout=1)
        os.close(real)


def _pass_on(reader: int, real: int) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if not _NOISE.match(line):
                with contextlib.suppress(OSError):
                    os.write(real, line)
