"""Our own file of an image classifier: safetensors whose metadata says how to run it. No pickle.

The metadata holds one text, the JSON object ``{"version", "info"}``; ``info`` is a
`ClassifierInfo`. The tensors are those of a `Backbone`, in float32.
"""

import dataclasses
import json
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from effnet_batch.errors import WeightsError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import ARCHITECTURES
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.keys import COUNTER
from effnet_batch.models.plain_values import from_plain
from effnet_batch.models.recipe import PADDINGS, Recipe

METADATA_KEY: Final = "effnet_batch.classifier"
VERSION: Final = 1
"""Raised when an older effnet_batch could not read the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierInfo:
    """Everything needed to run an image classifier as it was trained."""

    architecture: str
    """One of `architectures.ARCHITECTURES`."""
    padding: str
    """One of `recipe.PADDINGS`."""
    bn_eps: float
    """Added to the variance by every batch normalisation."""
    bn_momentum: float
    """Weight of a new batch in the running statistics; matters for training only."""
    preprocessing: Preprocessing
    """From an image to the network's input."""
    class_names: tuple[str, ...]
    """Of the logits, in order."""
    training_fingerprint: str | None = None
    """Of the run that trained it."""
    licence: str | None = None
    """SPDX identifier of the weights that it was trained from, where known."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("architecture", self.architecture, tuple(ARCHITECTURES)),
            ("padding", self.padding, PADDINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names must name every class once")

    @property
    def recipe(self) -> Recipe:
        """How the network is run."""
        return Recipe(
            padding=self.padding,
            bn_eps=self.bn_eps,
            bn_momentum=self.bn_momentum,
            **dataclasses.asdict(self.preprocessing),
        )


def classifier_bytes(model: Backbone, info: ClassifierInfo) -> bytes:
    """Returns the file of a classifier, which `weights.load_model` takes as weights.

    Raises:
        ValueError: the network has another number of classes.
    """
    if model.num_classes != len(info.class_names):
        raise ValueError(f"{model.num_classes} classes, but {len(info.class_names)} names")
    tensors = {
        key: value.detach().cpu().float().contiguous()
        for key, value in model.state_dict().items()
        if not key.endswith(COUNTER)
    }
    about = {"version": VERSION, "info": dataclasses.asdict(info)}
    return save(tensors, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})


def read_classifier_info(path: Path, source: str) -> ClassifierInfo | None:
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
    where = f"weights {source}"
    try:
        document = json.loads(text)
        version, about = int(document["version"]), document["info"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{where} hold a damaged description: {error!r}") from error
    if version > VERSION:
        raise WeightsError(
            f"{where} are of version {version}, this effnet_batch reads up to {VERSION}; install a "
            "newer one"
        )
    return from_plain(ClassifierInfo, about, where)
