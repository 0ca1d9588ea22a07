"""The torch engine on a card: while one batch is computed, the next is on its way there.

A batch goes through three queues: up to the card as uint8, through the network, down again as
float32. Each of `_NUM_SLOTS` slots holds the memory of one batch on both sides, allocated once, so
that nothing waits for an allocator and every step can be recorded. Batches are filled up to one of
few sizes, each of which is recorded when it is first met; numbers of one frame in batches of two
sizes differ in the last bits of the precision, for cuDNN chooses kernels for each.
"""

import dataclasses
import threading
from typing import Final

import numpy as np
import torch

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.card import Card, CUDACard, Mark, Step, is_out_of_memory
from effnet_batch.models.engine_base import (
    AnyFrames,
    Engine,
    EngineOutput,
    FrameNetwork,
    Submitted,
    Vectors,
)
from effnet_batch.models.engine_torch import DTYPES, folded_copy

_NUM_SLOTS: Final = 3
"""One batch is computed, one lies ready on the card, one is copied by the host."""
_NUM_SIZES: Final = 4
"""A full batch, a half, a quarter, an eighth: what fills up the rest of a unit costs little."""
_MAX_BATCH_BYTES: Final = 128 << 20
"""Of decoded frames: 512 of B0, 256 of B4, 64 of B7, which fill the largest cards."""
MEMORY_MARGIN: Final = 0.9
"""Share of a card's memory that an automatic batch size may take."""


