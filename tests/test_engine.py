"""Every engine computes what the model computes, whatever the batch, the thread and the machine."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import PHOTOGRAPHS, encode, photograph
from torch import nn

from effnet_batch.errors import ConfigError
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models import engine as engine_module
from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import build_engine
from effnet_batch.models.engine_base import Engine, EngineOutput, Frames, cpu_forward_size
from effnet_batch.models.weights import load_model

ENGINES = ("torch", "openvino")
HAS_OPENVINO = pytest.mark.skipif(
    not engine_module._is_openvino_installed(), reason="openvino is an extra"
)


@pytest.fixture(params=[pytest.param("torch"), pytest.param("openvino", marks=HAS_OPENVINO)])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recipe(image_size: int) -> Preprocessing:
    return Preprocessing(image_size=image_size, resize_size=image_size)


def with_statistics(model: Backbone) -> Backbone:
    """Gives every normalisation statistics that matter; fresh ones are zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def noise(num_frames: int, image_size: int, seed: int = 0) -> Frames:
    shape = (num_frames, image_size, image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(model: Backbone, frames: Frames, preprocessing: Preprocessing) -> EngineOutput:
    """The model as it stands, with the normalisation as its definition has it."""
    pixels = (frames / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32))
    with torch.inference_mode():
        return EngineOutput(model.embed(nchw).numpy(), model(nchw).numpy())


def relative(actual: np.ndarray, wanted: np.ndarray) -> float:
    assert actual.dtype == np.float32
    assert actual.shape == wanted.shape
    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    """EfficientNet-Lite0 with its real ImageNet weights."""
    return load_model("efficientnet_lite0")


@pytest.fixture(scope="module")
def real_frames(lite0: Backbone) -> Frames:
    """The photographs as Lite0 sees them, in the order of `PHOTOGRAPHS`."""
    preprocessing = lite0.weights_info.preprocessing
    return np.stack(
        [
            decode_image(encode(photograph(name)), preprocessing, ImageLimits()).frame
            for name in PHOTOGRAPHS
        ]
    )


@pytest.fixture(scope="module")
def small() -> Backbone:
    torch.manual_seed(0)
    return with_statistics(build_model("efficientnet_b0", num_classes=7))


# An odd side makes SAME padding differ between the sides of some layers and not of others.
@pytest.mark.parametrize(
    ("name", "options", "image_size"),
    [
        ("efficientnet_b0", {"padding": "symmetric"}, 96),
        ("efficientnet_b0", {"padding": "same", "bn_eps": 1e-3}, 97),
        ("efficientnet_b1", {"padding": "same_static", "image_size": 100}, 90),
        ("efficientnet_lite1", {"padding": "same"}, 80),
        ("resnet50", {}, 64),
        ("mobilenet_v2", {}, 64),
    ],
)
def test_fp32_engines_agree_with_the_model(
    engine_name: str, name: str, options: dict, image_size: int
) -> None:
    torch.manual_seed(0)
    model = with_statistics(build_model(name, num_classes=10, **options))
    preprocessing = recipe(image_size)
    frames = noise(3, image_size)
    wanted = expected(model, frames, preprocessing)
    engine = build_engine(
        model, preprocessing, engine=engine_name, device="cpu", precision="fp32", with_logits=True
    )
    output = engine.run(frames)
    assert (engine.name, engine.device, engine.precision) == (engine_name, "cpu", "fp32")
    assert relative(output.embeddings, wanted.embeddings) < 1e-4
    assert relative(output.logits, wanted.logits) < 1e-4


def test_fp32_engines_agree_on_real_weights_and_photographs(
    engine_name: str, lite0: Backbone, real_frames: Frames
) -> None:
    preprocessing = lite0.weights_info.preprocessing
    wanted = expected(lite0, real_frames, preprocessing)
    engine = build_engine(
        lite0, preprocessing, engine=engine_name, device="cpu", precision="fp32", with_logits=True
    )
    output = engine.run(real_frames)
    assert relative(output.embeddings, wanted.embeddings) < 1e-4
    assert relative(output.logits, wanted.logits) < 1e-4
    coffee = list(PHOTOGRAPHS).index("coffee")
    assert output.logits[coffee].argmax() == 967  # espresso


def needs_precision(engine_name: str, precision: str) -> None:
    """Skips where OpenVINO would refuse the precision on this CPU."""
    if engine_name == "openvino":
        import openvino

        if precision.upper() not in openvino.Core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            pytest.skip(f"OpenVINO has no {precision} on this CPU")


def test_bf16_stays_near_fp32_on_real_weights_and_photographs(
    engine_name: str, lite0: Backbone, real_frames: Frames
) -> None:
    needs_precision(engine_name, "bf16")
    preprocessing = lite0.weights_info.preprocessing
    wanted = expected(lite0, real_frames, preprocessing).embeddings
    engine = build_engine(lite0, preprocessing, engine=engine_name, device="cpu", precision="bf16")
    embeddings = engine.run(real_frames).embeddings
    assert engine.precision == "bf16"
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (embeddings * wanted).sum(axis=1) / lengths
    assert cosines.min() >= 0.99
    # It did run in bf16: fp32 would be a thousand times nearer.
    assert relative(embeddings, wanted) > 1e-4


