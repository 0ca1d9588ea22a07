"""Groups of settings that the jobs on videos share."""

import dataclasses

from effnet_batch.config.base import setting

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Which frames are looked at."""

    sampling: str | None = setting(
        None,
        "How frames are taken; default: the checkpoint's, for embeddings uniform.",
        choices=("every_nth", "uniform", "clips", "fps"),
    )
    ratio: int | None = setting(None, "every_nth: take every RATIO-th frame.", minimum=1)
    num_frames: int | None = setting(
        None, "uniform: frames of a video; clips: frames of a clip.", minimum=1
    )
    num_clips: int | None = setting(None, "clips: clips of a video.", minimum=1)
    stride: int | None = setting(None, "clips: distance of a clip's frames.", minimum=1)
    fps: float | None = setting(None, "fps: frames per second.", minimum=0.001)
    max_frames: int = setting(
        1000,
        "Most frames of a video, or of a segment; where there are more, fewer, evenly.",
        minimum=1,
    )
    min_frames: int = setting(1, "Videos with fewer readable frames are too_short.", minimum=1)
    segment_seconds: float | None = setting(
        None, "Sample every stretch of this length on its own, one after the other.", minimum=0.1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistortionSettings:
    """What is done to frames before anything else."""

    distortion: str | None = setting(
        None, "Distort frames first, as a cell of `robustness` does; such as noise:3."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceDetectionSettings:
    """Which faces are looked at."""

    faces: str | None = setting(
        None,
        "Look at faces found by YuNet, or whole frames; default: the checkpoint's way, else none.",
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
class VideoLimitSettings:
    """Bounds that keep bad input from taking the job down."""

    max_video_bytes: int = setting(2048 * _MIB, "Larger files are too_large.", minimum=1)
    max_pixels: int = setting(7680 * 4320, "Videos of larger frames are too_large.", minimum=1)
    timeout_seconds: float = setting(
        300.0, "Longest time that decoding may stand still.", minimum=0.1
    )
    max_decode_memory_bytes: int = setting(
        4096 * _MIB, "Memory of the process that decodes a suspect video.", minimum=64 * _MIB
    )
    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
    )
