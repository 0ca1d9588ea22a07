"""What workers tell the driver while they work. Nothing that must be right rests on it."""

import contextlib
import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa
import ray
import ray.exceptions
from ray.experimental import internal_kv

from effnet_batch.pipelines.metrics import publish_records
from effnet_batch.sink import num_failed

_POLL_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 30.0
_COUNT_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 30.0
"""Without counts, after a call that was not answered."""
_NAMESPACE: Final = b"effnet_batch"
_UNIT: Final = "unit"
_INCOMPLETE: Final = "incomplete"
_MOST_INCOMPLETE: Final = 100
_MOST_CHARACTERS: Final = 500


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


class _Counts(NamedTuple):
    """What the board holds of a unit, in this order."""

    num_tries: int
    num_records: int
    num_failed: int
    is_finished: bool


class ProgressBoard:
    """Counts per unit, which workers write and the driver reads; a copy writes on the same board.

    Ray's store of small values holds them, which every cluster has: an actor would be one process
    more, on machines whose cores all work. Where it does not answer a worker, the worker goes on.
    """

    def __init__(self) -> None:
        self._prefix = f"{ray.get_runtime_context().get_job_id()}/{secrets.token_hex(8)}/"
        self._units: dict[str, _Counts] = {}
        self._incomplete: dict[str, str] = {}

    def start(self, unit: int) -> int:
        """Notes that a unit starts and has counted nothing; returns how often it has started.

        Where the store does not say, it is taken to have started before: being careful with a unit
        costs time, and not being careful may cost the run.
        """
        key = self._key(_UNIT, str(unit))
        try:
            before = _store().internal_kv_get(key, _NAMESPACE, _CALL_SECONDS)
        except ray.exceptions.RayError:
            num_tries = 2
        else:
            num_tries = 1 + (_Counts(*json.loads(before)).num_tries if before else 0)
        self._put(key, _Counts(num_tries, 0, 0, False))
        return num_tries

    def count(
        self, unit: int, num_tries: int, num_records: int, num_failed: int, *, is_finished: bool
    ) -> bool:
        """Takes the counts so far of a unit, or the last ones; returns whether the store did."""
        key = self._key(_UNIT, str(unit))
        return self._put(key, _Counts(num_tries, num_records, num_failed, is_finished))

    def incomplete(self, uri: str, reason: str) -> None:
        """Notes a shard that broke off in its middle."""
        value = (uri, reason[:_MOST_CHARACTERS])
        self._put(self._key(_INCOMPLETE, secrets.token_hex(8)), value)

    def collect(self, timeout_seconds: float) -> Snapshot:
        """Returns the counts of this moment; what will not change it takes off the board.

        Args:
            timeout_seconds: of each call of the store.

        Raises:
            ray.exceptions.RayError: the store does not answer.
        """
        store, prefix = _store(), self._key(_UNIT, "").decode()
        keys = store.internal_kv_keys(self._prefix.encode(), _NAMESPACE, timeout_seconds)
        noted = store.internal_kv_multi_get(keys, _NAMESPACE, timeout_seconds) if keys else {}
        settled = []
        for key, text in noted.items():
            name, value = key.decode(), json.loads(text)
            if not name.startswith(prefix):
                uri, reason = value
                if len(self._incomplete) < _MOST_INCOMPLETE:
                    self._incomplete[uri] = reason
                settled.append(key)
                continue
            counts, known = _Counts(*value), self._units.get(name)
            # A worker that is cut off may still write of a try that another has taken over.
            if known is None or counts.num_tries >= known.num_tries:
                self._units[name] = counts
            if counts.is_finished:
                settled.append(key)
        with contextlib.suppress(ray.exceptions.RayError):  # the next look finds it again
            for key in settled:
                store.internal_kv_del(key, False, _NAMESPACE, timeout_seconds)
        return Snapshot(
            sum(counts.num_records for counts in self._units.values()),
            sum(counts.num_failed for counts in self._units.values()),
            tuple(self._incomplete.items()),
        )

    def clear(self) -> None:
        """Takes everything off the board, and off those of jobs that ended without doing so."""
        with contextlib.suppress(ray.exceptions.RayError):
            store = _store()
            store.internal_kv_del(self._prefix.encode(), True, _NAMESPACE, _CALL_SECONDS)
            keys = store.internal_kv_keys(b"", _NAMESPACE, _CALL_SECONDS)
            # All else that it may tell, it would first ask every job's driver for.
            without = {"skip_submission_job_info_field": True, "skip_is_running_tasks_field": True}
            jobs = store.get_all_job_info(**without, timeout=_CALL_SECONDS) if keys else {}
            ended = {job.hex() for job, info in jobs.items() if info.is_dead}
            for job in {key.partition(b"/")[0].decode() for key in keys} & ended:
                store.internal_kv_del(f"{job}/".encode(), True, _NAMESPACE, _CALL_SECONDS)

    def _key(self, kind: str, name: str) -> bytes:
        return f"{self._prefix}{kind}/{name}".encode()

    def _put(self, key: bytes, value: tuple[Any, ...]) -> bool:
        try:
            text = json.dumps(value).encode()
            _store().internal_kv_put(key, text, True, _NAMESPACE, _CALL_SECONDS)
        except ray.exceptions.RayError:
            return False
        return True


