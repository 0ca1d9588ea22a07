"""Settings of the scoring job. Where one is empty, the checkpoint's own value is taken."""

import dataclasses

from effnet_batch.config.base import JobConfig, setting
from effnet_batch.config.groups import (
    ClusterSettings,
    DecodingSettings,
    DriftSettings,
    EngineSettings,
    InputSettings,
    ModelActorSettings,
    StorageSettings,
)
from effnet_batch.config.video import (
    DistortionSettings,
    FaceDetectionSettings,
    SamplingSettings,
    VideoLimitSettings,
)

_AGGREGATIONS = ("last", "mean", "mean_logit", "max", "top_k_mean", "confident")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What judges the videos."""

    checkpoint: tuple[str, ...] = setting(
        (),
        "Published name, path, URL, hf://owner/repo or NAME=PATH; several are an ensemble.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AggregationSettings:
    """How a video's score comes from its frames."""

    step_aggregation: str | None = setting(
        None, "Frames of a clip to the clip.", choices=_AGGREGATIONS
    )
    clip_aggregation: str | None = setting(
        None, "Clips of a track to the track.", choices=_AGGREGATIONS
    )
    track_aggregation: str | None = setting(
        None, "Tracks to the video.", choices=(*_AGGREGATIONS, "pooled", "frame_max")
    )
    top_k: int | None = setting(None, "How many scores top_k_mean takes.", minimum=1)
    max_clip_frames: int | None = setting(
        None, "Most frames that the model sees together.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdSettings:
    """How a score becomes a verdict; between the two a video is undecided."""

    fake_threshold: float | None = setting(
        None, "Lowest score of the verdict fake.", minimum=0, maximum=1
    )
    no_forgery_threshold: float | None = setting(
        None, "Scores below are no_forgery_found.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOutputSettings:
    """What is stored beside the verdicts, and how rows become parts."""

    embeddings: bool = setting(
        False, "Also store the embedding of every frame, which `rescore` judges again."
    )
    dtype: str = setting(
        "float32", "Number format of stored vectors.", choices=("float32", "float16")
    )
    store_crops: int = setting(
        0, "Keep the K most suspicious crops of a video as JPEG.", minimum=0, maximum=64
    )
    rows_per_part: int | None = setting(
        None, "Videos per part; default: automatic, at most 64.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(JobConfig):
    """Configuration of the scoring job."""

    NUMBER_GROUPS = (
        "checkpoint",
        "sampling",
        "distortion",
        "faces",
        "aggregation",
        "thresholds",
        "decoding",
        "engine",
        "output",
    )

    checkpoint: CheckpointSettings = dataclasses.field(default_factory=CheckpointSettings)
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    distortion: DistortionSettings = dataclasses.field(default_factory=DistortionSettings)
    faces: FaceDetectionSettings = dataclasses.field(default_factory=FaceDetectionSettings)
    aggregation: AggregationSettings = dataclasses.field(default_factory=AggregationSettings)
    thresholds: ThresholdSettings = dataclasses.field(default_factory=ThresholdSettings)
    decoding: DecodingSettings = dataclasses.field(default_factory=DecodingSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    drift: DriftSettings = dataclasses.field(default_factory=DriftSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    limits: VideoLimitSettings = dataclasses.field(default_factory=VideoLimitSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    output: VideoOutputSettings = dataclasses.field(default_factory=VideoOutputSettings)
    cluster: ClusterSettings = dataclasses.field(default_factory=ClusterSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureSettings:
    """When a run that is complete counts as failed."""

    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RescoreConfig(JobConfig):
    """Configuration of the job that judges stored frames; which frames they are, those say."""

    NUMBER_GROUPS = ("checkpoint", "aggregation", "thresholds")

    checkpoint: CheckpointSettings = dataclasses.field(default_factory=CheckpointSettings)
    aggregation: AggregationSettings = dataclasses.field(default_factory=AggregationSettings)
    thresholds: ThresholdSettings = dataclasses.field(default_factory=ThresholdSettings)
    limits: FailureSettings = dataclasses.field(default_factory=FailureSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    cluster: ModelActorSettings = dataclasses.field(default_factory=ModelActorSettings)
