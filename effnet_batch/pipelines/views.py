"""What is looked at in videos: sampling and faces as described, with the user's settings over it.

Descriptions are plain values, as checkpoints and run.json hold them: of the sampling ``strategy``
and its parameters, of the faces ``detector``, ``which`` and the fields of `FaceSettings`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from effnet_batch.config import FaceDetectionSettings, SamplingSettings
from effnet_batch.errors import ConfigError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.card_video import NVDEC
from effnet_batch.media.distortions import parse_distortion
from effnet_batch.media.faces import MODEL_SHA256, FaceSettings, load_model
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import STRATEGIES, Clips, parse_sampling
from effnet_batch.models.engine import EngineChoice
from effnet_batch.stages.show import ALL, WHICH_FACES, View

NO_DETECTOR: Final = "none"
DETECTOR: Final = "yunet"

_PARAMETERS: Final = ("ratio", "num_frames", "num_clips", "stride", "fps")


def sampling_with(own: Mapping[str, Any], settings: SamplingSettings) -> dict[str, Any]:
    """Returns a description of a sampling with the user's settings over it.

    Raises:
        ConfigError: the strategy does not have a parameter that is set.
    """
    given = {name: value for name in _PARAMETERS if (value := getattr(settings, name)) is not None}
    if settings.sampling not in (None, own.get("strategy")):
        own = {"strategy": settings.sampling, "max_clip_frames": own.get("max_clip_frames")}
    chosen = {**own, **given}
    parse_sampling(chosen)
    return chosen


def faces_with(
    own: Mapping[str, Any], settings: FaceDetectionSettings, name: str
) -> dict[str, Any]:
    """Returns a full description of faces: the detector, ``which``, every field of `FaceSettings`.

    Args:
        own: a description; what it does not say has its default.
        settings: the user's.
        name: of what is shown the faces, for messages.

    Raises:
        ConfigError: settings of faces where whole frames are shown.
        ValueError: a value out of range.
    """
    given = {
        "margin": settings.face_margin,
        "border": settings.face_border,
        "min_score": settings.min_face_score,
        "min_face_size": settings.min_face_size,
        "max_faces": settings.max_faces,
        "detection_size": settings.detection_size,
        "detect_every": settings.detect_every,
        "max_gap": settings.max_track_gap,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    detector = settings.faces or (
        NO_DETECTOR if own.get("detector", NO_DETECTOR) == NO_DETECTOR else DETECTOR
    )
    if detector == NO_DETECTOR:
        if changes or settings.which_faces or settings.face_model:
            raise ConfigError(
                f"{name} is shown whole frames, so settings of faces say nothing; "
                "give --faces yunet with them"
            )
        return {"detector": NO_DETECTOR}
    known = {field.name for field in dataclasses.fields(FaceSettings)}
    described = {name: value for name, value in own.items() if name in known}
    which = settings.which_faces or own.get("which", ALL)
    if which not in WHICH_FACES:
        raise ConfigError(f"which must be one of {', '.join(WHICH_FACES)}, got {which!r}")
    try:
        found = FaceSettings(**{**described, **changes})
    except TypeError as error:  # of a checkpoint that a stranger wrote
        raise ConfigError(f"faces of {name}: {error}") from error
    return {"detector": DETECTOR, "which": which, **dataclasses.asdict(found)}


def make_view(
    sampling: Mapping[str, Any],
    faces: Mapping[str, Any],
    *,
    max_frames: int,
    segment_seconds: float | None,
    distortion: str | None = None,
) -> View:
    """Returns the view that full descriptions stand for.

    Raises:
        ValueError: there is no such distortion.
    """
    strategy, longest = parse_sampling(sampling)
    fields = dict(faces)
    wants_faces = fields.pop("detector") != NO_DETECTOR
    which = fields.pop("which", ALL)
    return View(
        sampling=strategy,
        max_clip_frames=longest,
        max_frames=max_frames,
        segment_seconds=segment_seconds,
        faces=FaceSettings(**fields) if wants_faces else None,
        which_faces=which,
        distortion=parse_distortion(distortion) if distortion else None,
    )


def check_view(view: View, settings: FaceDetectionSettings) -> None:
    """Finds out whether this machine can show a view.

    Raises:
        ValueError: clips are longer than the cap on frames.
        WeightsError: the face detector's model cannot be had.
    """
    if view.faces:
        load_model(settings.face_model)  # missing, it is missed now
    if isinstance(view.sampling, Clips) and view.sampling.num_frames > view.max_frames:
        raise ValueError(
            f"clips of {view.sampling.num_frames} frames are longer than max_frames "
            f"{view.max_frames}"
        )


def frame_fingerprint(
    encoder_sha256: str,
    preprocessing: Preprocessing,
    view: View,
    engine: EngineChoice,
    dtype: str,
    *,
    gpu_decode: bool,
) -> Fingerprint:
    """Returns what the stored embeddings of frames depend on, and which frames they are of.

    The longest clip does not count: stored frames can be cut into clips of any length.

    Args:
        encoder_sha256: as `SequenceClassifier.encoder_sha256` has it.
        preprocessing: of the encoder's input.
        view: what the encoder is shown.
        engine: what runs it.
        dtype: number format of the stored vectors.
        gpu_decode: a card decodes what it can.
    """
    strategies = {kind: name for name, kind in STRATEGIES.items()}
    faces = None
    if view.faces:
        faces = {
            **dataclasses.asdict(view.faces),
            "which": view.which_faces,
            "model_sha256": MODEL_SHA256,
        }
    return Fingerprint(
        {
            "encoder_sha256": encoder_sha256,
            "preprocessing": preprocessing.to_dict(),
            "sampling": {
                "strategy": strategies[type(view.sampling)],
                **dataclasses.asdict(view.sampling),
            },
            "max_frames": view.max_frames,
            "segment_seconds": view.segment_seconds,
            "faces": faces,
            "engine": engine.name,
            "precision": engine.precision,
            "dtype": dtype,
            **({"decoder": NVDEC} if gpu_decode else {}),
            **({"distortion": str(view.distortion)} if view.distortion else {}),
        }
    )
