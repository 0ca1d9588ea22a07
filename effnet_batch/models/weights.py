"""Loads weights into a network, with everything their numbers depend on.

A recipe comes from the registry (by name, hub repository or the file's hash), from the file itself
where we trained it, from timm's configuration beside it, or from the caller. It is never guessed.
"""

import difflib
import hashlib
from pathlib import Path
from typing import Final

import torch

from effnet_batch.errors import ConfigError, WeightsError
from effnet_batch.models.architectures import ARCHITECTURES, build_model, canonical_name
from effnet_batch.models.backbone import Backbone, WeightsInfo
from effnet_batch.models.checkpoint import read_state_dict
from effnet_batch.models.classifier_file import ClassifierInfo, read_classifier_info
from effnet_batch.models.fitting import fit
from effnet_batch.models.recipe import PADDINGS, Overrides, Recipe, resized_side
from effnet_batch.models.registry import DEFAULTS, REGISTRY, PublishedWeights, find_by_sha256
from effnet_batch.models.timm_config import class_names_from_config, recipe_from_config
from effnet_batch.models.weights_file import WeightsFile, local_weights, parse_hub_spec
from effnet_batch.storage import Storage, redact

RANDOM: Final = "random"
"""Asks for initial values instead of weights; ``random`` is ``random:0``."""
RANDOM_CROP_PCT: Final = 0.875


def load_model(
    name: str,
    weights: str | None = None,
    *,
    padding: str | None = None,
    bn_eps: float | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    storage: Storage | None = None,
) -> Backbone:
    """Builds a network with weights, ready to run in evaluation mode.

    The keyword-only arguments replace a part of the weights' recipe; weights that nobody knows
    need all of them.

    Args:
        name: one of `architectures.ARCHITECTURES`.
        weights: a name of the registry, a path, a URL, ``hf://owner/repo[@revision][:file]``,
            ``package:NAME``, or ``random`` or ``random:SEED``; the network's default if None.
        padding: one of `recipe.PADDINGS`.
        bn_eps: added to the variance by every batch normalisation.
        mean: subtracted per RGB channel, of 0..1.
        std: divides per RGB channel.
        interpolation: resize kernel, one of `preprocess.INTERPOLATIONS`.
        image_size: side of the input in pixels.
        crop_pct: image size as a share of the resized short side.
        storage: reads URLs; with default options if None.

    Returns:
        The network on the CPU in float32, with ``weights_info`` set.

    Raises:
        WeightsError: the weights cannot be found or read, do not fit, or lack a recipe.
        ConfigError: no such network, or a value is out of range.
    """
    overrides = Overrides(
        padding=padding,
        bn_eps=bn_eps,
        mean=mean,
        std=std,
        interpolation=interpolation,
        image_size=image_size,
        crop_pct=crop_pct,
    )
    return _load(name, weights, overrides, storage or Storage())


def check_names(name: str, weights: str | None) -> None:
    """Checks the names that `load_model` takes, without loading anything.

    A path is left alone: another machine may have what this one has not.

    Raises:
        WeightsError: no weights are published under this name.
        ConfigError: no such network.
    """
    canonical_name(name)
    spec = weights or ""
    is_name = spec and spec.partition(":")[0] not in (RANDOM, "package") and "/" not in spec
    if is_name and spec not in REGISTRY:
        _check_exists(spec)


def _load(name: str, weights: str | None, overrides: Overrides, storage: Storage) -> Backbone:
    name = canonical_name(name)
    spec = weights or DEFAULTS[name]
    try:
        if spec == RANDOM or spec.startswith(f"{RANDOM}:"):
            return _random_model(name, spec, overrides)
        entry = REGISTRY.get(spec)
        if entry is None and "://" not in spec and not spec.startswith("package:"):
            _check_exists(spec)
        with local_weights(entry.source if entry else spec, storage) as file:
            return _load_file(name, file, entry or _recognise(spec, file), overrides)
    except ValueError as error:
        raise ConfigError(redact(f"weights {spec} for {name}: {error}")) from error


def _check_exists(path: str) -> None:
    """Raises a WeightsError that names the nearest published weights."""
    if not Path(path).expanduser().exists():
        near = difflib.get_close_matches(path, REGISTRY, n=3)
        raise WeightsError(
            f"weights {path!r} are neither a file nor a published name"
            + (f"; did you mean {', '.join(near)}?" if near else "; see `effnet-batch models`")
        )


