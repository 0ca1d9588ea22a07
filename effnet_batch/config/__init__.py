"""Frozen, validated configuration: one set of names for TOML files, flags and the Python API."""

from effnet_batch.config.base import JobConfig, load_toml
from effnet_batch.config.embed import (
    EmbedConfig,
    LimitSettings,
    ManifestConfig,
    ModelSettings,
    OutputSettings,
)
from effnet_batch.config.evaluate import EvaluateConfig, EvaluationSettings
from effnet_batch.config.finetune import (
    AugmentationSettings,
    ExportSettings,
    FinetuneConfig,
    NetworkSettings,
    OptimisationSettings,
    TrainingClusterSettings,
)
from effnet_batch.config.groups import (
    ActorSettings,
    ClusterSettings,
    DeviceSettings,
    DriftSettings,
    EngineSettings,
    InputSettings,
    MediumSettings,
    ModelActorSettings,
    StorageSettings,
)
from effnet_batch.config.score import (
    AggregationSettings,
    CheckpointSettings,
    FailureSettings,
    RescoreConfig,
    ScoreConfig,
    ThresholdSettings,
)
from effnet_batch.config.video import (
    DistortionSettings,
    FaceDetectionSettings,
    SamplingSettings,
    VideoLimitSettings,
)

__all__ = [
    "ActorSettings",
    "AggregationSettings",
    "AugmentationSettings",
    "CheckpointSettings",
    "ClusterSettings",
    "DeviceSettings",
    "DistortionSettings",
    "DriftSettings",
    "EmbedConfig",
    "EngineSettings",
    "EvaluateConfig",
    "EvaluationSettings",
    "ExportSettings",
    "FaceDetectionSettings",
    "FailureSettings",
    "FinetuneConfig",
    "InputSettings",
    "JobConfig",
    "LimitSettings",
    "ManifestConfig",
    "MediumSettings",
    "ModelActorSettings",
    "ModelSettings",
    "NetworkSettings",
    "OptimisationSettings",
    "OutputSettings",
    "RescoreConfig",
    "SamplingSettings",
    "ScoreConfig",
    "StorageSettings",
    "ThresholdSettings",
    "TrainingClusterSettings",
    "VideoLimitSettings",
    "load_toml",
]
