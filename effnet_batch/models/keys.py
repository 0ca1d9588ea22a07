"""Maps the keys of published state dicts to ours and back, and finds them under their wrappers.

The layouts spell one network in four ways. Traps: timm's ``conv_pw`` is the projection where a
block has no expansion and the expansion where it has one, and its numbered batch normalisations
shift with it; lukemelas' ``_bn1`` is the head's at the top and the depthwise one's in a block.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from effnet_batch.errors import WeightsError
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.efficientnet import EfficientNet
from effnet_batch.models.mobilenet import MobileNetV2
from effnet_batch.models.registry import CANONICAL, LUKEMELAS, TIMM, TORCHVISION

Value = TypeVar("Value")

COUNTER: Final = "num_batches_tracked"
"""Batch normalisation's counter: of no use to inference, absent from some files."""
_WRAPPERS: Final = ("state_dict", "model")
"""Keys under which training scripts keep a model's own state dict."""
_PREFIXES: Final = frozenset(
    ("module", "model", "net", "encoder", "efficientnet", "feat_ext", "backbone")
)
"""Attributes in which forgery detectors hold their backbone, and DistributedDataParallel's."""
_OUTER_HEADS: Final = ("fc", "classifier", "last_layer")
"""Classifiers that such detectors put beside the backbone instead of into it."""

_TOP: Final = {
    TIMM: {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "head_conv": "conv_head",
        "head_bn": "bn2",
        "fc": "classifier",
    },
    LUKEMELAS: {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "head_conv": "_conv_head",
        "head_bn": "_bn1",
        "fc": "_fc",
    },
    TORCHVISION: {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        "head_conv": "features.8.0",
        "head_bn": "features.8.1",
        "fc": "classifier.1",
    },
}
_LUKEMELAS_BLOCK: Final = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dw_conv": "_depthwise_conv",
    "dw_bn": "_bn1",
    "se_reduce": "_se_reduce",
    "se_expand": "_se_expand",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_TIMM_BLOCK: Final = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "dw_conv": "conv_dw",
    "dw_bn": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
_TIMM_UNEXPANDED_BLOCK: Final = _TIMM_BLOCK | {
    "dw_bn": "bn1",
    "project_conv": "conv_pw",
    "project_bn": "bn2",
}
_TORCHVISION_BLOCK: Final = (
    {"expand_conv": "0", "expand_bn": "1"},
    {"dw_conv": "0", "dw_bn": "1"},
    {"se_reduce": "fc1", "se_expand": "fc2"},
    {"project_conv": "0", "project_bn": "1"},
)


def layout_keys(model: Backbone, layout: str) -> dict[str, str]:
    """Returns the layout's key of each of the model's own keys.

    A ResNet's own keys are those of torchvision and timm.

    Raises:
        ValueError: the network does not exist in this layout.
    """
    own = list(model.state_dict())
    if layout == CANONICAL:
        return {key: key for key in own}
    if isinstance(model, EfficientNet):
        modules = _efficientnet_modules(model, layout)
        return {key: f"{modules[_module(key)]}.{key.rpartition('.')[2]}" for key in own}
    if layout == LUKEMELAS or (isinstance(model, MobileNetV2) and layout != TORCHVISION):
        raise ValueError(f"{type(model).__name__} has no {layout} layout")
    if isinstance(model, MobileNetV2):
        return {
            key: key.replace("layers.", "features.", 1)
            if key.startswith("layers.")
            else key.replace("fc.", "classifier.1.", 1)
            for key in own
        }
    return {key: key for key in own}


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _efficientnet_modules(model: EfficientNet, layout: str) -> dict[str, str]:
    """Returns the layout's name of each of an EfficientNet's layers."""
    modules = dict(_TOP[layout])
    index = 0
    for stage, num_blocks in enumerate(model.stage_depths):
        for position in range(num_blocks):
            is_expanded = hasattr(model.blocks[index], "expand_conv")
            if layout == LUKEMELAS:
                prefix, names = f"_blocks.{index}", _LUKEMELAS_BLOCK
            elif layout == TIMM:
                prefix = f"blocks.{stage}.{position}"
                names = _TIMM_BLOCK if is_expanded else _TIMM_UNEXPANDED_BLOCK
            else:
                prefix = f"features.{stage + 1}.{position}.block"
                groups = _TORCHVISION_BLOCK if is_expanded else _TORCHVISION_BLOCK[1:]
                names = {
                    ours: f"{slot}.{theirs}"
                    for slot, group in enumerate(groups)
                    for ours, theirs in group.items()
                }
            modules.update({f"blocks.{index}.{ours}": f"{prefix}.{n}" for ours, n in names.items()})
            index += 1
    return modules


