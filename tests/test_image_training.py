"""Training image classifiers without Ray: crops, mixup, steps, the file that comes of it."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, strategies as st
from PIL import Image, ImageOps

import effnet_batch
from effnet_batch.config import OptimisationSettings
from effnet_batch.errors import WeightsError
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.classifier_file import METADATA_KEY, ClassifierInfo, classifier_bytes
from effnet_batch.training.augmentation import resize_clip
from effnet_batch.training.image_feed import at_side, random_region
from effnet_batch.training.images import ImageTrainer
from effnet_batch.training.plan import epoch_plan, side_at
from effnet_batch.training.trainer import Batch

SIDE = 32
PREPROCESSING = Preprocessing(image_size=SIDE, resize_size=SIDE)
CLASSES = ("blue", "green", "red")


def planted(generator: np.random.Generator, label: int, side: int = SIDE) -> np.ndarray:
    """Returns uint8 [S, S, 3] of dark noise in which the class's channel is light."""
    image = generator.integers(20, 100, (side, side, 3))
    image[..., 2 - label] += 150
    return image.astype(np.uint8)


def make_trainer(architecture: str = "mobilenet_v2", **settings: Any) -> ImageTrainer:
    torch.manual_seed(0)
    return ImageTrainer(
        build_model(architecture, num_classes=3),
        PREPROCESSING,
        OptimisationSettings(**{"epochs": 1, "learning_rate": 2e-3, **settings}),
        steps_per_epoch=6,
        device="cpu",
        num_workers=1,
    )


def log_losses(
    trainer: ImageTrainer, pixels: np.ndarray, labels: list[int], smoothing: float
) -> np.ndarray:
    """Returns the cross-entropy of pixels (0..255) in float64, by its definition."""
    mean, std = (np.array(x) for x in (PREPROCESSING.mean, PREPROCESSING.std))
    planes = torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        logits = trainer.model(planes).double().numpy()
    likelihoods = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    return -(targets * np.log(likelihoods)).sum(axis=1)


def test_mixup_is_what_it_says() -> None:
    generator = np.random.default_rng(1)
    labels = [0, 1, 2, 2, 1, 0]
    images = [planted(generator, label) for label in labels]
    # The last one only fills the step; the classes do not count the same.
    weights = [1.0, 2.0, 0.5, 0.5, 2.0, 0.0]
    batch = Batch(images, labels, weights)
    trainer = make_trainer(mixup=0.4, label_smoothing=0.1, training_seed=5, micro_batch=4)
    trainer.start_epoch(0)
    trainer.model.dropout.p = 0.0  # type: ignore[union-attr]
    share = np.random.default_rng([5, 0]).beta(0.4, 0.4)
    assert 0.01 < share < 0.99
    others = [3, 4, 5, 0, 1, 2]
    mixed = share * np.stack(images) + (1 - share) * np.stack([images[n] for n in others])
    own = log_losses(trainer, mixed, labels, 0.1) * weights
    theirs = (
        log_losses(trainer, mixed, [labels[n] for n in others], 0.1) * np.array(weights)[others]
    )
    expected = (share * own + (1 - share) * theirs).sum() / sum(weights)
    assert trainer.train_step(batch, sum(weights)) == pytest.approx(expected, abs=1e-4)
    # The next step draws another share.
    assert trainer._share() == np.random.default_rng([5, 1]).beta(0.4, 0.4)

    plain = make_trainer(label_smoothing=0.1)
    plain.start_epoch(0)
    plain.model.dropout.p = 0.0  # type: ignore[union-attr]
    expected = (log_losses(plain, np.stack(images), labels, 0.1) * weights).sum() / sum(weights)
    assert plain.train_step(batch, sum(weights)) == pytest.approx(expected, abs=1e-4)


def test_planted_classes_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    labels = [number % 3 for number in range(96)]
    images = [planted(generator, label) for label in labels]
    trainer = make_trainer("efficientnet_lite0", epochs=8)
    for epoch in range(8):
        trainer.start_epoch(0)
        plan = epoch_plan(len(images), 16, seed=0, epoch=epoch)
        for start in range(0, len(plan), 16):
            chosen = [step.sample for step in plan[start : start + 16]]
            batch = Batch([images[n] for n in chosen], [labels[n] for n in chosen], [1.0] * 16)
            trainer.train_step(batch, 16)
        trainer.epoch += 1
    trainer.model.eval()
    others = np.stack([planted(generator, number % 3) for number in range(30)])
    losses = [log_losses(trainer, others, [label] * 30, 0.0) for label in range(3)]
    assert np.argmin(losses, axis=0).tolist() == [number % 3 for number in range(30)]