def _store() -> Any:
    """Returns the client of Ray's store.

    Raises:
        ray.exceptions.RayError: this process is not connected, or not any more.
    """
    client = internal_kv.internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
    if client is None:
        raise ray.exceptions.RayError("not connected to Ray")
    return client


class UnitProgress:
    """A worker's side of the board, for the unit it works on."""

    def __init__(self, board: ProgressBoard, unit: pa.Table) -> None:
        """Tells the board that the unit starts.

        Args:
            board: of the run.
            unit: from `cut_units`.
        """
        self._board = board
        self.unit = int(unit["unit"][0].as_py())
        self._num_tries = board.start(self.unit)
        self._num_records = 0
        self._num_failed = 0
        self._next_count = 0.0

    @property
    def is_suspect(self) -> bool:
        """Whether an earlier try of the unit did not finish."""
        return self._num_tries > 1

    def count(self, table: pa.Table) -> None:
        """Takes finished rows; tells the board now and then."""
        publish_records(table)
        self._num_records += len(table)
        self._num_failed += num_failed(table)
        if time.monotonic() >= self._next_count:
            is_told = self._tell(is_finished=False)
            # The work must not wait for the store again and again.
            pause = _COUNT_SECONDS if is_told else _SILENT_SECONDS
            self._next_count = time.monotonic() + pause

    def finish(self) -> None:
        """Tells the board the last counts, and that the unit is committed."""
        self._tell(is_finished=True)

    def _tell(self, *, is_finished: bool) -> bool:
        counts = self._num_tries, self._num_records, self._num_failed
        return self._board.count(self.unit, *counts, is_finished=is_finished)


@contextlib.contextmanager
def poll_board(
    board: ProgressBoard,
    reporter: Reporter,
    total: int | None,
    on_incomplete: Callable[[tuple[tuple[str, str], ...]], None],
    before: tuple[int, int] = (0, 0),
) -> Iterator[None]:
    """Passes the workers' counts on to the reporter, from a thread, while the run works.

    Args:
        board: of the run; cleared in the end.
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
                snapshot = board.collect(_CALL_SECONDS)
            except ray.exceptions.RayError:
                continue
            on_incomplete(snapshot.incomplete)
            now = time.monotonic() - started
            num_records, num_failed = (
                before[0] + snapshot.num_records,
                before[1] + snapshot.num_failed,
            )
            if history and num_records < history[-1][1]:
                history.clear()  # a unit started again
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
        try:
            yield
        finally:
            stop.set()
            thread.join()
        # All is committed by now; a board that does not answer must not make that a failure.
        with contextlib.suppress(ray.exceptions.RayError):
            on_incomplete(board.collect(_LAST_SECONDS).incomplete)
    finally:
        board.clear()


def _rate(history: list[tuple[float, int]]) -> float | None:
    """Returns records per second over the last minute, once there are any."""
    worked = [point for point in history if point[1]]
    if len(worked) < 2 or worked[-1][0] <= worked[0][0]:
        return None
    return (worked[-1][1] - worked[0][1]) / (worked[-1][0] - worked[0][0])
