"""What the CUDA engine asks of a card, and nothing else of CUDA: memory, queues, recorded steps."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch

Step = Callable[[], None]
"""Work for the card on tensors that stay where they are, so that it can be done again."""

_WARM_UP_RUNS: Final = 3
"""Before a step is recorded: cuDNN chooses its kernels, torch.compile makes them."""
_OUT_OF_MEMORY: Final = ("out of memory", "ALLOC_FAILED")
"""How CUDA, cuBLAS and cuDNN say it where torch's own allocator was not asked."""


_CAPTURING: Final = threading.RLock()
"""Held while a step is captured, and while the whole device is waited for, which CUDA refuses, and
fails the capture, as long as any thread of the process captures."""


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream that captures are made on, one at a time.

    torch hands out 32 streams of each priority in turn, so that one of the usual priority might be
    a queue of another engine's, whose work would become part of what is recorded.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class Mark(Protocol):
    """A place in a queue."""

    def wait(self) -> None:
        """Returns when all work before it is done."""
        ...


class Queue(Protocol):
    """Work that the card does in order, while it does that of other queues."""

    def put(self, step: Step, *, after: Sequence[Mark] = ()) -> Mark:
        """Adds a step that begins after marks of other queues; returns a mark behind it."""
        ...


class Card(Protocol):
    """One device, or one that stands in for it in a test."""

    device: torch.device

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Returns zeroed memory of the host that queues copy from and to without a detour."""
        ...

    def queue(self) -> Queue:
        """Returns a new queue."""
        ...

    def record(self, step: Step) -> Step:
        """Runs a step, then returns one that does the same with less to do for the host.

        Raises:
            RuntimeError: as the step; `is_out_of_memory` tells.
        """
        ...

    def settle(self) -> None:
        """Returns when everything that any queue was given is done."""
        ...

    def drop_steps(self) -> None:
        """Gives back memory that no tensor uses; no step recorded before may run again."""
        ...

    def limit_memory(self, share: float) -> None:
        """Lets this process have a share of the card's memory, above 0 and at most 1."""
        ...


class CUDACard:
    """The current CUDA device.

    Args:
        is_graphed: replay steps as CUDA graphs, which costs the host one call a step instead of
            one a kernel.
    """

    def __init__(self, *, is_graphed: bool = True) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._is_graphed = is_graphed
        self._pool: Any = None  # torch's handle has no public type

    def host_memory(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Returns page-locked memory."""
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def queue(self) -> Queue:
        """Returns a stream of its own."""
        return _StreamQueue(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def record(self, step: Step) -> Step:
        """Captures the step as a graph, unless the card was made without graphs."""
        with _CAPTURING:
            stream = _capture_stream(self.device)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    step()
            self.settle()
            if not self._is_graphed:
                return step
            # Graphs that never run at once share what they need between input and output.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads go on to put work into queues meanwhile, as engines beside this do.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                step()
            return graph.replay

    def settle(self) -> None:
        """Waits for the whole device."""
        with _CAPTURING:
            torch.cuda.synchronize(self.device)

    def drop_steps(self) -> None:
        """Empties torch's cache; a pool that lost its last graph may not be captured into again."""
        self._pool = None
        with _CAPTURING:
            torch.cuda.empty_cache()

    def limit_memory(self, share: float) -> None:
        """Bounds torch's allocator; the card's driver takes some more for every process."""
        torch.cuda.set_per_process_memory_fraction(share, self.device)


class _StreamQueue:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def put(self, step: Step, *, after: Sequence[Mark] = ()) -> Mark:
        for mark in after:
            assert isinstance(mark, _EventMark)
            self._stream.wait_event(mark.event)
        with torch.cuda.stream(self._stream):
            step()
        # Without `blocking` a thread that waits would keep a core busy.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _EventMark(event)


class _EventMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it came upon, says that the card's memory is full.

    A capture that fails ends with an error of its own.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(each in str(error) for each in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
