"""Part 1: the forward pass alone, over frames that lie on the device."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator

import torch
from on_card.machine import DTYPES, Ceilings, Machine
from torch import nn

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import ARCHITECTURES, build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.cost import measure_cost
from effnet_batch.models.engine_base import FrameNetwork
from effnet_batch.models.engine_cuda import CUDAEngine, largest_batch_size

EAGER, FOLDED, GRAPHED, COMPILED = "eager", "folded", "graphed", "compiled"
TIMM = "timm compiled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
    """One line of the table."""

    model: str
    image_size: int
    precision: str
    batch_size: int
    kind: str
    images_per_second: float
    tflops: float
    """Achieved, at two operations a multiply-add."""
    flops_share: float
    """Of what a large matrix product achieves in this precision."""
    min_bytes: int
    """That a pass moves if every convolution reads its input and writes its output once."""
    bytes_share: float
    """Of what a large copy achieves, if no more than that were moved."""


def batch_of(image_size: int, limit: int | None) -> int:
    batch = largest_batch_size(image_size)
    return batch if limit is None else min(batch, limit)


def measure_forward(
    machine: Machine,
    ceilings: Ceilings,
    name: str,
    precision: str,
    batch_size: int,
    kinds: tuple[str, ...],
    image_size: int | None = None,
) -> Iterator[Forward]:
    """Yields a line per kind that can run here; one that fails is said and left out."""
    side = image_size or ARCHITECTURES[name].resolution
    cost, minimum = measure_cost(name, image_size=side), _min_bytes(name, side, precision)
    for kind in kinds:
        try:
            step = _step(machine, name, side, precision, batch_size, kind)
            seconds = machine.time(step)
        except (RuntimeError, ImportError) as error:  # memory, or no compiler
            print(f"{name} {precision} {kind} batch {batch_size}: {error}"[:200], flush=True)
            continue
        finally:
            step = None
            # Else the compiler keeps every network, and gives up after some of them.
            torch.compiler.reset()
            machine.free()
        rate = batch_size / seconds
        flops = 2 * cost.num_macs * rate
        yield Forward(
            model=name,
            image_size=side,
            precision=precision,
            batch_size=batch_size,
            kind=kind,
            images_per_second=rate,
            tflops=flops / 1e12,
            flops_share=flops / ceilings.flops[precision],
            min_bytes=minimum,
            bytes_share=minimum * rate / ceilings.copy_bytes,
        )


def has_timm() -> bool:
    if importlib.util.find_spec("timm") is None:
        return False
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # torchvision of another build
        print(f"timm is left out: {error}")
        return False
    return True


def _step(
    machine: Machine, name: str, side: int, precision: str, batch_size: int, kind: str
) -> Callable[[], object]:
    dtype, device = DTYPES[precision], machine.device
    if kind == TIMM:
        timm = importlib.import_module("timm")
        network = timm.create_model(name, num_classes=0).eval().to(device, dtype)
        return _compiled_timm(network.to(memory_format=torch.channels_last), batch_size, side)
    torch.manual_seed(0)
    model = build_model(name).eval()
    preprocessing = Preprocessing(image_size=side, resize_size=side)
    if kind == EAGER:
        return _eager(model, preprocessing, device, dtype, batch_size)
    engine = CUDAEngine(
        model,
        preprocessing,
        precision=precision,
        batch_size=batch_size,
        compiled=kind == COMPILED,
        card=machine.card(is_graphed=kind != FOLDED),
    )
    step = engine.forward_step()
    if engine.forward_size != batch_size:
        raise torch.OutOfMemoryError("the batch does not fit")
    return step


def _eager(
    model: Backbone,
    preprocessing: Preprocessing,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> Callable[[], object]:
    """Returns the model as it is, with the normalisation that its definition has."""
    network = FrameNetwork(model.to(dtype), preprocessing, with_logits=False, dtype=dtype)
    network.to(device, memory_format=torch.channels_last)
    side = preprocessing.image_size
    frames = torch.zeros((batch_size, side, side, 3), dtype=torch.uint8, device=device)

    def step() -> object:
        with torch.inference_mode():
            return network(frames)

    return step


def _compiled_timm(network: nn.Module, batch_size: int, side: int) -> Callable[[], object]:
    """Returns timm's network at its best, on pixels that are normalised already."""
    parameter = next(network.parameters())
    pixels = torch.zeros(
        (batch_size, 3, side, side), device=parameter.device, dtype=parameter.dtype
    ).to(memory_format=torch.channels_last)
    compiled = torch.compile(network, mode="max-autotune", dynamic=False)

    def step() -> object:
        with torch.inference_mode():
            return compiled(pixels)

    return step


def _min_bytes(name: str, side: int, precision: str) -> int:
    """Returns bytes of an image's feature maps, each written and read once by its convolution."""
    num_elements = 0
    with torch.device("meta"):
        model = build_model(name).eval()

        def count(
            _layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> None:
            nonlocal num_elements
            num_elements += math.prod(inputs[0].shape) + math.prod(output.shape)

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        with torch.no_grad():
            model(torch.empty(1, 3, side, side))
    return num_elements * DTYPES[precision].itemsize
