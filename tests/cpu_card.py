"""A card made of threads: queues run at the same time, and nothing is done when it is asked for.

What would race on a real card races here too.
"""

import queue
import threading
from collections.abc import Sequence

import torch

from effnet_batch.models.card import Mark, Step


class CPUCard:
    """Stands in for `card.CUDACard`.

    Attributes:
        gates: one per queue, in the order they were made; a queue works while its gate is open.
        num_done: steps that each queue has done.
        limits: shares of memory that were asked for, in order.
        num_recorded: steps that were recorded.
        num_drops: how often recorded steps were dropped.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.gates: list[threading.Event] = []
        self.num_done: list[int] = []
        self.limits: list[float] = []
        self.num_recorded = 0
        self.num_drops = 0
        self._pending: list[queue.Queue[tuple[Step, Sequence[Mark], _Mark]]] = []

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def queue(self) -> "_Queue":
        gate = threading.Event()
        gate.set()
        self.gates.append(gate)
        self.num_done.append(0)
        self._pending.append(queue.Queue())
        number = len(self._pending) - 1
        threading.Thread(target=self._work, args=(number,), daemon=True).start()
        return _Queue(self._pending[number])

    def _work(self, number: int) -> None:
        while True:
            step, after, mark = self._pending[number].get()
            self.gates[number].wait()
            try:
                for each in after:
                    each.wait()
                step()
            except Exception as error:  # noqa: BLE001  raised again where it is waited for
                mark.error = error
            self.num_done[number] += 1
            mark.done.set()
            self._pending[number].task_done()

    def record(self, step: Step) -> Step:
        self.num_recorded += 1
        step()
        return step

    def settle(self) -> None:
        for each in self._pending:
            each.join()

    def drop_steps(self) -> None:
        self.num_drops += 1

    def limit_memory(self, share: float) -> None:
        self.limits.append(share)


class _Queue:
    def __init__(self, pending: "queue.Queue[tuple[Step, Sequence[Mark], _Mark]]") -> None:
        self._pending = pending

    def put(self, step: Step, *, after: Sequence[Mark] = ()) -> Mark:
        mark = _Mark()
        self._pending.put((step, after, mark))
        return mark


class _Mark:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None

    def wait(self) -> None:
        assert self.done.wait(timeout=60), "the queue stands still"
        if self.error is not None:
            raise self.error
