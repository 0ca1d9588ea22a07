"""Noticing that a decoder hangs in native code, where no exception can reach it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator


class Watchdog:
    """Calls for help when a step stands still too long; a context manager around the work.

    ``on_hang`` is called from a thread and is expected to end the process, since nothing else ends
    such a decode.
    """

    def __init__(self, timeout_seconds: float, on_hang: Callable[[], None]) -> None:
        self._timeout_seconds = timeout_seconds
        self._on_hang = on_hang
        self._started: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode-watchdog", daemon=True)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Watches one step of the calling thread."""
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._started[thread]

    def beat(self) -> None:
        """Starts the time of the calling thread's step anew; without a step it does nothing."""
        thread = threading.get_ident()
        if thread in self._started:
            self._started[thread] = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout_seconds / 4)):
            now = time.monotonic()
            if any(now - start > self._timeout_seconds for start in self._started.copy().values()):
                self._on_hang()
                return


def end_process() -> None:
    """Ends this worker at once: a decode hangs, and what it was part of starts again elsewhere."""
    os.kill(os.getpid(), signal.SIGKILL)
