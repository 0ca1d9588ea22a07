"""The torch engine on a CPU: folded and channels_last."""

import copy

import torch

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine_base import (
    CPUEngine,
    EngineOutput,
    FrameNetwork,
    Frames,
    cpu_forward_size,
)
from effnet_batch.models.folding import fold

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine(CPUEngine):
    """Runs a folded copy of the model; the caller's model stays as it is.

    Args:
        compiled: let torch.compile generate the kernels; the first batch then takes up to minutes.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
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
            device="cpu",
            precision=precision,
            batch_size=batch_size,
            num_threads=num_threads,
            num_streams=num_streams,
            with_logits=with_logits,
        )
        dtype = DTYPES[precision]
        folded = folded_copy(model, self.image_size, dtype)
        network = FrameNetwork(folded, preprocessing, with_logits=with_logits, dtype=dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Compiled kernels are chosen per shape, so there every batch is a full one.
        self._is_fixed = compiled
        self._network = torch.compile(network, dynamic=False) if compiled else network
        self._forward_size = cpu_forward_size(self.image_size, batch_size)

    def _run(self, frames: Frames) -> EngineOutput:
        chunks: list[tuple[torch.Tensor, ...]] = []
        start = 0
        while start < len(frames):
            size = self._forward_size
            outputs = self._forward_if_it_fits(frames[start : start + size], size)
            if outputs is None:
                # Another thread may have gone lower in the meantime.
                self._forward_size = min(self._forward_size, (size + 1) // 2)
                continue
            chunks.append(outputs)
            start += size
        joined = [torch.cat(parts).numpy() for parts in zip(*chunks, strict=True)]
        return EngineOutput(joined[0], joined[1] if self.num_classes is not None else None)

    def _forward_if_it_fits(self, frames: Frames, size: int) -> tuple[torch.Tensor, ...] | None:
        """Returns None when there is too little memory for ``size`` frames."""
        try:
            return self._forward(frames, size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            # Left here, so that the traceback does not keep the tensors that were too many.
            return None

    def _forward(self, frames: Frames, size: int) -> tuple[torch.Tensor, ...]:
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


def folded_copy(model: Backbone, image_size: int, dtype: torch.dtype) -> Backbone:
    """Returns a folded copy on the CPU for one image size, of ``dtype`` but for its classifier."""
    folded = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    fold(folded, image_size)
    classifier = folded.fc
    folded.to(dtype)
    classifier.float()
    return folded
