"""The registry: complete, consistent, and equal to what the publishers say."""

import subprocess
import sys

import pytest

from effnet_batch.models.architectures import ARCHITECTURES
from effnet_batch.models.recipe import PADDINGS
from effnet_batch.models.registry import DEFAULTS, LAYOUTS, REGISTRY, find_by_sha256


def test_every_network_has_weights_of_its_own() -> None:
    assert set(DEFAULTS) == set(ARCHITECTURES)
    for architecture, name in DEFAULTS.items():
        assert REGISTRY[name].architecture == architecture


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda entry: entry.name)
def test_entries_are_complete(entry) -> None:
    assert entry.architecture in ARCHITECTURES
    assert entry.layout in LAYOUTS
    assert entry.recipe.padding in PADDINGS
    assert entry.source.startswith(("hf://timm/", "https://", "package:"))
    preprocessing = entry.recipe.preprocessing
    assert preprocessing.image_size <= preprocessing.resize_size
    for digits in (entry.sha256, *entry.other_sha256):
        assert digits is None or (len(digits) >= 8 and int(digits, 16) >= 0)
    # A file's name ends in the first digits of its hash.
    if entry.source.startswith("https://"):
        assert entry.sha256 is not None
        assert entry.source.endswith(f"-{entry.sha256}.pth")


def test_no_two_files_share_their_first_digits() -> None:
    digits = [d for e in REGISTRY.values() for d in (e.sha256, *e.other_sha256) if d]
    assert len({d[:8] for d in digits}) == len(digits)


@pytest.mark.parametrize(
    ("name", "padding", "bn_eps", "mean", "resize_size", "image_size", "kernel", "top1"),
    [
        ("tf_efficientnet_b0.aa_in1k", "same", 1e-3, 0.485, 256, 224, "bicubic", 77.1),
        ("tf_efficientnet_b3.ap_in1k", "same", 1e-3, 0.5, 331, 300, "bicubic", 81.9),
        ("tf_efficientnet_b7.ns_jft_in1k", "same", 1e-3, 0.485, 632, 600, "bicubic", 86.9),
        ("tf_efficientnet_l2.ns_jft_in1k_475", "same", 1e-3, 0.485, 507, 475, "bicubic", 88.2),
        ("tf_efficientnet_lite4.in1k", "same", 1e-3, 0.5, 413, 380, "bilinear", 81.5),
        ("efficientnet_b2.ra_in1k", "symmetric", 1e-5, 0.485, 292, 256, "bicubic", None),
        ("efficientnet_b0.ra4_e3600_r224_in1k", "symmetric", 1e-5, 0.5, 248, 224, "bicubic", None),
        ("torchvision:efficientnet_b1.v2", "symmetric", 1e-5, 0.485, 255, 240, "bilinear", 79.838),
        ("torchvision:efficientnet_b6.v1", "symmetric", 1e-3, 0.485, 528, 528, "bicubic", 84.008),
        ("torchvision:resnet50.v2", "symmetric", 1e-5, 0.485, 232, 224, "bilinear", 80.858),
        ("lukemelas:efficientnet_b4.aa", "same_static", 1e-3, 0.485, 380, 380, "bicubic", None),
        ("lukemelas:efficientnet_b8.ap", "same_static", 1e-3, 0.5, 672, 672, "bicubic", None),
    ],
)
def test_recipes_equal_the_published_ones(
    name: str,
    padding: str,
    bn_eps: float,
    mean: float,
    resize_size: int,
    image_size: int,
    kernel: str,
    top1: float | None,
) -> None:
    entry = REGISTRY[name]
    recipe = entry.recipe
    assert (recipe.padding, recipe.bn_eps, recipe.mean[0]) == (padding, bn_eps, mean)
    assert (recipe.resize_size, recipe.image_size) == (resize_size, image_size)
    assert (recipe.interpolation, entry.top1) == (kernel, top1)


def test_files_are_found_by_their_hash() -> None:
    found = find_by_sha256("c0e6a31c" + "0" * 56)
    assert found is not None
    assert found.name == "tf_efficientnet_b0.ns_jft_in1k"
    assert find_by_sha256("0" * 64) is None


def test_listing_needs_no_torch() -> None:
    code = "import sys, effnet_batch.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
