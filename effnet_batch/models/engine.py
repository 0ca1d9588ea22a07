"""One call for every way to run a model: uint8 frames in, embeddings and logits out.

``torch`` runs anywhere; ``openvino`` (an extra) runs CPUs 1.4-2 times as fast.
"""

import dataclasses
import importlib.util
from typing import Final

import torch

from effnet_batch.errors import ConfigError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine_base import Engine, EngineOutput
from effnet_batch.models.engine_cuda import CUDAEngine
from effnet_batch.models.engine_torch import TorchEngine

__all__ = [
    "DEVICES",
    "ENGINES",
    "PRECISIONS",
    "Engine",
    "EngineChoice",
    "EngineOutput",
    "build_engine",
    "resolve_engine",
]

AUTO: Final = "auto"
ENGINES: Final = (AUTO, "torch", "openvino")
DEVICES: Final = (AUTO, "cpu", "cuda")
PRECISIONS: Final = (AUTO, "fp32", "bf16", "fp16")

CPU_BATCH_SIZE: Final = 16
"""Frames of one call; fewer go through the layers together (`engine_base.cpu_forward_size`)."""
CUDA_BATCH_SIZE: Final = 256
"""Where nothing is known of the frames; `engine_cuda.find_batch_size` finds what fits a model."""

_PRECISIONS_OF: Final = {
    ("torch", "cpu"): ("fp32", "bf16"),
    ("torch", "cuda"): ("fp32", "bf16", "fp16"),
    ("openvino", "cpu"): ("fp32", "bf16", "fp16"),
}


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What runs once every ``auto`` is resolved; part of the fingerprint but for the batch size."""

    engine: str
    """``torch`` or ``openvino``."""
    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""
    batch_size: int
    """Frames per forward pass."""
    compiled: bool = False
    """Whether torch.compile generates the kernels."""

    @property
    def name(self) -> str:
        """The engine with all that its numbers depend on but the precision."""
        return f"{self.engine} compiled" if self.compiled else self.engine


def resolve_engine(
    *,
    engine: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    batch_size: int | None = None,
    compiled: bool = False,
) -> EngineChoice:
    """Resolves every ``auto`` for the machine it is called on; builds and loads nothing.

    The device is ``cuda`` where there is one, the engine on a CPU is ``openvino`` where it is
    installed. Precision is fp32 on a CPU, bf16 on a card (fp16 where it has no bf16).

    Raises:
        ConfigError: a value is unknown, not available on this machine, or does not go with the
            others.
    """
    for name, value, allowed in (
        ("engine", engine, ENGINES),
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")

    if device == AUTO:
        device = "cuda" if engine != "openvino" and torch.cuda.is_available() else "cpu"
    if compiled and engine == "openvino":
        raise ConfigError("compiled goes with engine torch only; openvino always compiles")
    if engine == AUTO:
        is_openvino = device == "cpu" and not compiled and _is_openvino_installed()
        engine = "openvino" if is_openvino else "torch"
    _check_available(engine, device)
    return EngineChoice(
        engine=engine,
        device=device,
        precision=_resolve_precision(precision, engine, device),
        batch_size=batch_size or (CUDA_BATCH_SIZE if device == "cuda" else CPU_BATCH_SIZE),
        compiled=compiled,
    )


def build_engine(
    model: Backbone,
    preprocessing: Preprocessing,
    *,
    engine: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    batch_size: int | None = None,
    num_threads: int = 1,
    num_streams: int = 1,
    with_logits: bool = False,
    compiled: bool = False,
) -> Engine:
    """Makes a model ready to run; the model itself keeps its weights and is put into eval mode.

    Args:
        model: float32 weights; may be dropped afterwards.
        preprocessing: the weights' recipe; gives the frames' size and the normalisation.
        engine: one of `ENGINES`.
        device: one of `DEVICES`.
        precision: one of `PRECISIONS`.
        batch_size: most frames of one call; by default 16 on a CPU and 256 on a card.
        num_threads: threads that each call computes with, on a CPU.
        num_streams: how many threads call at once.
        with_logits: compute logits too.
        compiled: let torch.compile generate the kernels; only for the torch engine.

    Raises:
        ConfigError: as `resolve_engine`, or this CPU has no such precision.
    """
    for name, count in (("num_threads", num_threads), ("num_streams", num_streams)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    choice = resolve_engine(
        engine=engine,
        device=device,
        precision=precision,
        batch_size=batch_size,
        compiled=compiled,
    )
    if choice.engine == "openvino":
        # Imported here because it is an extra.
        from effnet_batch.models.engine_openvino import OpenVINOEngine

        return OpenVINOEngine(
            model,
            preprocessing,
            precision=choice.precision,
            batch_size=choice.batch_size,
            num_threads=num_threads,
            num_streams=num_streams,
            with_logits=with_logits,
        )
    if choice.device == "cuda":
        return CUDAEngine(
            model,
            preprocessing,
            precision=choice.precision,
            batch_size=choice.batch_size,
            num_streams=num_streams,
            with_logits=with_logits,
            compiled=choice.compiled,
        )
    return TorchEngine(
        model,
        preprocessing,
        precision=choice.precision,
        batch_size=choice.batch_size,
        num_threads=num_threads,
        num_streams=num_streams,
        with_logits=with_logits,
        compiled=choice.compiled,
    )


def _is_openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _check_available(engine: str, device: str) -> None:
    if (engine, device) not in _PRECISIONS_OF:
        raise ConfigError(
            f"engine {engine} does not run on device {device}; choose device cpu, or engine torch"
        )
    if engine == "openvino" and not _is_openvino_installed():
        raise ConfigError(
            "engine openvino is not installed: pip install 'effnet-batch[openvino]', "
            "or choose engine torch"
        )
    if device == "cuda" and not torch.cuda.is_available():
        cause = (
            "no GPU or no driver is visible to it"
            if torch.version.cuda
            else "it was built for CPUs only: install a CUDA build of torch (https://pytorch.org)"
        )
        raise ConfigError(
            f"device cuda is not available to torch {torch.__version__}: {cause}; "
            "or choose device cpu"
        )


def _resolve_precision(precision: str, engine: str, device: str) -> str:
    allowed = _PRECISIONS_OF[engine, device]
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        allowed = tuple(name for name in allowed if name != "bf16")
    if precision == AUTO:
        if device == "cpu":
            return "fp32"
        return "bf16" if "bf16" in allowed else "fp16"
    if precision not in allowed:
        raise ConfigError(
            f"precision {precision} does not run on engine {engine}, device {device} here; "
            f"choose one of {', '.join(allowed)}"
        )
    return precision
