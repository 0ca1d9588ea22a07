"""Fits a state dict to a network: every key, every shape, finite numbers, or a clear refusal."""

from collections.abc import Mapping

import torch

from effnet_batch.errors import WeightsError
from effnet_batch.models.architectures import ARCHITECTURES, build_model
from effnet_batch.models.keys import COUNTER, to_canonical


def fit(state: Mapping[str, torch.Tensor], name: str, source: str) -> dict[str, torch.Tensor]:
    """Returns the network's own state dict, in float32 and in memory of its own.

    Args:
        state: tensors under the keys of any published layout, wrapped or not.
        name: one of `architectures.ARCHITECTURES`.
        source: what the user called the weights, for errors.

    Returns:
        A value for every key of the network; the classifier has as many rows as the file's.

    Raises:
        WeightsError: the tensors are of another network, lack keys or have some too many, have
            other shapes, or hold numbers that are not finite.
    """
    with torch.device("meta"):
        model = build_model(name, num_classes=1)
    try:
        canonical, _ = to_canonical(state, model, f"weights {source}")
    except WeightsError as error:
        other = _identify(state, except_for=name)
        if other is None:
            raise
        raise WeightsError(f"weights {source} are of {other}, not of {name}") from error
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # Any number of classes will do, as long as its weight and bias agree on it.
    num_classes = canonical["fc.bias"].numel()
    expected["fc.weight"] = (num_classes, model.embedding_dim)
    expected["fc.bias"] = (num_classes,)
    wrong = [key for key, value in canonical.items() if tuple(value.shape) != expected[key]]
    if wrong or num_classes == 0:
        other = _identify(state, except_for=name)
        if other is not None:
            raise WeightsError(f"weights {source} are of {other}, not of {name}")
        key = wrong[0] if wrong else "fc.bias"
        raise WeightsError(
            f"weights {source} do not fit {name}: {len(wrong)} tensors of other shapes, first "
            f"{key} with {tuple(canonical[key].shape)} instead of {expected[key]}"
        )
    fitted = {}
    for key in expected:
        if key.endswith(COUNTER):
            fitted[key] = torch.zeros((), dtype=torch.int64)
            continue
        # A copy, made once the shape is known: the tensors may be views of a file that goes away.
        fitted[key] = canonical[key].to(torch.float32, copy=True)
        if not torch.isfinite(fitted[key]).all():
            raise WeightsError(f"weights {source} hold numbers that are not finite in {key}")
    return fitted


def _identify(state: Mapping[str, torch.Tensor], *, except_for: str) -> str | None:
    """Returns the network that the tensors fit in every shape but the classifier's length."""
    for name in ARCHITECTURES:
        if name == except_for:
            continue
        with torch.device("meta"):
            model = build_model(name, num_classes=1)
        try:
            canonical, _ = to_canonical(state, model, name)
        except WeightsError:
            continue
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        if all(key.startswith("fc.") or v.shape == shapes[key] for key, v in canonical.items()):
            return name
    return None
