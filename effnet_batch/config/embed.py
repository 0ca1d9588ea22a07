"""Settings of the embedding job, and of a listing on its own."""

import dataclasses
from typing import ClassVar

from effnet_batch.config.base import JobConfig, setting, settings_of
from effnet_batch.config.groups import (
    ClusterSettings,
    DecodingSettings,
    DriftSettings,
    EngineSettings,
    InputSettings,
    MediumSettings,
    StorageSettings,
)
from effnet_batch.config.video import FaceDetectionSettings, SamplingSettings, VideoLimitSettings
from effnet_batch.vocabulary import KIND_IMAGE, KIND_VIDEO

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
    max_video_bytes: int = setting(2048 * _MIB, "Larger video files are too_large.", minimum=1)
    max_pixels: int | None = setting(
        None,
        "Images and videos of more pixels are too_large; default: 178956970 and 33177600.",
        minimum=1,
    )
    timeout_seconds: float | None = setting(
        None,
        "Longest decode of an image, or wait for a frame of a video; default: 60 and 300.",
        minimum=0.1,
    )
    max_decode_memory_bytes: int = setting(
        4096 * _MIB, "Memory of the process that decodes a suspect file.", minimum=64 * _MIB
    )
    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
    )

    @property
    def max_image_pixels(self) -> int:
        """Images of more pixels are too large."""
        return self.max_pixels or 178_956_970

    @property
    def image_timeout_seconds(self) -> float:
        """Longest decode of one image."""
        return self.timeout_seconds or 60.0

    def of_videos(self) -> VideoLimitSettings:
        """Returns the limits of videos."""
        names = [field.name for field in dataclasses.fields(VideoLimitSettings)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return VideoLimitSettings(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a row holds and how rows become parts."""

    top_k: int = setting(0, "Also store the K best classes and their scores.", minimum=0)
    logits: bool = setting(False, "Also store the logits of all classes.")
    frames: bool = setting(False, "Of videos, also store the embedding of every frame.")
    dtype: str = setting(
        "float32", "Number format of stored vectors.", choices=("float32", "float16")
    )
    rows_per_part: int | None = setting(
        None, "Sources per part; default: automatic, at most 5,000, of videos 64.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig(JobConfig):
    """Configuration of the embedding job."""

    NUMBER_GROUPS = ("model", "decoding", "engine", "output", "sampling", "faces")
    OF_ONE_MEDIUM: ClassVar = {
        **settings_of(SamplingSettings, KIND_VIDEO),
        **settings_of(FaceDetectionSettings, KIND_VIDEO),
        "frames": KIND_VIDEO,
        "max_video_bytes": KIND_VIDEO,
        "max_image_bytes": KIND_IMAGE,
        "top_k": KIND_IMAGE,
        "logits": KIND_IMAGE,
    }

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    decoding: DecodingSettings = dataclasses.field(default_factory=DecodingSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    drift: DriftSettings = dataclasses.field(default_factory=DriftSettings)
    medium: MediumSettings = dataclasses.field(default_factory=MediumSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    faces: FaceDetectionSettings = dataclasses.field(default_factory=FaceDetectionSettings)
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
