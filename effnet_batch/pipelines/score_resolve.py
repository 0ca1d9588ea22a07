"""What the scoring job settles once: checkpoints with the user's settings laid over, and engine."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

from effnet_batch.config import RescoreConfig, ScoreConfig
from effnet_batch.errors import ConfigError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.card_video import NVDEC, CardVideos
from effnet_batch.media.faces import MODEL_SHA256
from effnet_batch.models.checkpoint_info import CheckpointInfo, Thresholds
from effnet_batch.models.checkpoints import Checkpoint, load_checkpoint
from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.forgery_registry import FORGERY_REGISTRY, PROTOCOLS
from effnet_batch.pipelines.resolution import (
    Resolution,
    check_gpu_decode,
    choose_engine,
    fit_engine,
    library_versions,
)
from effnet_batch.pipelines.run import storage_options
from effnet_batch.pipelines.views import (
    DETECTOR,
    check_view,
    faces_with,
    frame_fingerprint,
    make_view,
    sampling_with,
)
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedCheckpoint:
    """One checkpoint and how it is run here."""

    source: str
    """Where it was loaded from, without secrets."""
    sha256: str
    """Of its file."""
    fingerprint_fields: dict[str, Any]
    """`Checkpoint.fingerprint_fields` with the user's settings laid over."""
    info: CheckpointInfo
    """With the user's settings laid over: ``faces`` holds the fields of `FaceSettings`."""
    notes: tuple[str, ...]
    """What of the publisher's way is not reproduced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedScoring(Resolution):
    """What a run really uses. Plain values; stored in run.json and taken up by a resumed run."""

    checkpoints: tuple[ResolvedCheckpoint, ...]
    thresholds: Thresholds
    max_frames: int
    min_frames: int
    segment_seconds: float | None
    distortion: str | None = None
    """What frames suffer before anything else looks at them; as `parse_distortion` takes it."""
    frames_dtype: str | None = None
    """Number format of the frame embeddings that are stored; None stores none."""

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the numbers."""
        return Fingerprint(self._numbers())

    def _numbers(self) -> dict[str, Any]:
        wants_faces = any(view.faces for view in map(self.view, self.checkpoints))
        return {
            "job": "score",
            "checkpoints": [one.fingerprint_fields for one in self.checkpoints],
            "thresholds": dataclasses.asdict(self.thresholds),
            "max_frames": self.max_frames,
            "min_frames": self.min_frames,
            "segment_seconds": self.segment_seconds,
            "face_model_sha256": MODEL_SHA256 if wants_faces else None,
            "engine": self.engine.name,
            "precision": self.engine.precision,
            **({"decoder": NVDEC} if self.gpu_decode else {}),
            **({"embeddings": self.frames_dtype} if self.frames_dtype else {}),
            **({"distortion": self.distortion} if self.distortion else {}),
        }

    @property
    def frames(self) -> dict[str, dict[str, Any]]:
        """What stored frame embeddings depend on, by digest."""
        if self.frames_dtype is None:
            return {}
        found = [self.frame_fingerprint(one, self.frames_dtype) for one in self.checkpoints]
        return {fingerprint.digest: fingerprint.to_dict() for fingerprint in found}

    def frame_fingerprint(self, checkpoint: ResolvedCheckpoint, dtype: str) -> Fingerprint:
        """Returns what embeddings of a checkpoint's encoder depend on, stored as ``dtype``."""
        return frame_fingerprint(
            checkpoint.fingerprint_fields["encoder_sha256"],
            checkpoint.info.preprocessing,
            self.view(checkpoint),
            self.engine,
            dtype,
            gpu_decode=self.gpu_decode,
        )

    @property
    def model_names(self) -> str:
        """Names of the checkpoints."""
        return ", ".join(one.info.name for one in self.checkpoints)

    def view(self, checkpoint: ResolvedCheckpoint) -> View:
        """Returns what a checkpoint is shown of a video."""
        return make_view(
            checkpoint.info.sampling,
            checkpoint.info.faces,
            max_frames=self.max_frames,
            segment_seconds=self.segment_seconds,
            distortion=self.distortion,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuilds what `to_dict` returned."""
        checkpoints = tuple(
            ResolvedCheckpoint(
                **{
                    **one,
                    "info": CheckpointInfo.from_dict(one["info"], "run.json"),
                    "notes": tuple(one["notes"]),
                }
            )
            for one in values["checkpoints"]
        )
        return cls(
            **{
                **values,
                "checkpoints": checkpoints,
                "thresholds": Thresholds(**values["thresholds"]),
                "engine": EngineChoice(**values["engine"]),
            }
        )


def load_checkpoints(config: ScoreConfig | RescoreConfig) -> list[Checkpoint]:
    """Loads the checkpoints of the settings; those behind a URL come as other objects do.

    Raises:
        ConfigError: none is named, or one cannot be had or is none.
    """
    specs = config.checkpoint.checkpoint
    if not specs:
        raise ConfigError(
            "no checkpoint is named; give --checkpoint, which `effnet-batch checkpoints` explains"
        )
    storage = Storage(storage_options(config))
    return [load_checkpoint(spec, storage=storage) for spec in specs]


def resolve_scoring(config: ScoreConfig) -> ResolvedScoring:
    """Resolves every ``auto`` for the machine that it runs on.

    Raises:
        ConfigError: the settings contradict each other, or this machine cannot run them.
    """
    choice = choose_engine(config.engine)
    loaded = load_checkpoints(config)
    try:
        models = [(each.model.encoder, each.info.preprocessing) for each in loaded]
        choice = fit_engine(choice, models, config)
        if config.decoding.gpu_decode:
            check_gpu_decode(choice)
            CardVideos(preprocessing for _, preprocessing in models)
        checkpoints = resolve_checkpoints(loaded, config)
        resolved = ResolvedScoring(
            checkpoints=checkpoints,
            thresholds=resolve_thresholds(checkpoints, config),
            max_frames=config.sampling.max_frames,
            min_frames=config.sampling.min_frames,
            segment_seconds=config.sampling.segment_seconds,
            distortion=config.distortion.distortion,
            frames_dtype=config.output.dtype if config.output.embeddings else None,
            engine=choice,
            gpu_decode=config.decoding.gpu_decode,
            versions=library_versions(),
        )
        for view in map(resolved.view, resolved.checkpoints):
            check_view(view, config.faces)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return resolved


def resolve_checkpoints(
    loaded: Sequence[Checkpoint], config: ScoreConfig
) -> tuple[ResolvedCheckpoint, ...]:
    """Returns how checkpoints are run, with the user's settings over their own.

    Raises:
        ConfigError: settings that do not go with a checkpoint.
        ValueError: a value out of range.
    """
    infos = [_laid_over(one.info, config) for one in loaded]
    return tuple(
        ResolvedCheckpoint(
            source=one.source,
            sha256=one.sha256,
            fingerprint_fields=dataclasses.replace(one, info=info).fingerprint_fields(),
            info=info,
            notes=_notes(one, info),
        )
        for one, info in zip(loaded, infos, strict=True)
    )


def _laid_over(info: CheckpointInfo, config: ScoreConfig) -> CheckpointInfo:
    """Returns a checkpoint's description with the user's settings in place of its own."""
    aggregation = config.aggregation
    given = {
        "steps": aggregation.step_aggregation,
        "clips": aggregation.clip_aggregation,
        "tracks": aggregation.track_aggregation,
        "top_k": aggregation.top_k,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    longest = aggregation.max_clip_frames
    sampling = info.sampling if longest is None else {**info.sampling, "max_clip_frames": longest}
    return dataclasses.replace(
        info,
        sampling=sampling_with(sampling, config.sampling),
        faces=faces_with(info.faces, config.faces, info.name),
        aggregation=dataclasses.replace(info.aggregation, **changes),
    )


def resolve_thresholds(
    checkpoints: Sequence[ResolvedCheckpoint], config: ScoreConfig
) -> Thresholds:
    """Returns the user's thresholds, else the checkpoints' if they agree.

    Raises:
        ConfigError: they do not.
        ValueError: a value out of range.
    """
    given = config.thresholds
    wanted = {"fake": given.fake_threshold, "no_forgery_found": given.no_forgery_threshold}
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    results = {dataclasses.replace(one.info.thresholds, **changes) for one in checkpoints}
    if len(results) > 1:
        raise ConfigError(
            "the checkpoints have different thresholds; give --fake-threshold and "
            "--no-forgery-threshold"
        )
    return results.pop()


def _notes(checkpoint: Checkpoint, info: CheckpointInfo) -> tuple[str, ...]:
    """Returns what of a publisher's way is not reproduced."""
    own = checkpoint.info.faces
    if checkpoint.layout not in PROTOCOLS:
        return ()
    entry = FORGERY_REGISTRY.get(checkpoint.info.name)
    notes = (entry.protocol if entry else PROTOCOLS[checkpoint.layout]).notes
    if info.faces["detector"] == DETECTOR:
        notes += (f"faces are found by YuNet, the publisher's way is {own['detector']}",)
    return notes
