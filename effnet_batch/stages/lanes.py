"""Items through parallel lanes, in order, in batches that depend on the items alone."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from effnet_batch.stages.read import Item

_MAX_BATCH_BYTES: Final = 64 << 20
"""Encoded bytes after which a batch is full, so that few very large images wait at once."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


WAIT: Final = "wait"
"""Of a `StageClock`: while a model had nothing to run. No stage, since nothing works on it."""


class StageClock:
    """Adds up the seconds that threads spend in each stage, and what the model ran over.

    Attributes:
        seconds: by stage, and of `WAIT`.
        num_batches: runs of the model.
        num_frames: frames in them.
    """

    def __init__(self) -> None:
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.num_batches = 0
        self.num_frames = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the seconds spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage."""
        with self._lock:
            self.seconds[stage] += seconds

    def add_batch(self, num_frames: int) -> None:
        """Counts a run of the model."""
        with self._lock:
            self.num_batches += 1
            self.num_frames += num_frames

    def measure_each(self, items: Iterable[_Item], stage: str) -> Iterator[_Item]:
        """Passes items on, adding the seconds that each takes to come to a stage."""
        stream = iter(items)
        while True:
            with self.measure(stage):
                item = next(stream, None)
            if item is None:
                return
            yield item


def run_lanes(
    items: Iterable[Item],
    work: Callable[[list[Item]], _Result],
    *,
    batch_size: int,
    num_lanes: int,
    num_waiting: int,
    clock: StageClock,
) -> Iterator[_Result]:
    """Works through batches in parallel lanes, yielding results in the items' order.

    Batches are cut by count, and by the bytes of very large items: a rerun cuts the same ones.

    Args:
        items: what `read_items` yields.
        work: a batch to its result; called in the lanes' threads.
        batch_size: items per batch.
        num_lanes: threads.
        num_waiting: most batches that are held at once, in work or done, beside the next one.
        clock: takes the seconds spent in ``read``.
    """
    waiting: collections.deque[Future[_Result]] = collections.deque()
    stream = iter(items)
    with ThreadPoolExecutor(num_lanes, thread_name_prefix="lane") as pool:
        try:
            while True:
                with clock.measure("read"):
                    batch = _next_batch(stream, batch_size)
                if not batch:
                    break
                waiting.append(pool.submit(work, batch))
                if len(waiting) > num_waiting:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _next_batch(stream: Iterator[Item], batch_size: int) -> list[Item]:
    batch: list[Item] = []
    num_bytes = 0
    while len(batch) < batch_size and num_bytes < _MAX_BATCH_BYTES:
        item = next(stream, None)
        if item is None:
            break
        batch.append(item)
        num_bytes += item.num_bytes_kept
    return batch
