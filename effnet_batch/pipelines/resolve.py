"""What the embedding job settles once: its model, weights, engine and columns."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

from effnet_batch.config import EmbedConfig
from effnet_batch.errors import ConfigError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.card_image import CardDecoder
from effnet_batch.media.image import ImageLimits
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.weights import load_model
from effnet_batch.models.weights_file import check_sha256
from effnet_batch.pipelines.resolution import (
    Resolution,
    check_gpu_decode,
    choose_engine,
    fit_engine,
    library_versions,
)
from effnet_batch.pipelines.run import storage_options
from effnet_batch.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(Resolution):
    """What a run really uses. Plain values; stored in run.json and taken up by a resumed run."""

    CARD_DECODER: ClassVar = "nvjpeg"
    """What decodes where a card does."""

    weights: str
    """Name of the weights, without secrets."""
    weights_sha256: str
    architecture: str
    padding: str
    bn_eps: float
    licence: str | None
    num_classes: int
    preprocessing: Preprocessing
    output: dict[str, Any]
    """What is stored of the model's outputs: top_k, logits, dtype."""
    class_names: tuple[str, ...] | None = None
    """Of the classes in order, where the weights say them."""

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the numbers."""
        return Fingerprint(self.number_fields())

    def number_fields(self) -> dict[str, Any]:
        """Returns the fields of the fingerprint."""
        return {
            "job": "embed",
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "padding": self.padding,
            "bn_eps": self.bn_eps,
            "preprocessing": self.preprocessing.to_dict(),
            "engine": self.engine.name,
            "precision": self.engine.precision,
            **self.output,
            **({"decoder": self.CARD_DECODER} if self.gpu_decode else {}),
            # Not the names themselves: they change no number, only which columns there are.
            **({"top_k_names": True} if self.class_names and self.output.get("top_k") else {}),
        }

    @property
    def model_names(self) -> str:
        """Name of the weights."""
        return self.weights

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuilds what `to_dict` returned."""
        preprocessing = dict(values["preprocessing"])
        for name in ("mean", "std"):
            preprocessing[name] = tuple(preprocessing[name])
        names = values.get("class_names")
        return cls(
            **{
                **values,
                "class_names": None if names is None else tuple(names),
                "preprocessing": Preprocessing(**preprocessing),
                "engine": EngineChoice(**values["engine"]),
            }
        )


def load(config: EmbedConfig) -> Backbone:
    """Loads the model of the settings; weights behind a URL come as the job's other objects do."""
    settings = config.model
    return load_model(
        settings.model,
        weights=settings.weights,
        padding=settings.padding,
        bn_eps=settings.bn_eps,
        mean=settings.mean,
        std=settings.std,
        interpolation=settings.interpolation,
        image_size=settings.image_size,
        crop_pct=settings.crop_pct,
        storage=Storage(storage_options(config)),
    )


def load_chosen(config: EmbedConfig, resolved: Resolved) -> Backbone:
    """Loads the model that a run was resolved to.

    Raises:
        FingerprintError: the weights on this node are not those of the run.
    """
    model = load(config)
    assert model.weights_info is not None
    check_sha256(resolved.weights, model.weights_info.sha256, resolved.weights_sha256)
    return model


def _check_nvjpeg(preprocessing: Preprocessing) -> None:
    CardDecoder(preprocessing, ImageLimits())


def resolve(
    config: EmbedConfig, check_decoder: Callable[[Preprocessing], object] = _check_nvjpeg
) -> Resolved:
    """Resolves every ``auto`` for the machine that it runs on.

    Args:
        config: of the job.
        check_decoder: raises ConfigError where a card cannot decode for these weights.

    Raises:
        ConfigError: the settings contradict each other, or this machine cannot run them.
    """
    model = load(config)
    info = model.weights_info
    assert info is not None
    if config.output.top_k > info.num_classes:
        raise ConfigError(
            f"top_k is {config.output.top_k}, and {info.name} knows {info.num_classes} classes; "
            f"choose --top-k {info.num_classes} or less"
        )
    choice = fit_engine(
        choose_engine(config.engine),
        [(model, info.preprocessing)],
        config,
        with_logits=bool(config.output.top_k or config.output.logits),
    )
    if config.decoding.gpu_decode:
        check_gpu_decode(choice)
        check_decoder(info.preprocessing)
    return Resolved(
        gpu_decode=config.decoding.gpu_decode,
        weights=info.name,
        weights_sha256=info.sha256,
        architecture=info.architecture,
        padding=info.padding,
        bn_eps=info.bn_eps,
        licence=info.licence,
        num_classes=info.num_classes,
        preprocessing=info.preprocessing,
        engine=choice,
        output={
            "top_k": config.output.top_k,
            "logits": config.output.logits,
            "dtype": config.output.dtype,
        },
        class_names=info.class_names,
        versions=library_versions(),
    )