@given(
    st.integers(0, 2**32),
    st.floats(0.05, 0.999),
    st.integers(1, 3000),
    st.integers(1, 3000),
)
def test_crops_lie_in_the_image(seed: int, smallest: float, width: int, height: int) -> None:
    region = random_region(np.random.default_rng(seed), smallest)
    assert region is not None
    left, top, right, bottom = region(width, height)
    assert region(width, height) == (left, top, right, bottom)
    assert -1e-6 <= left < right <= width + 1e-6
    assert -1e-6 <= top < bottom <= height + 1e-6
    assert 3 / 4 - 1e-6 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-6
    share = (right - left) * (bottom - top) / (width * height)
    # Of a long image no part of an allowed aspect may be large enough.
    largest = min(width, height * 4 / 3) * min(height, width * 4 / 3) / (width * height)
    assert min(smallest, largest) - 1e-6 <= share <= 1


def test_a_whole_crop_is_the_centre() -> None:
    assert random_region(np.random.default_rng(0), 1.0) is None


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [(90, 61), (720, 488)])
def test_a_region_is_shown_upright(size: tuple[int, int], orientation: int) -> None:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 13, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file)).convert("RGB")

    def region(width: int, height: int) -> tuple[float, float, float, float]:
        assert (width, height) == upright.size
        return 0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height

    found = decode_image(file.getvalue(), PREPROCESSING, ImageLimits(), region).frame
    box = region(*upright.size)
    expected = upright.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
    difference = np.abs(found.astype(int) - np.asarray(expected).astype(int))
    # A large JPEG is decoded at a fraction of its size.
    assert difference.mean() < 1.5
    assert difference.max() < 16


def test_resolutions_by_epoch() -> None:
    assert [side_at(("0:64", "2:96", "3:128"), epoch) for epoch in range(5)] == [
        64, 64, 96, 128, 128,
    ]  # fmt: skip
    assert side_at((), 3) is None
    for wrong in (("1:64",), ("0:64", "0:96"), ("0:64", "x:96"), ("0:8",), ("0",), ("0:-4",)):
        with pytest.raises(ValueError, match="got "):
            side_at(wrong, 0)
    smaller = at_side(Preprocessing(image_size=224, resize_size=256), 112)
    assert (smaller.image_size, smaller.resize_size) == (112, 128)
    clip = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    means = clip.reshape(2, 2, 2, 2, 2, 3).mean(axis=(2, 4))
    assert np.abs(resize_clip(clip, 2) - means).max() <= 0.5
    assert resize_clip(clip, 4) is clip


def info(**changes: Any) -> ClassifierInfo:
    known: dict[str, Any] = {
        "architecture": "efficientnet_lite0",
        "padding": "same",
        "bn_eps": 1e-3,
        "bn_momentum": 0.1,
        "preprocessing": Preprocessing(image_size=40, resize_size=45, interpolation="bilinear"),
        "class_names": CLASSES,
        "licence": "Apache-2.0",
    }
    return ClassifierInfo(**{**known, **changes})


def test_the_file_says_how_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model = build_model("efficientnet_lite0", num_classes=3, padding="same", bn_eps=1e-3).eval()
    path.write_bytes(classifier_bytes(model, info()))
    loaded = effnet_batch.load_model("efficientnet_lite0", weights=str(path))
    found = loaded.weights_info
    assert found is not None
    assert found.preprocessing == info().preprocessing
    assert (found.class_names, found.num_classes, found.licence) == (CLASSES, 3, "Apache-2.0")
    assert (found.padding, found.bn_eps) == ("same", 1e-3)
    pixels = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(loaded(pixels), model(pixels))

    with pytest.raises(WeightsError, match="are of efficientnet_lite0, not of resnet50"):
        effnet_batch.load_model("resnet50", weights=str(path))
    tensors = safetensors.torch.load_file(path)
    about = {"version": 1, "info": dataclasses.asdict(info())}
    for damage, message in (
        ("{", "damaged description"),
        (json.dumps({**about, "version": 2}), "are of version 2"),
        (json.dumps({**about, "info": {**about["info"], "colour": 1}}), "unknown field 'colour'"),
        (json.dumps({**about, "info": {**about["info"], "padding": "x"}}), "padding must be one"),
        (json.dumps({**about, "info": {**about["info"], "class_names": ["a"] * 3}}), "once"),
    ):
        path.write_bytes(safetensors.torch.save(tensors, metadata={METADATA_KEY: damage}))
        with pytest.raises(WeightsError, match=message):
            effnet_batch.load_model("efficientnet_lite0", weights=str(path))
    with pytest.raises(ValueError, match="3 classes, but 2 names"):
        classifier_bytes(model, info(class_names=("a", "b")))
