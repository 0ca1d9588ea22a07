"""The device that is measured: a card, or this CPU in its place; and how a step is timed."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from effnet_batch.models.card import Card, CUDACard, Mark, Step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HostCard:
    """Does everything at once in host memory, so that the benchmark can be tried without a card."""

    device = torch.device("cpu")

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def queue(self) -> "HostCard":
        return self

    def put(self, step: Step, *, after: Sequence[Mark] = ()) -> "HostCard":
        step()
        return self

    def wait(self) -> None:
        pass

    def record(self, step: Step) -> Step:
        step()
        return step

    def settle(self) -> None:
        pass

    def drop_steps(self) -> None:
        pass

    def limit_memory(self, share: float) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Machine:
    """What everything runs on, and for how long."""

    device: torch.device
    name: str
    seconds: float
    """Of each measurement, warm-up not counted."""

    def card(self, *, is_graphed: bool = True) -> Card:
        return CUDACard(is_graphed=is_graphed) if self.device.type == "cuda" else HostCard()

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def time(self, step: Callable[[], object]) -> float:
        """Returns the median seconds of a step, over runs that fill the time; three warm up."""
        for _ in range(3):
            step()
        self.settle()
        start = time.perf_counter()
        step()
        self.settle()
        # So many at once that waiting for the device costs little.
        num_steps = max(1, round(self.seconds / 10 / max(time.perf_counter() - start, 1e-6)))
        times = []
        end = time.perf_counter() + self.seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(num_steps):
                step()
            self.settle()
            times.append((time.perf_counter() - start) / num_steps)
        return statistics.median(times)


def open_machine(device: str, seconds: float) -> Machine:
    if device == "cuda":
        return Machine(torch.device("cuda"), torch.cuda.get_device_name(), seconds)
    return Machine(torch.device("cpu"), "this CPU", seconds)


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the device can do at most, measured."""

    flops: dict[str, float]
    """Per second, of a large matrix product, by precision."""
    copy_bytes: float
    """Per second, read and written, of a large copy on the device."""


def measure_ceilings(machine: Machine, *, side: int, copy_bytes: int) -> Ceilings:
    flops = {}
    for precision, dtype in DTYPES.items():
        left, right = (
            torch.randn(side, side, device=machine.device).to(dtype).contiguous() for _ in range(2)
        )
        out = torch.empty_like(left)
        seconds = machine.time(lambda a=left, b=right, o=out: torch.mm(a, b, out=o))
        flops[precision] = 2 * side**3 / seconds
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    seconds = machine.time(lambda: target.copy_(source))
    return Ceilings(flops, 2 * copy_bytes / seconds)
