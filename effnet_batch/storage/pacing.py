"""When the next request may start: a bounded rate, and back-off after failures."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

FIRST_PAUSE_SECONDS: Final = 0.2
FIRST_THROTTLED_PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 20.0


class RateLimiter:
    """A token bucket that lets ``per_second`` requests start each second, as many at once.

    Args:
        per_second: tokens that come in each second; None never waits.
        clock: seconds that never go back.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = max(1.0, per_second or 0)
        self._filled_at = clock()

    def wait(self) -> None:
        """Takes one token, waiting for it where there is none."""
        if self._per_second is None:
            return
        with self._lock:
            now = self._clock()
            self._tokens += (now - self._filled_at) * self._per_second
            self._tokens = min(self._tokens, max(1.0, self._per_second))
            self._filled_at = now
            # A debt makes those who come later wait longer: first come, first served.
            self._tokens -= 1
            pause = -self._tokens / self._per_second
        if pause > 0:
            self._sleep(pause)


def pause_seconds(attempt: int, *, is_throttled: bool, retry_after: str | None = None) -> float:
    """Returns how long to wait before the next attempt: exponential back-off with full jitter.

    Args:
        attempt: number of attempts that failed, from 1.
        is_throttled: the server asked for fewer requests.
        retry_after: its ``Retry-After`` header in seconds, which is honoured as a lower bound.
    """
    first = FIRST_THROTTLED_PAUSE_SECONDS if is_throttled else FIRST_PAUSE_SECONDS
    pause = random.uniform(0, min(MAX_PAUSE_SECONDS, first * 2 ** (attempt - 1)))
    if retry_after and retry_after.isdigit():
        pause = max(pause, min(float(retry_after), MAX_PAUSE_SECONDS))
    return pause
