"""How many images a second an engine runs on this machine."""

import dataclasses
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from effnet_batch.models.engine import Engine


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What `measure` found."""

    images_per_second: float
    """Of all streams together, from the median time of a batch."""
    num_batches: int
    """Batches timed, over all streams."""


def measure(engine: Engine, *, seconds: float = 2.0) -> Throughput:
    """Runs full batches of noise on every stream of the engine for some time.

    One batch a stream warms up first; the median keeps out what else the machine does.

    Args:
        engine: called from ``engine.num_streams`` threads at once.
        seconds: time measured, without the warm-up; each stream runs at least one batch.
    """
    side = engine.image_size
    frames = np.random.default_rng(0).integers(
        0, 256, (engine.batch_size, side, side, 3), dtype=np.uint8
    )

    def time_batches(_stream: int) -> list[float]:
        engine.run(frames)
        end = time.perf_counter() + seconds
        times = []
        while True:
            before = time.perf_counter()
            engine.run(frames)
            after = time.perf_counter()
            times.append(after - before)
            if after >= end:
                return times

    with ThreadPoolExecutor(engine.num_streams) as pool:
        times = [t for stream in pool.map(time_batches, range(engine.num_streams)) for t in stream]
    rate = engine.num_streams * engine.batch_size / statistics.median(times)
    return Throughput(images_per_second=rate, num_batches=len(times))
