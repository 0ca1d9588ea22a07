"""Our own checkpoint: one safetensors file whose metadata says how to run it. No pickle.

The metadata holds one text, the JSON object ``{"version", "labels", "info"}``; ``info`` is a
`CheckpointInfo`. The tensors are those of `SequenceClassifier`, in float32.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from effnet_batch.errors import WeightsError
from effnet_batch.models.checkpoint_info import LABELS, CheckpointInfo
from effnet_batch.models.keys import COUNTER
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig

METADATA_KEY: Final = "effnet_batch.checkpoint"
VERSION: Final = 1
"""Raised when an older effnet_batch could not read the file."""


def checkpoint_bytes(model: SequenceClassifier, info: CheckpointInfo) -> bytes:
    """Returns the file of a classifier.

    Raises:
        ValueError: the network is not the one that ``info`` describes.
    """
    if model.config != info.sequence:
        raise ValueError(f"the model is {model.config}, but info describes {info.sequence}")
    tensors = {
        key: value.detach().cpu().float().contiguous()
        for key, value in model.state_dict().items()
        if not key.endswith(COUNTER)
    }
    text = json.dumps(
        {"version": VERSION, "labels": LABELS, "info": info.to_dict()},
        sort_keys=True,
        allow_nan=False,
    )
    return save(tensors, metadata={METADATA_KEY: text})


def read_info(path: Path, source: str) -> CheckpointInfo | None:
    """Returns what a file of ours says about itself, or None where it is no file of ours.

    Args:
        path: a local file in any format.
        source: what the user called it, for errors.

    Raises:
        WeightsError: the file is ours, but damaged or of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError, ValueError):
        # Not safetensors, or damaged: who reads the tensors says which.
        return None
    if text is None:
        return None
    where = f"checkpoint {source}"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} holds a damaged description: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("version"), int):
        raise WeightsError(f"{where} holds a description without a version")
    if document["version"] > VERSION:
        raise WeightsError(
            f"{where} is of version {document['version']}, this effnet_batch reads up to "
            f"{VERSION}; install a newer one"
        )
    if document.get("labels") != LABELS:
        raise WeightsError(f"{where} means {document.get('labels')} by its scores, not {LABELS}")
    return CheckpointInfo.from_dict(document.get("info"), where)


def build_classifier(
    tensors: Mapping[str, torch.Tensor], config: SequenceConfig, source: str
) -> SequenceClassifier:
    """Returns a classifier with these tensors, in evaluation mode, in memory of its own.

    Args:
        tensors: under the keys of `SequenceClassifier`, with or without counters.
        config: the network that they are of.
        source: what the user called them, for errors.

    Raises:
        WeightsError: a key is missing or left over, a shape is another, or a number not finite.
    """
    # Without memory of its own: the loaded tensors become the parameters.
    try:
        with torch.device("meta"):
            model = SequenceClassifier(config)
    except ValueError as error:
        raise WeightsError(f"checkpoint {source}: {error}") from error
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = [key for key in expected if key not in tensors and not key.endswith(COUNTER)]
    unexpected = [key for key in tensors if key not in expected]
    if missing or unexpected:
        raise WeightsError(
            f"checkpoint {source} does not fit its own description: "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    fitted = {}
    for key, shape in expected.items():
        if key.endswith(COUNTER):
            fitted[key] = torch.zeros((), dtype=torch.int64)
            continue
        value = tensors[key]
        if tuple(value.shape) != shape:
            raise WeightsError(
                f"checkpoint {source}: {key} has shape {list(value.shape)}, expected {list(shape)}"
            )
        fitted[key] = value.to(torch.float32, copy=True)
        if not torch.isfinite(fitted[key]).all():
            raise WeightsError(f"checkpoint {source} holds numbers that are not finite in {key}")
    model.load_state_dict(fitted, strict=True, assign=True)
    return model.eval()
