"""Frames to embeddings on behalf of several videos: who runs the engine, and over which batches."""

import collections
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Final, Protocol

import numpy as np

from effnet_batch.models.engine import Engine
from effnet_batch.models.engine_base import Frames
from effnet_batch.models.sequence import Embeddings
from effnet_batch.stages.lanes import WAIT, StageClock

_BATCHES_WAITING: Final = 2
"""Of frames that wait for the engine, beside those that it runs."""

_Request = tuple[Frames, StageClock, Future[Embeddings]]


class Encoder(Protocol):
    """Runs an engine over the frames of lanes."""

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def batch_size(self) -> int:
        """Most frames of one call."""
        ...

    @property
    def precision(self) -> str:
        """That the engine runs."""
        ...

    def encode(self, frames: Frames, clock: StageClock) -> Future[Embeddings]:
        """Takes uint8 [n, S, S, 3], n from 1 to `batch_size`; promises float32 [n, D].

        The clock takes the seconds of ``model``, the batch, and the seconds that the engine waited.
        """
        ...


class OwnEncoder:
    """Runs the engine at once in the lane's own thread, over the lane's own frames.

    On a CPU, which runs few frames at a time (`engine_base.cpu_forward_size`), this is as fast as
    filling batches: videos of 20 frames took 0.99-1.03 times, of 10 frames 0.97-1.02 times the CPU
    (EfficientNet-B0, OpenVINO, 2 lanes).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.embedding_dim = engine.embedding_dim
        self.batch_size = engine.batch_size
        self.precision = engine.precision

    def encode(self, frames: Frames, clock: StageClock) -> Future[Embeddings]:
        """Encodes the frames before it returns."""
        future: Future[Embeddings] = Future()
        with clock.measure("model"):
            future.set_result(self._engine.run(frames).embeddings)
        clock.add_batch(len(frames))
        return future


class SharedEncoder:
    """Fills the engine's batches with the frames of all lanes.

    A batch runs as soon as the engine is free, with whatever waits by then: where the engine is
    what everything waits for, batches are full, and no lane ever waits for another one's frames.
    Lanes go on decoding meanwhile, until ``2 * batch_size`` frames wait. Its threads end with the
    context, or with the process.

    Args:
        engine: may be called from ``num_runners`` threads at once.
        num_runners: batches that run at once.
    """

    def __init__(self, engine: Engine, *, num_runners: int) -> None:
        self._engine = engine
        self.embedding_dim = engine.embedding_dim
        self.batch_size = engine.batch_size
        self.precision = engine.precision
        self._most_waiting = _BATCHES_WAITING * engine.batch_size
        self._waiting: collections.deque[_Request] = collections.deque()
        self._num_waiting = 0
        self._num_running = 0
        self._idle_since = time.perf_counter()
        self._is_closed = False
        self._changed = threading.Condition()
        self._runners = [
            threading.Thread(target=self._work, name="encoder", daemon=True)
            for _ in range(num_runners)
        ]

        for runner in self._runners:
            runner.start()

    def __enter__(self) -> "SharedEncoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Lets what waits run, and ends the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for runner in self._runners:
            runner.join()

    def encode(self, frames: Frames, clock: StageClock) -> Future[Embeddings]:
        """Hands the frames over; returns at once unless too many wait.

        The future raises what the engine raised on the batch that these frames were in.
        """
        future: Future[Embeddings] = Future()
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or self._num_waiting < self._most_waiting
            )
            if self._is_closed:
                raise RuntimeError("the encoder is closed")
            self._waiting.append((frames, clock, future))
            self._num_waiting += len(frames)
            self._changed.notify_all()
        return future

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                return
            frames, clocks, futures = zip(*batch, strict=True)
            try:
                # Of two units at once, the first one's clock takes it all.
                with clocks[0].measure("model"):
                    joined = frames[0] if len(frames) == 1 else np.concatenate(frames)
                    embeddings = self._engine.run(joined).embeddings
                clocks[0].add_batch(len(joined))
            except BaseException as error:  # noqa: BLE001  raised again in the lanes
                for future in futures:
                    future.set_exception(error)
                continue
            finally:
                self._end_batch()
            ends = np.cumsum([len(each) for each in frames])[:-1]
            for future, part in zip(futures, np.split(embeddings, ends), strict=True):
                future.set_result(part)

    def _next_batch(self) -> list[_Request]:
        """Waits for frames and takes as many as fit; nothing where no more will come."""
        batch: list[_Request] = []
        num_frames = 0
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or bool(self._waiting))
            while self._waiting and (
                not batch or num_frames + len(self._waiting[0][0]) <= self.batch_size
            ):
                batch.append(self._waiting.popleft())
                num_frames += len(batch[-1][0])
            self._num_waiting -= num_frames
            if batch and not self._num_running:
                batch[0][1].add(WAIT, time.perf_counter() - self._idle_since)
            self._num_running += bool(batch)
            self._changed.notify_all()
        return batch

    def _end_batch(self) -> None:
        with self._changed:
            self._num_running -= 1
            self._idle_since = time.perf_counter()
