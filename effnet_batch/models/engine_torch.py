"""The torch engine: folded and channels_last, on the CPU or on one CUDA device."""

import copy
import dataclasses
import threading

import torch

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine_base import (
    Engine,
    EngineOutput,
    FrameNetwork,
    Frames,
    cpu_forward_size,
)
from effnet_batch.models.folding import fold

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class _Lane:
    """What one calling thread needs for itself on a CUDA device."""

    stream: torch.cuda.Stream
    pinned_frames: torch.Tensor
    """uint8 [batch_size, S, S, 3] in page-locked memory, which copies without blocking."""


class TorchEngine(Engine):
    """Runs a folded copy of the model; the caller's model stays as it is.

    Args:
        compiled: let torch.compile generate the kernels; the first batch then takes up to minutes.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
        device: str,
        precision: str,
        batch_size: int,
        num_threads: int = 1,
        num_streams: int = 1,
        with_logits: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(
            model,
            preprocessing,
            name="torch",
            device=device,
            precision=precision,
            batch_size=batch_size,
            num_threads=num_threads,
            num_streams=num_streams,
            with_logits=with_logits,
        )
        folded = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        fold(folded, self.image_size)
        classifier = folded.fc
        folded.to(DTYPES[precision])
        classifier.float()
        # Convolutions run 1.1-1.2 times as fast on channels_last, on the CPU and on the card.
        network = FrameNetwork(
            folded, preprocessing, with_logits=with_logits, dtype=DTYPES[precision]
        ).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # CUDA and compiled kernels are chosen per shape, so there every batch is a full one.
        self._is_fixed = compiled or device == "cuda"
        # CUDA graphs belong to one thread; without them several threads may call.
        mode = "max-autotune-no-cudagraphs" if device == "cuda" else "default"
        self._network = torch.compile(network, mode=mode, dynamic=False) if compiled else network
        is_cpu = device == "cpu"
        self._forward_size = cpu_forward_size(self.image_size, batch_size) if is_cpu else batch_size
        self._lanes = threading.local()
        if device == "cuda":
            torch.backends.cudnn.benchmark = True
            # cuDNN would compute float32 convolutions in TF32, 1e-3 off.
            torch.backends.cudnn.allow_tf32 = False

    def _run(self, frames: Frames) -> EngineOutput:
        chunks: list[tuple[torch.Tensor, ...]] = []
        start = 0
        while start < len(frames):
            size = self._forward_size
            outputs = self._forward_if_it_fits(frames[start : start + size], size)
            if outputs is None:
                self._halve(size)
                continue
            chunks.append(outputs)
            start += size
        joined = [torch.cat(parts).numpy() for parts in zip(*chunks, strict=True)]
        return EngineOutput(joined[0], joined[1] if self.num_classes is not None else None)

    def _forward_if_it_fits(self, frames: Frames, size: int) -> tuple[torch.Tensor, ...] | None:
        """Returns None when the device has too little memory for ``size`` frames."""
        try:
            if self.device == "cuda":
                return self._forward_cuda(frames, size)
            return self._forward_cpu(frames, size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            # Left here, so that the traceback does not keep the tensors that were too many.
            return None

    def _halve(self, size: int) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()
        # Another thread may have gone lower in the meantime.
        self._forward_size = min(self._forward_size, (size + 1) // 2)

    def _forward_cpu(self, frames: Frames, size: int) -> tuple[torch.Tensor, ...]:
        # torch keeps this setting per calling thread; a new thread starts with the default.
        previous = torch.get_num_threads()
        if previous != self.num_threads:
            torch.set_num_threads(self.num_threads)
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(frames)
                if self._is_fixed and len(frames) < size:
                    batch = torch.cat(
                        [batch, batch.new_zeros(size - len(frames), *batch.shape[1:])]
                    )
                return tuple(output[: len(frames)] for output in self._network(batch))
        finally:
            if previous != self.num_threads:
                torch.set_num_threads(previous)

    def _forward_cuda(self, frames: Frames, size: int) -> tuple[torch.Tensor, ...]:
        lane = self._lane()
        # Rows beyond the frames hold older frames: any pixels will do, rows do not mix.
        lane.pinned_frames.numpy()[: len(frames)] = frames
        with torch.inference_mode(), torch.cuda.stream(lane.stream):
            batch = lane.pinned_frames[:size].to(self.device, non_blocking=True)
            results = []
            for output in self._network(batch):
                result = torch.empty(
                    (len(frames), output.shape[1]), dtype=torch.float32, pin_memory=True
                )
                results.append(result.copy_(output[: len(frames)], non_blocking=True))
            lane.stream.synchronize()
        return tuple(results)

    def _lane(self) -> _Lane:
        """Returns the calling thread's stream and buffer, made on its first call."""
        lane: _Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            shape = (self.batch_size, self.image_size, self.image_size, 3)
            pinned = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
            lane = _Lane(torch.cuda.Stream(), pinned)  # type: ignore[no-untyped-call]
            self._lanes.lane = lane
        return lane
