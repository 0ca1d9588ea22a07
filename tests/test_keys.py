"""Keys of published state dicts: mapped one to one, found under wrappers and prefixes."""

import pytest
import torch

from effnet_batch.errors import WeightsError
from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.keys import layout_keys, possible_layouts, to_canonical, unwrap


@pytest.fixture(scope="module")
def b0() -> Backbone:
    with torch.device("meta"):
        return build_model("efficientnet_b0")


@pytest.fixture(scope="module")
def b1() -> Backbone:
    with torch.device("meta"):
        return build_model("efficientnet_b1")


@pytest.mark.parametrize(
    ("layout", "ours", "theirs"),
    [
        ("timm", "blocks.0.project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("timm", "blocks.1.project_bn.bias", "blocks.0.1.bn2.bias"),
        ("timm", "blocks.2.expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("timm", "blocks.2.project_bn.weight", "blocks.1.0.bn3.weight"),
        ("timm", "head_bn.running_var", "bn2.running_var"),
        ("lukemelas", "blocks.1.dw_bn.weight", "_blocks.1._bn1.weight"),
        ("lukemelas", "head_bn.weight", "_bn1.weight"),
        ("torchvision", "blocks.1.dw_conv.weight", "features.1.1.block.0.0.weight"),
        ("torchvision", "blocks.0.se_reduce.bias", "features.1.0.block.1.fc1.bias"),
        ("torchvision", "blocks.3.project_bn.bias", "features.2.1.block.3.1.bias"),
        ("torchvision", "fc.weight", "classifier.1.weight"),
    ],
)
def test_the_traps_of_the_layouts(b1: Backbone, layout: str, ours: str, theirs: str) -> None:
    assert layout_keys(b1, layout)[ours] == theirs


@pytest.mark.parametrize("layout", ["timm", "lukemelas", "torchvision", "canonical"])
def test_every_key_has_one_counterpart(b1: Backbone, layout: str) -> None:
    keys = layout_keys(b1, layout)
    assert len(set(keys.values())) == len(keys) == 508
    canonical, found = to_canonical({theirs: ours for ours, theirs in keys.items()}, b1, "x")
    assert found == layout
    assert all(ours == value for ours, value in canonical.items())
    assert len(canonical) == 508 - 69


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("module.", "timm"),
        ("net.", "lukemelas"),
        ("module.encoder.", "timm"),
        ("efficientnet.", "lukemelas"),
        ("feat_ext.efficientnet.", "lukemelas"),
        ("backbone.efficientnet.", "lukemelas"),
        ("model.", "torchvision"),
    ],
)
def test_prefixes_are_stripped(b0: Backbone, prefix: str, layout: str) -> None:
    keys = layout_keys(b0, layout)
    state = {f"{prefix}{theirs}": ours for ours, theirs in keys.items()}
    canonical, found = to_canonical(state, b0, "x")
    assert found == layout
    assert all(ours == value for ours, value in canonical.items())


@pytest.mark.parametrize(
    ("prefix", "layout", "head"),
    [
        ("module.encoder.", "timm", "module.fc"),
        ("efficientnet.", "lukemelas", "classifier"),
        ("backbone.efficientnet.", "lukemelas", "backbone.last_layer"),
    ],
)
@pytest.mark.parametrize("has_inner", [True, False])
def test_a_detectors_own_classifier_takes_the_place_of_the_backbones(
    b0: Backbone, prefix: str, layout: str, head: str, has_inner: bool
) -> None:
    state = {
        f"{prefix}{theirs}": ours
        for ours, theirs in layout_keys(b0, layout).items()
        if has_inner or not ours.startswith("fc.")
    }
    state |= {f"{head}.weight": "outer weight", f"{head}.bias": "outer bias"}
    canonical, _ = to_canonical(state, b0, "x")
    assert canonical["fc.weight"] == "outer weight"
    assert canonical["fc.bias"] == "outer bias"


def test_an_unknown_prefix_or_part_is_no_wrapper(b0: Backbone) -> None:
    keys = layout_keys(b0, "timm")
    with pytest.raises(WeightsError, match="in a known layout"):
        to_canonical({f"student.{theirs}": 0 for theirs in keys.values()}, b0, "x")
    state = {f"efficientnet.{theirs}": 0 for theirs in layout_keys(b0, "lukemelas").values()}
    with pytest.raises(WeightsError, match=r"1 keys unexpected \(efficientnet.attconv.weight\)"):
        to_canonical(state | {"efficientnet.attconv.weight": 0}, b0, "x")


def test_wrappers_are_opened() -> None:
    inner = {"conv_stem.weight": 1}
    assert unwrap({"epoch": 3, "state_dict": inner}) is inner
    assert unwrap({"model": {"state_dict": inner}}) is inner
    assert unwrap(inner) is inner


def test_networks_exist_in_their_layouts_only(b0: Backbone) -> None:
    assert list(possible_layouts(b0)) == ["timm", "lukemelas", "torchvision", "canonical"]
    with torch.device("meta"):
        resnet, mobilenet = build_model("resnet50"), build_model("mobilenet_v2")
    assert list(possible_layouts(resnet)) == ["timm", "torchvision", "canonical"]
    assert list(possible_layouts(mobilenet)) == ["torchvision", "canonical"]
    assert layout_keys(mobilenet, "torchvision")["fc.bias"] == "classifier.1.bias"
    assert layout_keys(resnet, "timm")["layer1.0.bn1.bias"] == "layer1.0.bn1.bias"
