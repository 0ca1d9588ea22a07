"""Part 2: from frames in host memory to embeddings in host memory."""

import collections
import dataclasses
import time

import numpy as np
import torch
from on_card.forward import batch_of
from on_card.machine import Machine

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import ARCHITECTURES, build_model
from effnet_batch.models.engine_base import Submitted
from effnet_batch.models.engine_cuda import CUDAEngine

_AHEAD = 2
"""Batches that are submitted before the first is collected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """One line of the table."""

    model: str
    precision: str
    batch_size: int
    upload_bytes_per_second: float
    """Of page-locked memory, with nothing else under way."""
    forward_images_per_second: float
    """Over frames that lie on the device."""
    one_by_one_images_per_second: float
    """A batch is submitted when the one before is collected."""
    overlapped_images_per_second: float
    overlapped_share: float
    """Of the forward pass alone."""


def measure_transfer(
    machine: Machine, name: str, precision: str, limit: int | None, image_size: int | None = None
) -> Transfer:
    side = image_size or ARCHITECTURES[name].resolution
    batch_size = batch_of(side, limit)
    torch.manual_seed(0)
    engine = CUDAEngine(
        build_model(name).eval(),
        Preprocessing(image_size=side, resize_size=side),
        precision=precision,
        batch_size=batch_size,
        card=machine.card(),
    )
    shape = (batch_size, side, side, 3)
    # Different memory each time, as decoders make it: what a cache holds costs nothing to copy.
    batches = [
        np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) for seed in range(4)
    ]
    forward = batch_size / machine.time(engine.forward_step())
    one_by_one = _rate(machine, engine, batches, ahead=0)
    overlapped = _rate(machine, engine, batches, ahead=_AHEAD)
    host = machine.card().host_memory(shape, torch.uint8)
    target = torch.empty(shape, dtype=torch.uint8, device=machine.device)
    upload = host.numel() / machine.time(lambda: target.copy_(host, non_blocking=True))
    return Transfer(
        model=name,
        precision=precision,
        batch_size=batch_size,
        upload_bytes_per_second=upload,
        forward_images_per_second=forward,
        one_by_one_images_per_second=one_by_one,
        overlapped_images_per_second=overlapped,
        overlapped_share=overlapped / forward,
    )


def _rate(machine: Machine, engine: CUDAEngine, batches: list[np.ndarray], *, ahead: int) -> float:
    """Returns images per second with so many batches submitted ahead."""
    waiting: collections.deque[Submitted] = collections.deque()
    num_collected, number = 0, 0
    for batch in batches:
        engine.run(batch)
    start = time.perf_counter()
    while time.perf_counter() < start + machine.seconds or not num_collected:
        waiting.append(engine.submit(batches[number % len(batches)]))
        number += 1
        if len(waiting) > ahead:
            num_collected += len(waiting.popleft().collect().embeddings)
    while waiting:
        num_collected += len(waiting.popleft().collect().embeddings)
    return num_collected / (time.perf_counter() - start)
