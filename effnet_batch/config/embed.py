"""Settings of the embedding job, and of a listing on its own."""

import dataclasses

from effnet_batch.config.base import JobConfig, setting
from effnet_batch.config.groups import (
    ActorSettings,
    EngineSettings,
    InputSettings,
    MediumSettings,
    StorageSettings,
)

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which backbone, which weights, and what the weights do not say themselves."""

    model: str = setting("efficientnet_b0", "Backbone; `effnet-batch models` lists them.")
    weights: str | None = setting(
        None, "Path, URL, hf://owner/repo, registry name, or random; default: the model's own."
    )
    padding: str | None = setting(
        None,
        "Padding of unknown weights.",
        choices=("symmetric", "same", "same_static"),
    )
    bn_eps: float | None = setting(None, "BatchNorm epsilon of unknown weights.", minimum=0)
    mean: tuple[float, float, float] | None = setting(None, "RGB mean of unknown weights, of 0..1.")
    std: tuple[float, float, float] | None = setting(None, "RGB deviation of unknown weights.")
    interpolation: str | None = setting(
        None, "Resize kernel.", choices=("bilinear", "bicubic", "lanczos", "nearest")
    )
    image_size: int | None = setting(None, "Side of the model's input in pixels.", minimum=32)
    crop_pct: float | None = setting(
        None, "Image size as a share of the resized short side.", minimum=0.1, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Bounds that keep bad input from taking the job down."""

    max_image_bytes: int = setting(256 * _MIB, "Larger encoded images are too_large.", minimum=1)
    max_pixels: int = setting(178_956_970, "Images of more pixels are too_large.", minimum=1)
    timeout_seconds: float = setting(60.0, "Longest decode of one image.", minimum=0.1)
    max_decode_memory_bytes: int = setting(
        4096 * _MIB, "Memory of the process that decodes a suspect image.", minimum=64 * _MIB
    )
    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a row holds and how rows become parts."""

    top_k: int = setting(0, "Also store the K best classes and their scores.", minimum=0)
    logits: bool = setting(False, "Also store the logits of all classes.")
    dtype: str = setting(
        "float32", "Number format of stored vectors.", choices=("float32", "float16")
    )
    rows_per_part: int | None = setting(
        None, "Sources per part; default: automatic, at most 5,000.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings(ActorSettings):
    """Where the work of the embedding job runs."""

    cpus_per_actor: float | None = setting(
        None, "CPUs of one model actor; below 1 for split placement only.", minimum=0.01
    )
    placement: str = setting(
        "auto", "Decode beside the model, or in tasks.", choices=("auto", "fused", "split")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig(JobConfig):
    """Configuration of the embedding job."""

    NUMBER_GROUPS = ("model", "engine", "output")

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    limits: LimitSettings = dataclasses.field(default_factory=LimitSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    output: OutputSettings = dataclasses.field(default_factory=OutputSettings)
    cluster: ClusterSettings = dataclasses.field(default_factory=ClusterSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestConfig(JobConfig):
    """Configuration of a listing on its own."""

    medium: MediumSettings = dataclasses.field(default_factory=MediumSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
