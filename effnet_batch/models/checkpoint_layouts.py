"""Published forgery checkpoints by their keys, brought to our own network.

A file is recognised by a few keys that only its layout has, and must then fit to the last key and
shape. Two heads become a plain one without changing a score: of two classes' logits the softmax of
the second is the sigmoid of their difference, and a batch normalisation before a linear layer is
another linear layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

import torch

from effnet_batch.errors import WeightsError
from effnet_batch.models.architectures import build_model
from effnet_batch.models.keys import COUNTER, layout_keys
from effnet_batch.models.recipe import SAME, SAME_STATIC
from effnet_batch.models.registry import LUKEMELAS, TIMM, TORCHVISION
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import (
    THESIS_EFFICIENTNET_B1_LSTM,
    THESIS_RESNET50_LSTM,
    SequenceConfig,
)

NORM_EPS: Final = 1e-5
"""Of the batch normalisation in front of a Siamese detector's linear layer: torch's default."""
_FRAME_HEAD: Final = {"weight": "head.1.weight", "bias": "head.1.bias"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """How somebody else's detector spells its keys."""

    name: str
    """Of the layout, for people."""
    sequence: SequenceConfig
    """The network, as ours."""
    backbone_layout: str
    """How the backbone's keys are spelled: one of `registry.LAYOUTS`."""
    backbone: dict[str, str]
    """Their prefix of the backbone's keys, by the prefix in the backbone's layout."""
    head: dict[str, str]
    """Their module, by ours: everything behind the backbone."""
    two_classes: bool = False
    """The last layer has two logits; the second is that of a forgery."""
    norm: str | None = None
    """Their batch normalisation in front of the last layer."""
    unused: tuple[str, ...] = ()
    """Modules that the file may hold and its detector does not run."""
    markers: tuple[str, ...]
    """Keys that together only this layout has."""


def _lukemelas_b4(
    name: str,
    prefix: str,
    fc: str,
    sequence: SequenceConfig,
    *,
    is_siamese: bool = False,
    two_classes: bool = False,
    unused: tuple[str, ...] = (),
) -> CheckpointLayout:
    """A detector around lukemelas' EfficientNet-B4 and one linear layer beside or in it."""
    last = f"{fc}.1" if is_siamese else fc
    return CheckpointLayout(
        name=name,
        sequence=sequence,
        backbone_layout=LUKEMELAS,
        backbone={"": prefix},
        head={"head.1": last},
        two_classes=two_classes,
        norm=f"{fc}.0" if is_siamese else None,
        unused=unused,
        markers=(f"{prefix}_conv_stem.weight", f"{last}.weight"),
    )


def _with_attention(layout: CheckpointLayout, name: str) -> CheckpointLayout:
    prefix = layout.backbone[""]
    return dataclasses.replace(
        layout,
        name=name,
        sequence=dataclasses.replace(layout.sequence, attention_block=9),
        head=layout.head | {"encoder.backbone.blocks.9.1.conv": f"{prefix}attconv"},
        markers=(*layout.markers, f"{prefix}attconv.weight"),
    )


_SAME_B4: Final = SequenceConfig(architecture="efficientnet_b4", padding=SAME, bn_eps=1e-3)
_STATIC_B4: Final = dataclasses.replace(_SAME_B4, padding=SAME_STATIC)
_POLIMI_B4: Final = _lukemelas_b4(
    "polimi_efficientnet_b4",
    "efficientnet.",
    "classifier",
    _SAME_B4,
    unused=("efficientnet._fc",),
)
_POLIMI_B4_ST: Final = _lukemelas_b4(
    "polimi_efficientnet_b4_st",
    "feat_ext.efficientnet.",
    "classifier",
    _SAME_B4,
    is_siamese=True,
    # The feature extractor keeps the classifier that it had before.
    unused=("feat_ext.efficientnet._fc", "feat_ext.classifier"),
)
_THESIS_HEAD: Final = {"lstm": "lstm", "head.0": "fc1", "head.3": "fc2"}
_THESIS_MARKERS: Final = ("lstm.weight_ih_l0", "fc1.weight", "fc2.weight")