def largest_batch_size(image_size: int) -> int:
    """Returns the most frames of a batch that an automatic batch size may have, a power of two.

    What fills a card is pixels, so that larger frames need fewer of them.
    """
    return 1 << (max(1, _MAX_BATCH_BYTES // (3 * image_size**2)).bit_length() - 1)


class CUDAEngine(Engine):
    """Runs a folded copy of the model on one card; the caller's model stays as it is.

    Args:
        compiled: let torch.compile generate the kernels; the first batch then takes up to minutes.
        card: what runs it; by default this process's current CUDA device.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
        precision: str,
        batch_size: int,
        num_streams: int = 1,
        with_logits: bool = False,
        compiled: bool = False,
        card: Card | None = None,
    ) -> None:
        super().__init__(
            model,
            preprocessing,
            name="torch",
            device="cuda",
            precision=precision,
            batch_size=batch_size,
            num_threads=1,
            num_streams=num_streams,
            with_logits=with_logits,
        )
        torch.backends.cudnn.benchmark = True
        # cuDNN would compute float32 convolutions in TF32, 1e-3 off.
        torch.backends.cudnn.allow_tf32 = False
        self._card = card or CUDACard()
        dtype = DTYPES[precision]
        folded = folded_copy(model, self.image_size, dtype)
        network_type = FrameNetwork if compiled else _CardNetwork
        network = network_type(folded, preprocessing, with_logits=with_logits, dtype=dtype)
        network.to(self._card.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Graphs are recorded here, whoever generates the kernels.
        mode = "max-autotune-no-cudagraphs"
        self._network = torch.compile(network, mode=mode, dynamic=False) if compiled else network
        self._num_sizes = 1 if compiled else _NUM_SIZES
        self._widths = [self.embedding_dim]
        if self.num_classes is not None:
            self._widths.append(self.num_classes)
        self._up, self._compute, self._down = (self._card.queue() for _ in range(3))
        self._slots = [self._make_slot() for _ in range(_NUM_SLOTS)]
        self._next_slot = 0
        self._programs: dict[int, _Program] = {}
        self._forward_size = batch_size
        self._lock = threading.Lock()
        # What was made so far was made in the default queue, for which others do not wait.
        self._card.settle()

    @property
    def forward_size(self) -> int:
        """Frames that go through the network together: ``batch_size`` until memory ran out."""
        return self._forward_size

    def _submit(self, frames: AnyFrames) -> Submitted:
        parts: list[_Part] = []
        start = 0
        with self._lock:
            while start < len(frames):
                size = self._forward_size
                part = self._start_if_it_fits(frames[start : start + size], size)
                if part is None:
                    self._halve()
                    continue
                parts.append(part)
                start += size
        return _Parts(parts)

    def _start_if_it_fits(self, frames: AnyFrames, size: int) -> "_Part | None":
        """Returns None when the card has too little memory for ``size`` frames."""
        try:
            return self._start(frames)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            # Left here, so that the traceback does not keep the tensors that were too many.
            return None

    def _start(self, frames: AnyFrames) -> "_Part":
        """Puts frames into the queues."""
        num_frames = len(frames)
        program = self._program(num_frames)
        slot = self._free_slot()
        if isinstance(frames, torch.Tensor):
            source = frames
        else:
            source = slot.host_frames[:num_frames]
            source.numpy()[:] = frames

        def upload() -> None:
            slot.frames[:num_frames].copy_(source, non_blocking=True)

        def compute() -> None:
            # Rows beyond the frames hold older ones: any pixels will do, rows do not mix.
            program.frames.copy_(slot.frames[: len(program.frames)])
            program.step()
            for kept, made in zip(slot.vectors, program.vectors, strict=True):
                kept[:num_frames].copy_(made[:num_frames])

        def download() -> None:
            for host, kept in zip(slot.host_vectors, slot.vectors, strict=True):
                host[:num_frames].copy_(kept[:num_frames], non_blocking=True)

        uploaded = self._up.put(upload)
        computed = self._compute.put(compute, after=[uploaded])
        slot.part = _Part(
            self._down.put(download, after=[computed]),
            [host[:num_frames] for host in slot.host_vectors],
            source,
        )
        return slot.part

    def _free_slot(self) -> "_Slot":
        """Returns the slot that was used longest ago, once its results are out of it."""
        slot = self._slots[self._next_slot]
        self._next_slot = (self._next_slot + 1) % _NUM_SLOTS
        if slot.part is not None:
            slot.part.collect()
        return slot

    def _make_slot(self) -> "_Slot":
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        shapes = [(self.batch_size, width) for width in self._widths]
        return _Slot(
            host_frames=self._card.host_memory(shape, torch.uint8),
            frames=torch.zeros(shape, dtype=torch.uint8, device=self._card.device),
            vectors=[torch.empty(each, device=self._card.device) for each in shapes],
            host_vectors=[self._card.host_memory(each, torch.float32) for each in shapes],
        )

    def forward_step(self) -> Step:
        """Returns the forward pass of a full batch over what lies on the card, to be measured."""
        return self._program(self._forward_size).step

    def _program(self, num_frames: int) -> "_Program":
        """Returns the smallest program that takes so many frames; made when first asked for."""
        sizes = [-(-self._forward_size // (1 << power)) for power in range(self._num_sizes)]
        size = min(each for each in sizes if each >= num_frames)
        if size not in self._programs:
            self._programs[size] = self._make_program(size)
        return self._programs[size]

    def _make_program(self, size: int) -> "_Program":
        device, side, network = self._card.device, self.image_size, self._network
        frames = torch.zeros((size, side, side, 3), dtype=torch.uint8, device=device)
        vectors = [torch.empty((size, width), device=device) for width in self._widths]
        self._card.settle()

        def step() -> None:
            with torch.inference_mode():
                for kept, made in zip(vectors, network(frames), strict=True):
                    kept.copy_(made)

        return _Program(frames, vectors, self._card.record(step))

    def _halve(self) -> None:
        for slot in self._slots:
            if slot.part is not None:
                slot.part.collect()
        self._programs.clear()
        self._card.drop_steps()
        self._forward_size = (self._forward_size + 1) // 2


def find_batch_size(
    model: Backbone,
    preprocessing: Preprocessing,
    *,
    precision: str,
    with_logits: bool = False,
    share: float = 1.0,
    card: Card | None = None,
) -> int:
    """Returns the largest batch, of `largest_batch_size` halved, that fits a card with a margin.

    Args:
        model: float32 weights.
        preprocessing: the weights' recipe.
        precision: of the forward pass.
        with_logits: compute logits too.
        share: of the card's memory that is there to be taken, above 0 and at most 1.
        card: what runs it; by default this process's current CUDA device.

    Raises:
        torch.OutOfMemoryError: not even one frame fits.
    """
    card = card or CUDACard(is_graphed=False)
    size, side = largest_batch_size(preprocessing.image_size), preprocessing.image_size
    card.limit_memory(MEMORY_MARGIN * share)
    try:
        engine = CUDAEngine(
            model,
            preprocessing,
            precision=precision,
            batch_size=size,
            with_logits=with_logits,
            card=card,
        )
        engine.run(np.zeros((size, side, side, 3), np.uint8))
        return engine.forward_size
    finally:
        card.limit_memory(share)


class _CardNetwork(FrameNetwork):
    """Normalises in one kernel; a compiler fuses the definition with what follows by itself."""

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = torch.empty_like(frames, dtype=self.dtype)
        return torch.addcmul(self.offset, frames, self.scale, out=pixels)


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """The network for one number of frames."""

    frames: torch.Tensor
    """uint8 [n, S, S, 3] on the card, from which it reads."""
    vectors: list[torch.Tensor]
    """float32 [n, D] and, if asked for, [n, K] on the card, to which it writes."""
    step: Step


@dataclasses.dataclass(eq=False)
class _Slot:
    """Memory of a batch on its way."""

    host_frames: torch.Tensor
    """uint8 [batch_size, S, S, 3]."""
    frames: torch.Tensor
    """The same on the card."""
    vectors: list[torch.Tensor]
    """float32 [batch_size, width] each, on the card."""
    host_vectors: list[torch.Tensor]
    """The same on the host."""
    part: "_Part | None" = None
    """What lies in it, or lay in it last."""


class _Part:
    """Some frames of a batch that went through the queues together."""

    def __init__(self, mark: Mark, vectors: list[torch.Tensor], source: torch.Tensor) -> None:
        self._mark = mark
        self._vectors = vectors
        # Its memory may not be given to others before it is read.
        self._source: torch.Tensor | None = source
        self._results: list[Vectors] | None = None
        self._lock = threading.Lock()

    def collect(self) -> list[Vectors]:
        """Waits for the results and returns copies, which no longer need the slot."""
        with self._lock:
            if self._results is None:
                self._mark.wait()
                self._results = [vectors.numpy().copy() for vectors in self._vectors]
                self._source = None
            return self._results


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A batch, in several parts if memory ran out."""

    parts: list[_Part]

    def collect(self) -> EngineOutput:
        """Waits for all parts."""
        joined = [
            each[0] if len(each) == 1 else np.concatenate(each)
            for each in zip(*(part.collect() for part in self.parts), strict=True)
        ]
        return EngineOutput(joined[0], joined[1] if len(joined) == 2 else None)