def _recognise(spec: str, file: WeightsFile) -> PublishedWeights | None:
    """Returns the published weights that a repository's name or a file's hash stands for."""
    if spec.startswith("hf://"):
        repo, _, named = parse_hub_spec(spec)
        owner, _, name = repo.partition("/")
        if owner == "timm" and named is None and name in REGISTRY:
            return REGISTRY[name]
    return find_by_sha256(file.sha256)


def _load_file(
    name: str, file: WeightsFile, entry: PublishedWeights | None, overrides: Overrides
) -> Backbone:
    if entry and entry.sha256 and not file.sha256.startswith(entry.sha256):
        raise WeightsError(
            f"weights {file.source} have sha256 {file.sha256}, published is {entry.sha256}: "
            "the download is damaged or the file was replaced"
        )
    state = fit(read_state_dict(file.path, file.source), name, file.source)
    own = read_classifier_info(file.path, file.source)
    recipe = _recipe(name, file, entry, own, overrides)
    # Without memory of its own: the loaded tensors become the parameters.
    with torch.device("meta"):
        model = build_model(
            name,
            num_classes=len(state["fc.weight"]),
            padding=recipe.padding,
            bn_eps=recipe.bn_eps,
            bn_momentum=recipe.bn_momentum,
        )
    model.load_state_dict(state, strict=True, assign=True)
    class_names = class_names_from_config(file.config) if file.config else None
    if own is not None:
        class_names = own.class_names
    model.weights_info = _info(
        name,
        recipe,
        model,
        weights_name=entry.name if entry else file.source.rstrip("/").rpartition("/")[2],
        source=file.source,
        sha256=file.sha256,
        class_names=class_names if class_names and len(class_names) == model.num_classes else None,
        licence=entry.licence if entry else own.licence if own else None,
    )
    return model.eval()


def _recipe(
    name: str,
    file: WeightsFile,
    entry: PublishedWeights | None,
    own: ClassifierInfo | None,
    overrides: Overrides,
) -> Recipe:
    """Returns the weights' recipe with the caller's values in it."""
    stated = recipe_from_config(file.config) if file.config else None
    if own:
        architecture, known = own.architecture, own.recipe
    elif entry:
        architecture, known = entry.architecture, entry.recipe
    elif stated:
        architecture, known = stated
    else:
        # Only EfficientNet exists under several paddings.
        missing = [
            field
            for field in overrides.missing()
            if field != "padding" or name.startswith("efficientnet")
        ]
        if missing:
            flags = ", ".join(f"--{field.replace('_', '-')}" for field in missing)
            raise WeightsError(
                f"weights {file.source} are not in the registry, so they do not say how they must "
                f"be run; state {', '.join(missing)} (on the command line {flags}). "
                f"padding is one of {', '.join(PADDINGS)}; bn_eps is 0.001 for weights that come "
                "from TensorFlow, else mostly 0.00001"
            )
        assert overrides.image_size is not None
        size = overrides.image_size
        return overrides.apply(Recipe(image_size=size, resize_size=size))
    if architecture != name:
        raise WeightsError(f"weights {file.source} are of {architecture}, not of {name}")
    return overrides.apply(known)


def _random_model(name: str, spec: str, overrides: Overrides) -> Backbone:
    """Returns a freshly initialised network; the same seed gives the same numbers."""
    _, _, digits = spec.partition(":")
    if digits and not digits.isdecimal():
        raise WeightsError(
            f"weights {spec!r} must be {RANDOM} or {RANDOM}:SEED, SEED being 0 or more"
        )
    seed = int(digits or 0)
    image_size = ARCHITECTURES[name].resolution
    recipe = overrides.apply(
        Recipe(image_size=image_size, resize_size=resized_side(image_size, RANDOM_CROP_PCT))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(name, padding=recipe.padding, bn_eps=recipe.bn_eps)
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    model.weights_info = _info(
        name,
        recipe,
        model,
        weights_name=f"{RANDOM}:{seed}",
        source=f"{RANDOM}:{seed}",
        sha256=digest.hexdigest(),
        class_names=None,
        licence=None,
    )
    return model.eval()


def _info(
    architecture: str,
    recipe: Recipe,
    model: Backbone,
    *,
    weights_name: str,
    source: str,
    sha256: str,
    class_names: tuple[str, ...] | None,
    licence: str | None,
) -> WeightsInfo:
    return WeightsInfo(
        name=weights_name,
        source=source,
        sha256=sha256,
        architecture=architecture,
        padding=recipe.padding,
        bn_eps=recipe.bn_eps,
        bn_momentum=recipe.bn_momentum,
        preprocessing=recipe.preprocessing,
        num_classes=model.num_classes,
        class_names=class_names,
        licence=licence,
    )