_ENTRIES: Final = (
    CheckpointLayout(
        name="selimsef_efficientnet_b7",
        sequence=SequenceConfig(architecture="efficientnet_b7", padding=SAME, bn_eps=1e-3),
        backbone_layout=TIMM,
        backbone={"": "encoder."},
        head={"head.1": "fc"},
        unused=("encoder.classifier",),
        markers=("encoder.conv_stem.weight", "fc.weight"),
    ),
    _POLIMI_B4,
    _with_attention(_POLIMI_B4, "polimi_efficientnet_b4_att"),
    _POLIMI_B4_ST,
    _with_attention(_POLIMI_B4_ST, "polimi_efficientnet_b4_att_st"),
    _lukemelas_b4("sbi_efficientnet_b4", "net.", "net._fc", _STATIC_B4, two_classes=True),
    _lukemelas_b4(
        "deepfakebench_efficientnet_b4",
        "backbone.efficientnet.",
        "backbone.last_layer",
        dataclasses.replace(_STATIC_B4, is_stem_padded=False),
        two_classes=True,
    ),
    CheckpointLayout(
        name="thesis_efficientnet_b1_lstm",
        sequence=THESIS_EFFICIENTNET_B1_LSTM,
        backbone_layout=TIMM,
        backbone={
            "conv_stem.": "b1.0.",
            "bn1.": "b1.1.",
            "blocks.": "b1.3.",
            "conv_head.": "b1.4.",
            "bn2.": "b1.5.",
        },
        head={"encoder.bottleneck.conv": "b1.7", "encoder.bottleneck.bn": "b1.8", **_THESIS_HEAD},
        markers=("b1.0.weight", "b1.7.weight", *_THESIS_MARKERS),
    ),
    CheckpointLayout(
        name="thesis_resnet50_lstm",
        sequence=THESIS_RESNET50_LSTM,
        backbone_layout=TORCHVISION,
        backbone={
            "conv1.": "resnet.0.",
            "bn1.": "resnet.1.",
            **{f"layer{n}.": f"resnet.{n + 3}." for n in (1, 2, 3, 4)},
        },
        head={
            "encoder.bottleneck.conv": "resnet.8",
            "encoder.bottleneck.bn": "resnet.9",
            **_THESIS_HEAD,
        },
        markers=("resnet.0.weight", "resnet.8.weight", *_THESIS_MARKERS),
    ),
)
CHECKPOINT_LAYOUTS: Final = {layout.name: layout for layout in _ENTRIES}
"""Every published layout that `to_sequence_state` reads, by name."""


def recognise(state: Mapping[str, object]) -> CheckpointLayout | None:
    """Returns the layout that the keys are of, if it is a known one.

    Args:
        state: values are not looked at; keys may all have DistributedDataParallel's ``module.``.
    """
    keys = _without_wrapper(state)
    found = [
        layout
        for layout in CHECKPOINT_LAYOUTS.values()
        if all(marker in keys for marker in layout.markers)
    ]
    # A detector with attention has all the keys of one without.
    return max(found, key=lambda layout: len(layout.markers), default=None)


