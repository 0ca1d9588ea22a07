"""Settling every ``auto`` once, on a worker, so that all rows of an output come from one recipe."""

import dataclasses
import functools
import importlib.metadata
from typing import Any

import ray

from effnet_batch.config import EmbedConfig
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import EngineChoice, build_engine, resolve_engine
from effnet_batch.models.weights import load_model
from effnet_batch.pipelines.run import storage_options
from effnet_batch.storage import Storage

_PACKAGES = ("effnet-batch", "torch", "openvino", "ray", "pyarrow", "pillow", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a run really uses. Plain values; stored in run.json and taken up by a resumed run."""

    weights: str
    """Name of the weights, without secrets."""
    weights_sha256: str
    architecture: str
    padding: str
    bn_eps: float
    licence: str | None
    num_classes: int
    preprocessing: Preprocessing
    engine: EngineChoice
    output: dict[str, Any]
    """What is stored of the model's outputs: top_k, logits, dtype."""
    versions: dict[str, str]
    """Of the libraries; recorded, but no part of the fingerprint."""

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the numbers."""
        return Fingerprint(
            {
                "job": "embed",
                "architecture": self.architecture,
                "weights_sha256": self.weights_sha256,
                "padding": self.padding,
                "bn_eps": self.bn_eps,
                "preprocessing": self.preprocessing.to_dict(),
                "engine": self.engine.engine,
                "precision": self.engine.precision,
                **self.output,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Resolved":
        """Rebuilds what `to_dict` returned."""
        preprocessing = dict(values["preprocessing"])
        for name in ("mean", "std"):
            preprocessing[name] = tuple(preprocessing[name])
        return cls(
            **{
                **values,
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


def resolve(config: EmbedConfig) -> Resolved:
    """Resolves every ``auto`` for the machine that it runs on.

    Raises:
        ConfigError: the settings contradict each other, or this machine cannot run them.
    """
    choice = resolve_engine(
        engine=config.engine.engine,
        device=config.engine.device,
        precision=config.engine.precision,
        batch_size=config.engine.batch_size,
    )
    model = load(config)
    info = model.weights_info
    assert info is not None
    # Only a built engine knows what this machine can run, so what it cannot run is found here. Any
    # CPU runs fp32, and building takes seconds.
    if (choice.device, choice.precision) != ("cpu", "fp32"):
        build_engine(model, info.preprocessing, **dataclasses.asdict(choice))
    return Resolved(
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
        versions=_versions(),
    )


def resolve_on_worker(
    config: EmbedConfig, nodes: list[tuple[float, float]], *, is_own_machine: bool
) -> Resolved:
    """Resolves on a node of the kind that will run the model: one with a GPU if there is one.

    Args:
        config: holds the autos.
        nodes: CPUs and GPUs of every node.
        is_own_machine: the cluster is this machine alone, started by this process. Without a GPU
            this process then finds the same, and saves the seconds that a worker's start takes.
    """
    if is_own_machine and not any(gpus for _, gpus in nodes):
        return resolve(config)
    wants_gpu = config.engine.device != "cpu" and any(gpus for _, gpus in nodes)
    task = ray.remote(num_cpus=1, num_gpus=1 if wants_gpu else 0, max_retries=2)(resolve)
    resolved: Resolved = ray.get(task.remote(config))
    return resolved


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
