"""What only the torch engine does: memory that runs out, threads, compilation, folding, timing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import build_engine
from effnet_batch.models.engine_base import CPUEngine, EngineOutput, Frames
from effnet_batch.models.folding import fold
from effnet_batch.models.measure import measure
from effnet_batch.models.padding import SamePadConv2d


def recipe(image_size: int) -> Preprocessing:
    """Frames as they are, but for the division by 255."""
    return Preprocessing(
        image_size=image_size, resize_size=image_size, mean=(0, 0, 0), std=(1, 1, 1)
    )


def noise(num_frames: int, image_size: int) -> Frames:
    shape = (num_frames, image_size, image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Average(Backbone):
    """Averages the pixels."""

    def __init__(self) -> None:
        super().__init__(embedding_dim=3, num_classes=2, image_size=8, dropout=0.0)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x


class SmallMemory(Average):
    """Averages the pixels; more frames at once than ``room`` do not fit."""

    room: ClassVar[int] = 3
    sizes: ClassVar[list[int]] = []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return x


@pytest.fixture
def small_memory() -> Iterator[SmallMemory]:
    yield SmallMemory().eval()
    SmallMemory.room = 3
    SmallMemory.sizes.clear()


def test_out_of_memory_halves_the_batch(small_memory: SmallMemory) -> None:
    engine = build_engine(small_memory, recipe(8), engine="torch", device="cpu", batch_size=10)
    small_memory.sizes.clear()
    frames = noise(10, 8)
    output = engine.run(frames)
    np.testing.assert_allclose(output.embeddings, frames.mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert small_memory.sizes == [10, 5, 3, 3, 3, 1]
    small_memory.sizes.clear()
    engine.run(frames)
    assert small_memory.sizes == [3, 3, 3, 1]
    assert engine.batch_size == 10


def test_out_of_memory_for_one_frame_is_an_error(small_memory: SmallMemory) -> None:
    engine = build_engine(small_memory, recipe(8), engine="torch", device="cpu", batch_size=4)
    SmallMemory.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(noise(4, 8))


def test_torch_threads_are_as_before() -> None:
    seen = []

    def run() -> None:
        engine = build_engine(
            Average().eval(), recipe(8), engine="torch", device="cpu", num_threads=3
        )
        engine._network.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        torch.set_num_threads(2)
        engine.run(noise(1, 8))
        seen.append(torch.get_num_threads())

    previous = torch.get_num_threads()
    try:
        # In a thread of its own, since torch keeps the setting per thread.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run).result()
    finally:
        torch.set_num_threads(previous)
    assert seen == [3, 2]


@pytest.mark.slow
def test_compiled_torch_engine_fills_batches_up() -> None:
    engine = build_engine(
        Average().eval(), recipe(8), engine="torch", device="cpu", batch_size=4, compiled=True
    )
    seen = []
    network = engine._network
    engine._network = lambda batch: seen.append(len(batch)) or network(batch)
    frames = noise(6, 8)
    for start, stop in ((0, 4), (4, 6), (5, 6)):
        embeddings = engine.run(frames[start:stop]).embeddings
        wanted = frames[start:stop].mean(axis=(1, 2)) / 255
        np.testing.assert_allclose(embeddings, wanted, rtol=1e-5)
    assert seen == [4, 4, 4]


class Sleeper(CPUEngine):
    """Takes 20 ms a batch and notes who called."""

    def __init__(self, num_streams: int) -> None:
        super().__init__(
            Average(),
            recipe(8),
            name="torch",
            device="cpu",
            precision="fp32",
            batch_size=4,
            num_threads=1,
            num_streams=num_streams,
            with_logits=False,
        )
        self.callers: list[tuple[int, int]] = []

    def _run(self, frames: Frames) -> EngineOutput:
        self.callers.append((threading.get_ident(), len(frames)))
        time.sleep(0.02)
        return EngineOutput(np.zeros((len(frames), 3), np.float32), None)


def test_measure_counts_full_batches_of_every_stream() -> None:
    engine = Sleeper(num_streams=2)
    throughput = measure(engine, seconds=0.1)
    # Two streams of 4 images a 20 ms are 400 images/s; a sleep may last longer, never shorter.
    assert 0 < throughput.images_per_second <= 400
    assert throughput.num_batches == len(engine.callers) - 2  # one warm-up each
    assert {size for _, size in engine.callers} == {4}
    assert len({thread for thread, _ in engine.callers}) == 2


def test_measure_passes_errors_on(small_memory: SmallMemory) -> None:
    SmallMemory.room = 4
    engine = build_engine(
        small_memory, recipe(8), engine="torch", device="cpu", batch_size=4, num_streams=2
    )
    SmallMemory.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        measure(engine, seconds=0.01)


def test_fold_leaves_only_plain_convolutions() -> None:
    generator = torch.Generator().manual_seed(0)
    model = build_model("efficientnet_b0", padding="same", num_classes=3).eval()
    for module in model.modules():
        # Fresh statistics are zeros and ones, which any folding would get right.
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    pixels = torch.rand(1, 3, 75, 75, generator=generator)
    with torch.inference_mode():
        wanted = model(pixels).numpy()
        fold(model, 75)
        folded = model(pixels).numpy()
    np.testing.assert_allclose(folded, wanted, atol=1e-5 * np.abs(wanted).max())
    assert not any(isinstance(m, nn.BatchNorm2d | SamePadConv2d) for m in model.modules())


def test_fold_refuses_training_mode() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold(build_model("efficientnet_b0").train(), 64)
