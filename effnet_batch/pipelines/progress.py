"""What workers tell the driver while they work. Nothing that must be right rests on it."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import pyarrow as pa
import ray
import ray.exceptions

from effnet_batch.pipelines.metrics import publish_records
from effnet_batch.sink import num_failed

_POLL_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 30
_COUNT_SECONDS: Final = 1.0


class Reporter(Protocol):
    """Is told what happens during a run."""

    def message(self, text: str) -> None:
        """Something worth knowing."""

    def warning(self, text: str) -> None:
        """Something to look at."""

    def progress(
        self,
        *,
        done: int,
        failed: int,
        total: int | None,
        records_per_second: float | None,
        eta_seconds: float | None,
    ) -> None:
        """How far this run is, in records; ``done`` leaves ``failed`` out."""


class Silent:
    """Reporter that says nothing."""

    def message(self, text: str) -> None:
        """Says nothing."""

    def warning(self, text: str) -> None:
        """Says nothing."""

    def progress(self, **counts: float | None) -> None:
        """Says nothing."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counts for the console."""

    num_records: int
    num_failed: int
    incomplete: tuple[tuple[str, str], ...]
    """Shards that broke off in their middle: URI and reason."""


class ProgressBoard:
    """Counts per unit; a unit that starts again counts from zero."""

    def __init__(self) -> None:
        self._tries: collections.Counter[int] = collections.Counter()
        self._counts: dict[int, tuple[int, int]] = {}
        self._finished = [0, 0]
        self._incomplete: dict[str, str] = {}

    def start(self, unit: int) -> int:
        """Notes that a unit starts; returns how often it has started by now."""
        self._tries[unit] += 1
        self._counts[unit] = (0, 0)
        return self._tries[unit]

    def count(self, unit: int, num_records: int, num_failed: int) -> None:
        """Takes a unit's counts so far."""
        self._counts[unit] = (num_records, num_failed)

    def finish(self, unit: int) -> None:
        """Notes that a unit is committed."""
        records, failed = self._counts.pop(unit, (0, 0))
        self._finished[0] += records
        self._finished[1] += failed

    def incomplete(self, uri: str, reason: str) -> None:
        """Notes a shard that broke off in its middle."""
        if len(self._incomplete) < 100:
            self._incomplete[uri] = reason

    def snapshot(self) -> Snapshot:
        """Returns the counts of this moment."""
        records = self._finished[0] + sum(records for records, _ in self._counts.values())
        failed = self._finished[1] + sum(failed for _, failed in self._counts.values())
        return Snapshot(records, failed, tuple(self._incomplete.items()))


class UnitProgress:
    """A worker's side of the board, for the unit it works on."""

    def __init__(self, board: Any, unit: pa.Table) -> None:
        """Tells the board that the unit starts.

        Args:
            board: handle of a `ProgressBoard`.
            unit: from `cut_units`.
        """
        self._board = board
        self.unit = int(unit["unit"][0].as_py())
        self.is_suspect = int(ray.get(board.start.remote(self.unit))) > 1
        """Whether an earlier try of the unit did not finish."""
        self._num_records = 0
        self._num_failed = 0
        self._next_count = 0.0

    def count(self, table: pa.Table) -> None:
        """Takes finished rows; tells the board now and then."""
        publish_records(table)
        self._num_records += len(table)
        self._num_failed += num_failed(table)
        now = time.monotonic()
        if now >= self._next_count:
            self._next_count = now + _COUNT_SECONDS
            self._board.count.remote(self.unit, self._num_records, self._num_failed)

    def finish(self) -> None:
        """Tells the board the last counts, and that the unit is committed."""
        self._board.count.remote(self.unit, self._num_records, self._num_failed)
        self._board.finish.remote(self.unit)


def start_board() -> Any:
    """Returns the handle of a board that lives with the run and needs no CPU of its own.

    Where its process is killed it starts again with nothing counted, and calls wait for that: no
    unit fails for it.
    """
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ProgressBoard)
    return actor.remote()


@contextlib.contextmanager
def poll_board(
    board: Any,
    reporter: Reporter,
    total: int | None,
    on_incomplete: Callable[[tuple[tuple[str, str], ...]], None],
    before: tuple[int, int] = (0, 0),
) -> Iterator[None]:
    """Passes the workers' counts on to the reporter, from a thread, while the run works.

    Args:
        board: handle of a `ProgressBoard`.
        reporter: is told the counts once a second.
        total: records to come, or None while shards hide how many they hold.
        on_incomplete: takes the shards that broke off in their middle, as URI and reason.
        before: records of the passes before that are committed, and how many of them failed.
    """
    stop = threading.Event()
    started = time.monotonic()
    history: list[tuple[float, int]] = []

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                snapshot = ray.get(board.snapshot.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue
            on_incomplete(snapshot.incomplete)
            now = time.monotonic() - started
            num_records, num_failed = (
                before[0] + snapshot.num_records,
                before[1] + snapshot.num_failed,
            )
            if history and num_records < history[-1][1]:
                history.clear()  # a unit or the board started again
            history.append((now, num_records))
            del history[:-120]  # a minute
            rate = _rate(history)
            left = None if total is None or not rate else max(0, total - num_records) / rate
            reporter.progress(
                done=num_records - num_failed,
                failed=num_failed,
                total=total,
                records_per_second=rate,
                eta_seconds=left,
            )

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
        # All is committed by now; a board that does not answer must not make that a failure.
        with contextlib.suppress(ray.exceptions.RayError):
            on_incomplete(ray.get(board.snapshot.remote(), timeout=_LAST_SECONDS).incomplete)
    finally:
        stop.set()
        thread.join()


def _rate(history: list[tuple[float, int]]) -> float | None:
    """Returns records per second over the last minute, once there are any."""
    worked = [point for point in history if point[1]]
    if len(worked) < 2 or worked[-1][0] <= worked[0][0]:
        return None
    return (worked[-1][1] - worked[0][1]) / (worked[-1][0] - worked[0][0])
