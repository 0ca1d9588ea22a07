"""The board of counts: what it holds, and what becomes of a run when it does not answer."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pyarrow as pa
import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_list

from effnet_batch.pipelines import progress
from effnet_batch.pipelines.progress import ProgressBoard, Silent, UnitProgress, poll_board
from effnet_batch.pipelines.session import ray_session
from effnet_batch.schema import STATUS_OK

UNIT = pa.table({"unit": pa.array([7, 7], pa.int32())})
ROWS = pa.table({"status": [STATUS_OK, "corrupt", STATUS_OK]})
SECONDS = 10.0


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


def counts(board: ProgressBoard) -> tuple[int, int]:
    snapshot = board.collect(SECONDS)
    return snapshot.num_records, snapshot.num_failed


def keys() -> list[bytes]:
    return list(_internal_kv_list("", namespace="effnet_batch"))


def test_a_unit_that_starts_again_counts_from_zero() -> None:
    board, other = ProgressBoard(), ProgressBoard()
    odd = "s3://bucket/\u00e4/\udce4.tar"  # as a name that is no UTF-8
    assert board.start(7) == 1
    assert board.count(7, 1, 100, 3, is_finished=False)
    assert counts(board) == (100, 3)
    assert board.start(7) == 2
    assert counts(board) == (0, 0)
    board.count(7, 1, 100, 3, is_finished=False)  # by a worker that was cut off
    board.count(7, 2, 60, 2, is_finished=True)
    assert counts(board) == (60, 2)
    board.start(8)
    board.count(8, 1, 5, 0, is_finished=False)
    board.incomplete(odd, "reset")
    for _ in range(2):  # what was read once counts once, and does not go
        snapshot = board.collect(SECONDS)
        assert (snapshot.num_records, snapshot.num_failed) == (65, 2)
        assert snapshot.incomplete == ((odd, "reset"),)
    assert counts(other) == (0, 0)
    board.clear()
    assert keys() == []


def test_workers_anywhere_write_on_the_same_board() -> None:
    @ray.remote(num_cpus=0)
    def work(board: ProgressBoard) -> bool:
        unit = UnitProgress(board, UNIT)
        unit.count(ROWS)
        unit.count(ROWS)  # too soon to be told
        return unit.is_suspect

    board = pickle.loads(pickle.dumps(ProgressBoard()))
    assert not ray.get(work.remote(board))
    assert counts(board) == (3, 1)
    assert ray.get(work.remote(board))
    mine = UnitProgress(board, UNIT)
    assert mine.is_suspect
    mine.count(ROWS)
    mine.count(ROWS)
    mine.finish()
    assert counts(board) == (6, 2)
    board.clear()


def test_what_is_incomplete_reaches_the_run_also_after_its_last_look() -> None:
    taken: list[tuple[tuple[str, str], ...]] = []
    board = ProgressBoard()
    with poll_board(board, Silent(), 3, taken.append):
        board.incomplete("s3://bucket/a.tar", "reset")
    assert taken[-1] == (("s3://bucket/a.tar", "reset"),)
    assert keys() == []


def test_a_board_is_cleared_of_jobs_that_ended_without_doing_so() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = f"""
import ray
from effnet_batch.pipelines.progress import ProgressBoard
ray.init(address={ray.get_runtime_context().gcs_address!r})
ProgressBoard().start(7)
print(ray.get_runtime_context().get_job_id(), flush=True)
{kill}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    job = done.stdout.split()[-1]
    assert [key.decode().partition("/")[0] for key in keys()] == [job]
    mine = ProgressBoard()
    mine.start(3)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(key.startswith(job.encode()) for key in keys()):
        ProgressBoard().clear()  # Ray notices after a moment that the job has ended
        time.sleep(0.1)
    assert len(keys()) == 1
    assert counts(mine) == (0, 0)
    assert mine.start(3) == 2
    mine.clear()


def test_a_board_that_does_not_answer_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LAST_SECONDS", 0.5)
    monkeypatch.setattr(progress, "_CALL_SECONDS", 0.5)
    taken: list[tuple[tuple[str, str], ...]] = []
    board = ProgressBoard()
    board.incomplete("s3://bucket/a.tar", "reset")
    (store,) = [each for each in psutil.Process().children() if each.name() == "gcs_server"]
    # Ray ends a driver whose store is silent for long, so that it must not be here.
    waker = threading.Timer(15, os.kill, (store.pid, signal.SIGCONT))
    waker.start()
    store.suspend()
    try:
        unit = UnitProgress(board, UNIT)
        assert unit.is_suspect, "it may have been tried, and nobody can tell"
        unit.count(ROWS)
        unit.count(ROWS)
        unit.finish()
        with poll_board(board, Silent(), 3, taken.append):
            pass
    finally:
        waker.cancel()
        store.resume()
    assert taken == []
    assert counts(board) == (0, 0)
    assert not UnitProgress(board, UNIT).is_suspect