def test_a_frame_does_not_depend_on_its_batch(engine_name: str, small: Backbone) -> None:
    engine = build_engine(
        small, recipe(96), engine=engine_name, device="cpu", batch_size=32, with_logits=True
    )
    assert cpu_forward_size(96, 32) == 22  # so 32 frames are one full pass and a filled-up one
    frames = noise(32, 96)
    full = engine.run(frames)
    for start, stop in ((0, 1), (3, 10), (8, 31), (9, 32)):
        part = engine.run(frames[start:stop])
        assert part.embeddings.shape == (stop - start, 1280)
        assert relative(part.embeddings, full.embeddings[start:stop]) < 1e-5
        assert relative(part.logits, full.logits[start:stop]) < 1e-5


@pytest.mark.parametrize(
    ("image_size", "batch_size", "wanted"),
    [(224, 16, 4), (224, 2, 2), (380, 16, 1), (672, 16, 1), (112, 16, 16), (112, 64, 16)],
)
def test_cpu_forward_size_keeps_pixels_in_cache(
    image_size: int, batch_size: int, wanted: int
) -> None:
    assert cpu_forward_size(image_size, batch_size) == wanted


def test_threads_do_not_disturb_each_other(engine_name: str, small: Backbone) -> None:
    engine = build_engine(
        small, recipe(64), engine=engine_name, device="cpu", batch_size=4, num_streams=3
    )
    batches = [noise(1 + seed % 4, 64, seed) for seed in range(24)]
    alone = [engine.run(batch).embeddings for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(engine.run, batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.embeddings, one, rtol=1e-4, atol=1e-6)


def test_results_belong_to_the_caller(engine_name: str, small: Backbone) -> None:
    engine = build_engine(small, recipe(64), engine=engine_name, device="cpu", with_logits=True)
    first = engine.run(noise(2, 64, 1))
    kept = first.embeddings.copy(), first.logits.copy()
    engine.run(noise(2, 64, 2))
    np.testing.assert_array_equal(first.embeddings, kept[0])
    np.testing.assert_array_equal(first.logits, kept[1])
    assert first.embeddings.flags.writeable


def test_frames_may_be_read_only_or_strided(engine_name: str, small: Backbone) -> None:
    engine = build_engine(small, recipe(64), engine=engine_name, device="cpu")
    frames = noise(4, 64)
    wanted = engine.run(frames).embeddings
    read_only = frames.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(engine.run(read_only).embeddings, wanted)
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_array_equal(engine.run(mirrored).embeddings, wanted)


def test_no_frames_give_no_vectors(engine_name: str, small: Backbone) -> None:
    engine = build_engine(small, recipe(64), engine=engine_name, device="cpu", with_logits=True)
    output = engine.run(noise(0, 64))
    assert output.embeddings.shape == (0, 1280)
    assert output.logits.shape == (0, 7)


def test_logits_are_left_out_unless_asked_for(engine_name: str, small: Backbone) -> None:
    engine = build_engine(small, recipe(64), engine=engine_name, device="cpu")
    assert engine.run(noise(1, 64)).logits is None


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), r"uint8 \[N, 64, 64, 3\], got float32"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"got uint8 \[1, 3, 64, 64\]"),
        (np.zeros((64, 64, 3), np.uint8), r"got uint8 \[64, 64, 3\]"),
        (np.zeros((5, 64, 64, 3), np.uint8), "at most 4 frames a batch, got 5"),
    ],
)
def test_wrong_frames_are_refused(small: Backbone, frames: Frames, message: str) -> None:
    engine = build_engine(small, recipe(64), engine="torch", device="cpu", batch_size=4)
    with pytest.raises(ValueError, match=message):
        engine.run(frames)


def test_the_model_stays_as_it_was(engine_name: str) -> None:
    needs_precision(engine_name, "bf16")
    model = with_statistics(build_model("efficientnet_b0", padding="same", num_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [type(module) for module in model.modules()]
    build_engine(model, recipe(64), engine=engine_name, device="cpu", precision="bf16")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in model.modules()] == layers


@HAS_OPENVINO
def test_openvino_runs_fp16_or_says_that_it_cannot(small: Backbone) -> None:
    import openvino

    def build() -> Engine:
        return build_engine(small, recipe(64), engine="openvino", precision="fp16")

    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert build().precision == "fp16"
    else:
        with pytest.raises(ConfigError, match=r"cannot run precision fp16 .* instead"):
            build()


@HAS_OPENVINO
def test_openvino_reports_nothing_and_leaves_the_home_folder_alone(tmp_path: Path) -> None:
    script = """
import sys
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.engine import build_engine
build_engine(build_model("mobilenet_v2"), Preprocessing(image_size=32, resize_size=32),
             engine="openvino")
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.01)])
def test_cuda_agrees_with_the_model(
    lite0: Backbone, real_frames: Frames, precision: str, most: float, compiled: bool
) -> None:
    preprocessing = lite0.weights_info.preprocessing
    wanted = expected(lite0, real_frames, preprocessing)
    engine = build_engine(
        lite0,
        preprocessing,
        device="cuda",
        precision=precision,
        batch_size=6,
        num_streams=2,
        with_logits=True,
        compiled=compiled,
    )
    assert (engine.device, engine.precision) == ("cuda", precision)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(engine.run, (real_frames[:6], real_frames[6:])))
    embeddings = np.concatenate([half.embeddings for half in halves])
    logits = np.concatenate([half.logits for half in halves])
    assert relative(embeddings, wanted.embeddings) < most
    assert relative(logits, wanted.logits) < most