def to_sequence_state(
    state: Mapping[str, torch.Tensor], layout: CheckpointLayout, source: str
) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint's tensors to those of `SequenceClassifier`.

    Args:
        state: its tensors.
        layout: what `recognise` returned.
        source: what the user called it, for errors.

    Returns:
        Tensors under our keys; the shapes are not checked but where the head is rebuilt.

    Raises:
        WeightsError: keys are missing or left over, or the head has another shape.
    """
    keys = _without_wrapper(state)
    names = _names(layout)
    wanted = dict(names)
    if layout.norm is not None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{layout.norm}.{part}"] = f"norm.{part}"
    missing = [theirs for theirs in wanted if theirs not in keys]
    unexpected = [
        theirs
        for theirs in keys
        if theirs not in wanted
        and not theirs.endswith(COUNTER)
        and not theirs.startswith(tuple(f"{module}." for module in layout.unused))
    ]
    if missing or unexpected:
        raise WeightsError(
            f"checkpoint {source} looks like {layout.name} but does not fit it: "
            f"{_some('missing', missing)}{_some('unexpected', unexpected)}"
        )
    tensors = {ours: state[keys[theirs]] for theirs, ours in wanted.items()}
    return _plain_head(tensors, layout, source)


def _names(layout: CheckpointLayout) -> dict[str, str]:
    """Returns our key of each of the layout's keys."""
    with torch.device("meta"):
        backbone = build_model(layout.sequence.architecture, num_classes=0)
        own = SequenceClassifier(layout.sequence).state_dict()
    block = layout.sequence.attention_block
    names = {}
    for ours, spelled in layout_keys(backbone, layout.backbone_layout).items():
        if ours.endswith(COUNTER):
            continue
        prefix = next(known for known in layout.backbone if spelled.startswith(known))
        if block is not None and ours.startswith(f"blocks.{block}."):
            # The block stands before the attention in a sequence of two.
            ours = ours.replace(f"blocks.{block}.", f"blocks.{block}.0.", 1)
        names[layout.backbone[prefix] + spelled[len(prefix) :]] = f"encoder.backbone.{ours}"
    known = set(names.values())
    for key in own:
        if key in known or key.endswith(COUNTER):
            continue
        module, part = next(
            (module, key[len(module) + 1 :])
            for module in layout.head
            if key.startswith(f"{module}.")
        )
        names[f"{layout.head[module]}.{part}"] = key
    return names


def _plain_head(
    tensors: dict[str, torch.Tensor], layout: CheckpointLayout, source: str
) -> dict[str, torch.Tensor]:
    """Returns the tensors with two classes and normalisation worked into the last layer."""
    if not layout.two_classes and layout.norm is None:
        return tensors
    weight, bias = tensors[_FRAME_HEAD["weight"]], tensors[_FRAME_HEAD["bias"]]
    norm = {
        part: tensors.pop(f"norm.{part}").double()
        for part in ("weight", "bias", "running_mean", "running_var")
        if layout.norm is not None
    }
    num_classes = 2 if layout.two_classes else 1
    if weight.ndim != 2 or len(weight) != num_classes or tuple(bias.shape) != (num_classes,):
        raise WeightsError(
            f"checkpoint {source} looks like {layout.name} but its last layer has shape "
            f"{list(weight.shape)} and {list(bias.shape)}, expected {num_classes} logits"
        )
    if any(value.shape != weight.shape[1:] for value in norm.values()):
        raise WeightsError(
            f"checkpoint {source} looks like {layout.name} but {layout.norm} does not have "
            f"{weight.shape[1]} channels"
        )
    # In double precision, so that the rebuilt layer is the original's to float32's last digit.
    weight, bias = weight.double(), bias.double()
    if layout.two_classes:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if norm:
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + NORM_EPS)
        shift = norm["bias"] - norm["running_mean"] * scale
        weight, bias = weight * scale, bias + weight @ shift
    return tensors | {_FRAME_HEAD["weight"]: weight, _FRAME_HEAD["bias"]: bias}


def _without_wrapper(state: Mapping[str, object]) -> dict[str, str]:
    """Returns the file's key of each key without DistributedDataParallel's prefix."""
    if state and all(key.startswith("module.") for key in state):
        return {key[len("module.") :]: key for key in state}
    return {key: key for key in state}


def _some(verb: str, keys: list[str], limit: int = 5) -> str:
    if not keys:
        return ""
    more = ", ..." if len(keys) > limit else ""
    return f"{len(keys)} keys {verb} ({', '.join(keys[:limit])}{more}); "
