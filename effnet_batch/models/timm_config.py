"""Reads the recipe that timm writes beside its weights (``config.json``)."""

from collections.abc import Mapping
from typing import Any, Final

from effnet_batch.models.recipe import SAME, SYMMETRIC, Recipe, resized_side

_MODES: Final = {"center": "crop", "squash": "squash", "border": "pad"}


def recipe_from_config(config: Mapping[str, Any]) -> tuple[str, Recipe] | None:
    """Returns the architecture and the recipe that timm's configuration states.

    Padding and epsilon follow from timm's name of the network: ``tf_`` ones run TensorFlow's.
    None where the configuration is not timm's, lacks a value, or changes the network
    (``model_args``), so that nothing is guessed.
    """
    name = config.get("architecture")
    stated = config.get("pretrained_cfg", config)
    if not isinstance(name, str) or not isinstance(stated, Mapping) or config.get("model_args"):
        return None
    is_tf = name.startswith("tf_efficientnet_")
    try:
        _, height, width = stated["input_size"]
        mode = _MODES[stated["crop_mode"]]
        recipe = Recipe(
            padding=SAME if is_tf else SYMMETRIC,
            bn_eps=1e-3 if is_tf else 1e-5,
            mean=_triple(stated["mean"]),
            std=_triple(stated["std"]),
            interpolation=str(stated["interpolation"]),
            image_size=int(height),
            resize_size=resized_side(int(height), float(stated["crop_pct"]))
            if mode == "crop"
            else int(height),
            resize_mode=mode,
        )
        recipe.preprocessing  # noqa: B018 - raises where a value is out of range
    except (KeyError, TypeError, ValueError):
        return None
    return (name.removeprefix("tf_"), recipe) if height == width else None


def class_names_from_config(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns timm's names of the classes in the order of the logits, if it states them."""
    names = config.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