def possible_layouts(model: Backbone) -> dict[str, str]:
    """Returns the key of the first convolution in each layout that the network exists in."""
    first = next(key for key in model.state_dict() if not key.startswith("fc."))
    found = {}
    for layout in (TIMM, LUKEMELAS, TORCHVISION, CANONICAL):
        try:
            found[layout] = layout_keys(model, layout)[first]
        except ValueError:
            continue
    return found


def unwrap(checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Returns the state dict inside a training script's checkpoint."""
    # A hostile file may hold itself: each wrapper is opened once.
    for _ in _WRAPPERS:
        inner = (checkpoint.get(name) for name in _WRAPPERS)
        checkpoint = next((found for found in inner if isinstance(found, Mapping)), checkpoint)
    return checkpoint


def to_canonical(
    state: Mapping[str, Value], model: Backbone, source: str
) -> tuple[dict[str, Value], str]:
    """Renames a state dict's keys to the model's own; the values are not looked at.

    Wrapping prefixes are stripped, counters of batch normalisation dropped, and a classifier that
    stands beside the wrapped backbone takes the place of the backbone's own.

    Args:
        state: keys in any layout.
        model: the network they should fit; its parameters are not read.
        source: named in errors.

    Returns:
        The values under the model's keys, and the layout that was found.

    Raises:
        WeightsError: no known layout, or keys missing or left over.
    """
    layouts = possible_layouts(model)
    found = [
        (layout, key[: -len(first)])
        for layout, first in layouts.items()
        for key in state
        if (key == first or key.endswith(f".{first}")) and _is_wrapping(key[: -len(first)])
    ]
    if not found:
        raise WeightsError(
            f"{source} is no {type(model).__name__} in a known layout: none of "
            f"{', '.join(layouts.values())} is among its keys ({_some(state)})"
        )
    # The shortest prefix is the outermost network, which is the one that the file is of.
    layout, prefix = min(found, key=lambda pair: len(pair[1]))
    names = {theirs: ours for ours, theirs in layout_keys(model, layout).items()}
    if prefix:
        for suffix in ("weight", "bias"):
            names |= _outer_head(state, prefix, suffix)
    canonical: dict[str, Value] = {}
    unexpected = []
    # Inner keys first, so that an outer classifier replaces the backbone's own.
    for key in sorted(state, key=lambda key: not key.startswith(prefix)):
        if key.rpartition(".")[2] == COUNTER:
            continue
        ours = names.get(key[len(prefix) :] if key.startswith(prefix) else f"outer:{key}")
        if ours is None:
            unexpected.append(key)
        else:
            canonical[ours] = state[key]
    missing = [
        f"{prefix}{theirs}"
        for theirs, ours in names.items()
        if ours not in canonical and not theirs.endswith(COUNTER)
    ]
    if missing or unexpected:
        parts = [
            f"{len(keys)} keys {verb} ({_some(keys)})"
            for keys, verb in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise WeightsError(
            f"{source} does not fit {type(model).__name__} in {layout} layout: {'; '.join(parts)}"
        )
    return canonical, layout


def _is_wrapping(prefix: str) -> bool:
    return all(part in _PREFIXES for part in prefix.split(".")[:-1])


def _outer_head(state: Mapping[str, object], prefix: str, suffix: str) -> dict[str, str]:
    """Returns the key of a classifier beside the backbone, marked as outer, and ours."""
    outer = prefix.rstrip(".").rpartition(".")[0]
    while True:
        for head in _OUTER_HEADS:
            key = f"{outer}.{head}.{suffix}" if outer else f"{head}.{suffix}"
            if key in state and not key.startswith(prefix):
                return {f"outer:{key}": f"fc.{suffix}"}
        if not outer:
            return {}
        outer = outer.rpartition(".")[0]


def _some(keys: Mapping[str, object] | list[str], limit: int = 5) -> str:
    """Returns the first few keys, for an error message."""
    names = [str(key) for key in list(keys)[:limit]]
    return ", ".join(names) + (", ..." if len(keys) > limit else "")
