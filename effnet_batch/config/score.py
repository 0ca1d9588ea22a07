"""Settings of the scoring job. Where one is empty, the checkpoint's own value is taken."""

import dataclasses

from effnet_batch.config.base import JobConfig, setting
from effnet_batch.config.groups import (
    ActorSettings,
    EngineSettings,
    InputSettings,
    StorageSettings,
)

_MIB = 1 << 20
_AGGREGATIONS = ("last", "mean", "mean_logit", "max", "top_k_mean", "confident")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What judges the videos."""

    checkpoint: tuple[str, ...] = setting(
        (),
        "Published name, path, URL, hf://owner/repo or NAME=PATH; several are an ensemble.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Which frames are looked at."""

    sampling: str | None = setting(
        None,
        "How frames are taken; default: the checkpoint's.",
        choices=("every_nth", "uniform", "clips", "fps"),
    )
    ratio: int | None = setting(None, "every_nth: take every RATIO-th frame.", minimum=1)
    num_frames: int | None = setting(
        None, "uniform: frames of a video; clips: frames of a clip.", minimum=1
    )
    num_clips: int | None = setting(None, "clips: clips of a video.", minimum=1)
    stride: int | None = setting(None, "clips: distance of a clip's frames.", minimum=1)
    fps: float | None = setting(None, "fps: frames per second.", minimum=0.001)
    max_clip_frames: int | None = setting(
        None, "Most frames that the model sees together.", minimum=1
    )
    max_frames: int = setting(1000, "Most frames of a video, or of a segment.", minimum=1)
    min_frames: int = setting(1, "Videos with fewer readable frames are too_short.", minimum=1)
    segment_seconds: float | None = setting(
        None, "Sample every stretch of this length on its own, one after the other.", minimum=0.1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceDetectionSettings:
    """Which faces are looked at."""

    faces: str | None = setting(
        None,
        "Judge faces found by YuNet, or whole frames; default: the checkpoint's way.",
        choices=("yunet", "none"),
    )
    which_faces: str | None = setting(None, "Of a frame's faces.", choices=("all", "largest"))
    face_model: str | None = setting(
        None, "YuNet's model file; default: EFFNET_BATCH_YUNET, else the hub."
    )
    face_margin: float | None = setting(
        None, "Side of a crop over the long side of the face's box.", minimum=1, maximum=10
    )
    face_border: str | None = setting(
        None, "Crops at the edge: padded with black, or clipped.", choices=("pad", "clip")
    )
    min_face_score: float | None = setting(
        None, "Least confidence of a face.", minimum=0.01, maximum=0.99
    )
    min_face_size: int | None = setting(None, "Least short side of a face in pixels.", minimum=1)
    max_faces: int | None = setting(None, "Most faces of a frame.", minimum=1)
    detection_size: int | None = setting(
        None, "Long side in pixels of the frame that faces are searched in.", minimum=16
    )
    detect_every: int | None = setting(
        None, "Search every K-th sampled frame, interpolate between.", minimum=1
    )
    max_track_gap: int | None = setting(
        None, "Most searches between two boxes of one track.", minimum=1
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
class VideoLimitSettings:
    """Bounds that keep bad input from taking the job down."""

    max_video_bytes: int = setting(2048 * _MIB, "Larger files are too_large.", minimum=1)
    max_pixels: int = setting(7680 * 4320, "Videos of larger frames are too_large.", minimum=1)
    timeout_seconds: float = setting(300.0, "Longest wait for a frame.", minimum=0.1)
    max_decode_memory_bytes: int = setting(
        4096 * _MIB, "Memory of the process that decodes a suspect video.", minimum=64 * _MIB
    )
    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOutputSettings:
    """How rows become parts."""

    rows_per_part: int | None = setting(
        None, "Videos per part; default: automatic, at most 64.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(JobConfig):
    """Configuration of the scoring job."""

    NUMBER_GROUPS = ("checkpoint", "sampling", "faces", "aggregation", "thresholds", "engine")

    checkpoint: CheckpointSettings = dataclasses.field(default_factory=CheckpointSettings)
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    faces: FaceDetectionSettings = dataclasses.field(default_factory=FaceDetectionSettings)
    aggregation: AggregationSettings = dataclasses.field(default_factory=AggregationSettings)
    thresholds: ThresholdSettings = dataclasses.field(default_factory=ThresholdSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    limits: VideoLimitSettings = dataclasses.field(default_factory=VideoLimitSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    output: VideoOutputSettings = dataclasses.field(default_factory=VideoOutputSettings)
    cluster: ActorSettings = dataclasses.field(default_factory=ActorSettings)
