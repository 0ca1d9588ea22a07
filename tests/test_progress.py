"""The board of counts: what becomes of a run when it dies or does not answer."""

import os
import signal
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
import ray
import ray.exceptions

from effnet_batch.pipelines import progress
from effnet_batch.pipelines.progress import ProgressBoard, Silent, UnitProgress, start_board
from effnet_batch.pipelines.session import ray_session
from effnet_batch.schema import STATUS_OK

UNIT = pa.table({"unit": pa.array([7, 7], pa.int32())})
ROWS = pa.table({"status": [STATUS_OK, "corrupt", STATUS_OK]})


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


def test_a_unit_that_starts_again_counts_from_zero() -> None:
    board = ProgressBoard()
    assert board.start(7) == 1
    board.count(7, 100, 3)
    assert board.start(7) == 2
    board.count(7, 60, 2)
    board.finish(7)
    board.start(8)
    board.count(8, 5, 0)
    board.incomplete("s3://bucket/a.tar", "reset")
    snapshot = board.snapshot()
    assert (snapshot.num_records, snapshot.num_failed) == (65, 2)
    assert snapshot.incomplete == (("s3://bucket/a.tar", "reset"),)


def test_a_board_that_is_killed_fails_no_unit_and_one_that_is_gone_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = start_board()
    first = UnitProgress(board, UNIT)
    assert not first.is_suspect
    first.count(ROWS)
    snapshot = ray.get(board.snapshot.remote())
    assert (snapshot.num_records, snapshot.num_failed) == (3, 1)

    ray.kill(board, no_restart=False)
    # Calls wait for the new process, which knows nothing of the old one's counts.
    while ray.get(board.snapshot.remote()).num_records:
        time.sleep(0.02)
    first.count(ROWS)
    first.finish()
    assert ray.get(board.snapshot.remote()).num_records == 6
    assert not UnitProgress(board, UNIT).is_suspect
    assert UnitProgress(board, UNIT).is_suspect

    # A board that hangs: the run that it watched is complete all the same.
    taken: list[tuple[tuple[str, str], ...]] = []
    board.incomplete.remote("s3://bucket/a.tar", "reset")
    with progress.poll_board(board, Silent(), 3, taken.append):
        pass
    assert taken[-1] == (("s3://bucket/a.tar", "reset"),)
    taken.clear()
    monkeypatch.setattr(progress, "_LAST_SECONDS", 1)
    pid = ray.get(board.__ray_call__.remote(lambda board: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        with progress.poll_board(board, Silent(), 3, taken.append):
            pass
    finally:
        os.kill(pid, signal.SIGCONT)
    assert taken == []

    ray.kill(board)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(board.snapshot.remote())
    with progress.poll_board(board, Silent(), 3, taken.append):
        pass
    assert taken == []
