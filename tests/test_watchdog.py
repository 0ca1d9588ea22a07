"""The watchdog calls for help when a step stands still, and only then."""

import threading
from types import SimpleNamespace

import pytest

from effnet_batch.stages import watchdog as watchdog_module
from effnet_batch.stages.watchdog import Watchdog


def test_a_step_may_take_long_but_not_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, hung = [0.0], threading.Event(), threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def pass_time(seconds: float) -> None:
        """Lets time pass, and the watchdog look at it twice."""
        now[0] += seconds
        for _ in range(2):
            asked.clear()
            asked.wait()

    monkeypatch.setattr(watchdog_module, "time", SimpleNamespace(monotonic=clock))
    with Watchdog(0.1, hung.set) as watchdog:
        watchdog.beat()  # Without a step.
        pass_time(9)
        with watchdog.step():
            for _ in range(5):
                pass_time(0.09)
                watchdog.beat()
            assert not hung.is_set()
            now[0] += 0.11
            hung.wait()
