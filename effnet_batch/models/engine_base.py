"""What both engines share: the call, its result, and the network from uint8 frames to vectors."""

import abc
import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone

Frames = npt.NDArray[np.uint8]
AnyFrames = Frames | torch.Tensor
"""uint8 frames in host memory or, for an engine on a card, on that card and ready."""
Vectors = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class EngineOutput:
    """The result of one forward pass over N frames; the arrays belong to the caller."""

    embeddings: Vectors
    """float32 [N, embedding_dim], globally averaged features."""
    logits: Vectors | None
    """float32 [N, num_classes], or None if the engine was built without logits."""


class Submitted(Protocol):
    """A forward pass that was started."""

    def collect(self) -> EngineOutput:
        """Waits for the pass to end and returns its result; may be asked again."""
        ...


@dataclasses.dataclass(frozen=True)
class Finished:
    """A forward pass that is over."""

    output: EngineOutput

    def collect(self) -> EngineOutput:
        """Returns its result."""
        return self.output


class Engine(abc.ABC):
    """A model ready to run on one device; `build_engine` makes it.

    Attributes:
        name: ``torch`` or ``openvino``.
        device: ``cpu`` or ``cuda``.
        precision: what really runs: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: most frames that one `run` takes.
        image_size: side of a frame, in pixels.
        num_threads: threads that one `run` computes with, on a CPU.
        num_streams: how many threads may usefully call `run` at once.
        embedding_dim: length of an embedding.
        num_classes: number of logits, or None if the engine was built without logits.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
        name: str,
        device: str,
        precision: str,
        batch_size: int,
        num_threads: int,
        num_streams: int,
        with_logits: bool,
    ) -> None:
        self.name = name
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.image_size = preprocessing.image_size
        self.num_threads = num_threads
        self.num_streams = num_streams
        self.embedding_dim = model.embedding_dim
        self.num_classes = model.num_classes if with_logits else None

    def run(self, frames: AnyFrames) -> EngineOutput:
        """Computes embeddings, and logits if asked for, in one forward pass.

        How many frames it came with changes a frame's numbers by rounding at most: on a CPU by less
        than 1e-5 of the largest in fp32; on a card within the last bits of the precision, since
        each of few sizes of batches has kernels of its own, chosen by their speed. May be called
        from several threads at once.

        Args:
            frames: uint8 RGB [N, image_size, image_size, 3], N at most ``batch_size``; 0..255, not
                normalised.

        Raises:
            ValueError: the frames have another type, shape or number.
        """
        return self.submit(frames).collect()

    def submit(self, frames: AnyFrames) -> Submitted:
        """Starts what `run` does; frames in host memory may be changed once this returns.

        On a card this returns while the frames are under way to it, so that a caller who submits
        the next batch before it collects this one keeps the card busy. On a CPU the pass is over.

        Raises:
            ValueError: as `run`.
        """
        expected = (self.image_size, self.image_size, 3)
        if (
            frames.dtype not in (np.uint8, torch.uint8)
            or frames.ndim != 4
            or frames.shape[1:] != expected
        ):
            raise ValueError(
                f"frames must be uint8 [N, {', '.join(map(str, expected))}], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        if len(frames) > self.batch_size:
            raise ValueError(f"at most {self.batch_size} frames a batch, got {len(frames)}")
        if len(frames) == 0:
            logits = None if self.num_classes is None else _empty(self.num_classes)
            return Finished(EngineOutput(_empty(self.embedding_dim), logits))
        return self._submit(frames)

    @abc.abstractmethod
    def _submit(self, frames: AnyFrames) -> Submitted:
        """Starts 1..batch_size checked frames."""


class CPUEngine(Engine):
    """An engine that computes in the thread that calls it."""

    def _submit(self, frames: AnyFrames) -> Submitted:
        if isinstance(frames, torch.Tensor):
            frames = frames.numpy()
        # Frames are read in place, for which they must be contiguous and writeable.
        return Finished(self._run(np.require(frames, requirements=["C", "W"])))

    @abc.abstractmethod
    def _run(self, frames: Frames) -> EngineOutput:
        """Runs 1..batch_size checked, C-contiguous, writeable frames."""


def cpu_forward_size(image_size: int, batch_size: int) -> int:
    """Returns how many frames of a batch should go through the layers together on a CPU.

    Feature maps must stay in the caches: B0 and Lite0 at 224 pixels run 1.1-1.25 times as many
    images/s four at a time as sixteen at a time, B4 at 380 pixels 1.15 times one at a time;
    ResNet-50 does not care (2 cores with 1 MiB of L2 each, OpenVINO, fp32 and bf16).
    """
    return min(batch_size, max(1, round(4 * (224 / image_size) ** 2)))


def _empty(width: int) -> Vectors:
    return np.empty((0, width), np.float32)


class FrameNetwork(nn.Module):
    """Normalisation, backbone and classifier as one graph, so that each engine can fuse them.

    The model is shared, not copied, and put into eval mode.

    Args:
        dtype: of the backbone's weights; normalisation and classifier are float32 always.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
        with_logits: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.with_logits = with_logits
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, 3, 1, 1))
        self.eval()

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps uint8 [N,S,S,3] to float32 embeddings [N,D] and, if asked for, logits [N,K]."""
        # Permuting is free: it leaves NCHW in channels_last memory, as the convolutions want it.
        embeddings = self.model.embed(self.normalise(frames.permute(0, 3, 1, 2))).float()
        if not self.with_logits:
            return (embeddings,)
        # The classifier stays float32: it is cheap, and bfloat16 logits would tie in the top k.
        return embeddings, self.model.fc(embeddings)

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """Maps uint8 [N,3,S,S] to the backbone's input, of its dtype and the same layout."""
        return (frames.float() * self.scale + self.offset).to(self.dtype)
