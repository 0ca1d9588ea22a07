"""The CUDA engine's order of work, on a card made of threads; a real card's tests are marked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cpu_card import CPUCard

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models import engine_cuda
from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.card import CUDACard, is_out_of_memory
from effnet_batch.models.engine import build_engine
from effnet_batch.models.engine_base import Frames
from effnet_batch.models.engine_cuda import CUDAEngine, find_batch_size, largest_batch_size

UP, COMPUTE, DOWN = range(3)


def recipe(image_size: int) -> Preprocessing:
    return Preprocessing(image_size=image_size, resize_size=image_size)


def noise(num_frames: int, image_size: int, seed: int = 0) -> Frames:
    shape = (num_frames, image_size, image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class SmallMemory(Backbone):
    """Averages the pixels; more than ``room`` frames at once do not fit."""

    def __init__(self, room: int, image_size: int = 8) -> None:
        super().__init__(embedding_dim=3, num_classes=2, image_size=image_size, dropout=0.0)
        self.room = room
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory")
        self.sizes: list[int] = []

    def __deepcopy__(self, memo: dict) -> "SmallMemory":
        return self

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error
        return x


def means(frames: Frames) -> np.ndarray:
    recipe = Preprocessing(image_size=8, resize_size=8)
    return (frames.mean(axis=(1, 2)) / 255 - recipe.mean) / recipe.std


def small(card: CPUCard, *, room: int = 1000, batch_size: int = 8) -> CUDAEngine:
    model = SmallMemory(room).eval()
    engine = CUDAEngine(model, recipe(8), precision="fp32", batch_size=batch_size, card=card)
    model.sizes.clear()
    return engine


def wait_until(is_so) -> None:
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_computes_what_the_cpu_engine_computes(precision: str) -> None:
    torch.manual_seed(0)
    model = build_model("efficientnet_b0", num_classes=7, padding="same").eval()
    options = {"precision": precision, "batch_size": 5, "with_logits": True}
    wanted = build_engine(model, recipe(64), engine="torch", device="cpu", **options)
    engine = CUDAEngine(model, recipe(64), **options, card=CPUCard())
    most = {"fp32": 1e-5, "bf16": 0.03}[precision]
    for number in (5, 1, 3):
        frames = noise(number, 64, number)
        output, expected = engine.run(frames), wanted.run(frames)
        for mine, theirs in (
            (output.embeddings, expected.embeddings),
            (output.logits, expected.logits),
        ):
            assert mine.dtype == np.float32
            assert mine.shape == theirs.shape
            assert np.abs(mine - theirs).max() <= most * np.abs(theirs).max()
    assert (engine.name, engine.device, engine.precision) == ("torch", "cuda", precision)
    assert engine.run(noise(0, 64)).logits.shape == (0, 7)


def test_batches_wait_on_the_card_while_one_is_computed() -> None:
    card = CPUCard()
    engine = small(card)
    batches = [noise(8 - seed, 8, seed) for seed in range(4)]
    engine.run(batches[0])  # all are of one size from here on
    before = list(card.num_done)
    card.gates[COMPUTE].clear()
    submitted = [engine.submit(batch) for batch in batches[:3]]
    wait_until(lambda: card.num_done[UP] == before[UP] + 3)  # all are there already
    assert card.num_done[COMPUTE:] == before[COMPUTE:]
    with ThreadPoolExecutor(1) as pool:
        fourth = pool.submit(engine.submit, batches[3])
        time.sleep(0.05)
        assert not fourth.done()  # there is room for three
        card.gates[COMPUTE].set()
        outputs = [each.collect() for each in submitted] + [fourth.result().collect()]
    for batch, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output.embeddings, means(batch), rtol=1e-4, atol=1e-5)


def test_a_slot_is_used_again_only_once_its_results_are_out() -> None:
    card = CPUCard()
    engine = small(card)
    frames = noise(8, 8)
    submitted, wanted = [], []
    for seed in range(10):
        frames[:] = noise(8, 8, seed)  # the engine has taken what was in it
        submitted.append(engine.submit(frames))
        wanted.append(means(frames))
    # Collected late and backwards; the same result as often as it is asked for.
    for each, expected in reversed(list(zip(submitted, wanted, strict=True))):
        np.testing.assert_allclose(each.collect().embeddings, expected, rtol=1e-4, atol=1e-5)
        assert each.collect().embeddings.flags.writeable
    kept = submitted[0].collect().embeddings.copy()
    engine.run(noise(8, 8, 99))
    np.testing.assert_array_equal(submitted[0].collect().embeddings, kept)


def test_threads_get_their_own_results() -> None:
    engine = small(CPUCard())
    batches = [noise(1 + seed % 8, 8, seed) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(engine.run, batches))
    for batch, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output.embeddings, means(batch), rtol=1e-4, atol=1e-5)


def test_few_sizes_are_recorded_and_each_once() -> None:
    card = CPUCard()
    model = SmallMemory(1000).eval()
    engine = CUDAEngine(model, recipe(8), precision="fp32", batch_size=100, card=card)
    model.sizes.clear()
    for number in (100, 51, 50, 26, 25, 14, 13, 1, 77):
        assert len(engine.run(noise(number, 8)).embeddings) == number
    assert set(model.sizes) == {100, 50, 25, 13}
    assert card.num_recorded == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_halves_what_goes_through_together(error: Exception) -> None:
    card = CPUCard()
    engine = small(card, room=3, batch_size=10)
    model = engine._network.model
    model.error = error
    frames = noise(10, 8)
    output = engine.run(frames)
    np.testing.assert_allclose(output.embeddings, means(frames), rtol=1e-4, atol=1e-5)
    # Tried at 10 and at 5; then in parts of 3, each size run once more to be recorded.
    assert model.sizes == [10, 5, 3, 3, 3, 3, 1, 1]
    assert (engine.batch_size, engine.forward_size, card.num_drops) == (10, 3, 2)
    np.testing.assert_allclose(engine.run(frames).embeddings, output.embeddings, rtol=1e-6)
    assert card.num_recorded == 4


def test_batches_under_way_survive_a_halving() -> None:
    card = CPUCard()
    engine = small(card, room=8, batch_size=8)
    first = noise(8, 8, 1)
    submitted = engine.submit(first)
    wait_until(lambda: card.num_done[COMPUTE] == 1)
    engine._network.model.room = 2
    engine._programs.clear()  # as if the next size were met only now
    second = noise(8, 8, 2)
    output = engine.run(second)
    np.testing.assert_allclose(submitted.collect().embeddings, means(first), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.embeddings, means(second), rtol=1e-4, atol=1e-5)


def test_one_frame_that_does_not_fit_and_other_errors_are_errors() -> None:
    engine = small(CPUCard(), batch_size=4)
    engine._network.model.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(noise(4, 8))
    engine = small(CPUCard(), batch_size=4)
    engine._network.model.room = 0
    engine._network.model.error = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        engine.run(noise(4, 8))
    assert engine.forward_size == 4


def test_a_failed_recording_says_what_it_came_upon() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("full")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("operation not permitted"))
    assert not is_out_of_memory(None)


@pytest.mark.parametrize(
    ("image_size", "wanted"), [(224, 512), (380, 256), (600, 64), (8192, 1), (7000, 1)]
)
def test_largest_batch_has_so_many_pixels(image_size: int, wanted: int) -> None:
    assert largest_batch_size(image_size) == wanted


def test_batch_size_is_the_largest_that_fits_with_a_margin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_cuda, "_MAX_BATCH_BYTES", 100 * 3 * 8 * 8)
    card = CPUCard()
    model = SmallMemory(9).eval()
    found = find_batch_size(model, recipe(8), precision="fp32", share=0.25, card=card)
    assert found == 8
    assert list(dict.fromkeys(model.sizes)) == [1, 64, 32, 16, 8]  # one to fold the model
    assert card.limits == [0.225, 0.25]


@pytest.mark.needs_gpu
@pytest.mark.parametrize("is_graphed", [False, True])
def test_a_card_gives_every_batch_its_own_results(is_graphed: bool) -> None:
    torch.manual_seed(0)
    model = build_model("efficientnet_b0", num_classes=7).eval()
    options = {"precision": "fp32", "batch_size": 16, "with_logits": True}
    wanted = build_engine(model, recipe(96), engine="torch", device="cpu", **options)
    engine = CUDAEngine(model, recipe(96), **options, card=CUDACard(is_graphed=is_graphed))
    frames = noise(16, 96)
    submitted, numbers = [], [1 + seed * 7 % 16 for seed in range(12)]
    for seed, number in enumerate(numbers):
        frames[:] = noise(16, 96, seed)
        submitted.append(engine.submit(frames[:number]))
    for seed, (number, each) in enumerate(zip(numbers, submitted, strict=True)):
        expected = wanted.run(noise(16, 96, seed)[:number])
        output = each.collect()
        scale = np.abs(expected.embeddings).max()
        assert np.abs(output.embeddings - expected.embeddings).max() < 1e-4 * scale
        assert output.logits.shape == (number, 7)


@pytest.mark.needs_gpu
def test_a_full_card_halves_the_batch() -> None:
    model = build_model("efficientnet_b0", num_classes=7).eval()
    card = CUDACard()
    total = torch.cuda.get_device_properties(card.device).total_memory
    card.limit_memory(min(1.0, 2 * 2**30 / total))
    try:
        engine = CUDAEngine(model, recipe(224), precision="fp32", batch_size=512, card=card)
        frames = noise(512, 224)
        embeddings = engine.run(frames).embeddings
        assert engine.forward_size < 512
        np.testing.assert_allclose(
            engine.run(frames[:8]).embeddings, embeddings[:8], rtol=1e-3, atol=1e-4
        )
    finally:
        card.limit_memory(1.0)


@pytest.mark.needs_gpu
def test_a_quarter_of_a_card_takes_a_smaller_batch() -> None:
    model = build_model("efficientnet_b7", num_classes=7).eval()
    whole = find_batch_size(model, recipe(600), precision="fp32")
    part = find_batch_size(model, recipe(600), precision="fp32", share=0.05)
    assert 1 <= part < whole <= largest_batch_size(600)


@pytest.mark.needs_gpu
def test_several_threads_may_record_and_run() -> None:
    model = build_model("efficientnet_b0", num_classes=7).eval()
    engines = [
        CUDAEngine(model, recipe(96), precision="bf16", batch_size=8, card=CUDACard())
        for _ in range(2)
    ]
    frames = noise(8, 96)
    barrier = threading.Barrier(4)

    def run(number: int) -> np.ndarray:
        barrier.wait()
        return np.stack([engines[number % 2].run(frames).embeddings for _ in range(20)])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    for result in results:
        np.testing.assert_allclose(result, np.broadcast_to(results[0][0], result.shape), rtol=1e-2)
