"""Batches that lanes share: whose frames they hold, what a failure costs, and how they end."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from effnet_batch.models.engine import EngineOutput
from effnet_batch.stages.encode import SharedEncoder
from effnet_batch.stages.lanes import StageClock


class PlainEngine:
    """Means of frames; it waits until it is let go, and fails on frames of 255."""

    embedding_dim = 3
    batch_size = 8
    precision = "fp32"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.is_running = threading.Semaphore(0)
        self.may_run = threading.Semaphore(0)

    def run(self, frames: np.ndarray) -> EngineOutput:
        self.sizes.append(len(frames))
        self.is_running.release()
        self.may_run.acquire()
        if (frames == 255).any():
            raise ArithmeticError("a frame of 255")
        return EngineOutput(frames.mean(axis=(1, 2)).astype(np.float32), None)


def frames(*values: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


def values(future: "Future[Any]") -> list[int]:
    embeddings = future.result(timeout=30)
    assert (embeddings == embeddings[:, :1]).all()
    return [int(value) for value in embeddings[:, 0]]


def test_a_batch_holds_what_waits_and_every_lane_gets_its_own() -> None:
    engine: Any = PlainEngine()
    clock = StageClock()
    with SharedEncoder(engine, num_runners=1) as encoder:
        alone = encoder.encode(frames(1, 2), clock)
        engine.is_running.acquire()
        waiting = [encoder.encode(frames(*group), clock) for group in ((3,), (4, 5, 6), (7, 8))]
        too_many = encoder.encode(frames(9, 10, 11), clock)  # six wait, and eight fit
        engine.may_run.release(3)
        assert values(alone) == [1, 2]
        assert [values(future) for future in waiting] == [[3], [4, 5, 6], [7, 8]]
        assert values(too_many) == [9, 10, 11]
    assert engine.sizes == [2, 6, 3]
    assert clock.seconds["model"] > 0
    assert (clock.num_batches, clock.num_frames) == (3, 11)
    assert clock.seconds["wait"] > 0  # until the first came


def test_a_failure_reaches_the_lanes_of_its_batch_alone() -> None:
    engine: Any = PlainEngine()
    engine.may_run.release(3)
    with SharedEncoder(engine, num_runners=1) as encoder:
        assert values(encoder.encode(frames(1), StageClock())) == [1]
        bad = encoder.encode(frames(255), StageClock())
        with pytest.raises(ArithmeticError, match="a frame of 255"):
            bad.result(timeout=30)
        assert values(encoder.encode(frames(2), StageClock())) == [2]


def test_lanes_wait_while_two_batches_do_and_closing_leaves_nothing_undone() -> None:
    engine: Any = PlainEngine()
    encoder = SharedEncoder(engine, num_runners=1)
    with ThreadPoolExecutor(1) as lane:
        with encoder:
            first = encoder.encode(frames(0), StageClock())
            engine.is_running.acquire()
            held = [encoder.encode(frames(*range(8)), StageClock()) for _ in range(2)]
            blocked = lane.submit(encoder.encode, frames(1, 2, 3), StageClock())
            with pytest.raises(TimeoutError):
                blocked.result(timeout=0.3)
            engine.may_run.release(1)
            engine.is_running.acquire()  # a batch has gone, and there is room
            last = blocked.result(timeout=30)
            engine.may_run.release(3)
        assert all(future.done() for future in (first, *held, last))
        assert values(last) == [1, 2, 3]
    assert engine.sizes == [1, 8, 8, 3]
    with pytest.raises(RuntimeError, match="the encoder is closed"):
        encoder.encode(frames(1), StageClock())


def test_many_lanes_get_what_they_would_get_alone() -> None:
    engine: Any = PlainEngine()
    engine.may_run.release(10_000)
    with SharedEncoder(engine, num_runners=2) as encoder, ThreadPoolExecutor(6) as pool:

        def lane(number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(50):
                group = random.integers(0, 255, random.integers(1, 9)).tolist()
                assert values(encoder.encode(frames(*group), StageClock())) == group

        list(pool.map(lane, range(6)))
    assert max(engine.sizes) <= 8
