"""What the rescoring job settles once: checkpoints, and which stored frames each may judge."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final, Self

from effnet_batch.config import (
    DistortionSettings,
    FaceDetectionSettings,
    RescoreConfig,
    SamplingSettings,
    ScoreConfig,
)
from effnet_batch.errors import ConfigError, FingerprintError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.sequence import CLIPS_PER_CALL
from effnet_batch.pipelines.resolution import library_versions
from effnet_batch.pipelines.score_resolve import (
    ResolvedScoring,
    load_checkpoints,
    resolve_checkpoints,
    resolve_thresholds,
)

_HEADS: Final = EngineChoice(
    engine="torch", device="cpu", precision="fp32", batch_size=CLIPS_PER_CALL
)
"""What runs the part of a checkpoint that judges embeddings."""

_FREE_FIELDS: Final = ("engine", "precision", "dtype", "decoder")
"""Of the frames' fingerprint: how they were computed and stored, which they keep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRescoring(ResolvedScoring):
    """What a run really uses; frames are stored with the settings that it has of them."""

    stored: tuple[str, ...]
    """Fingerprint of the frames that each checkpoint judges."""

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the numbers."""
        return Fingerprint({**self._numbers(), "job": "rescore", "frames": list(self.stored)})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuilds what `to_dict` returned."""
        return super().from_dict({**values, "stored": tuple(values["stored"])})


def score_config(config: RescoreConfig, stored: Mapping[str, Any]) -> ScoreConfig:
    """Returns the settings of a full run: what the user says, and how the frames were taken.

    Args:
        config: of this run.
        stored: flat settings of the run that stored the frames.
    """
    groups = (SamplingSettings, DistortionSettings, FaceDetectionSettings)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    taken = {name: stored[name] for name in names if stored.get(name) is not None}
    mine = config.to_flat()
    known = ScoreConfig.settings()
    return ScoreConfig.from_flat({**{k: v for k, v in mine.items() if k in known}, **taken})


def resolve_rescoring(
    config: RescoreConfig, *, root: str, settings: dict[str, Any], frames: dict[str, dict[str, Any]]
) -> ResolvedRescoring:
    """Finds the stored frames of every checkpoint.

    Args:
        config: of this run.
        root: the output that holds the frames.
        settings: flat settings of the run that stored them.
        frames: what they depend on, by fingerprint.

    Raises:
        ConfigError: the settings contradict each other.
        FingerprintError: a checkpoint would see other embeddings than those stored.
    """
    full = score_config(config, settings)
    loaded = load_checkpoints(full)
    try:
        checkpoints = resolve_checkpoints(loaded, full)
        resolved = ResolvedRescoring(
            checkpoints=checkpoints,
            thresholds=resolve_thresholds(checkpoints, full),
            max_frames=full.sampling.max_frames,
            min_frames=full.sampling.min_frames,
            segment_seconds=full.sampling.segment_seconds,
            distortion=full.distortion.distortion,
            engine=_HEADS,
            versions=library_versions(),
            stored=(),
        )
        wanted = [(one.info.name, resolved.frame_fingerprint(one, "")) for one in checkpoints]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = tuple(_find(name, fingerprint, frames, root) for name, fingerprint in wanted)
    return dataclasses.replace(resolved, stored=found)


def _find(name: str, fingerprint: Fingerprint, frames: dict[str, dict[str, Any]], root: str) -> str:
    """Returns the fingerprint of the stored frames that a checkpoint may judge."""
    mine = fingerprint.to_dict()
    differing = {
        digest: [
            f"  {key}: stored {fields.get(key)!r}, {name} wants {mine.get(key)!r}"
            for key in sorted(mine.keys() | fields.keys())
            if key not in _FREE_FIELDS and mine.get(key) != fields.get(key)
        ]
        for digest, fields in frames.items()
    }
    nearest = min(differing, key=lambda digest: len(differing[digest]))
    if differing[nearest]:
        raise FingerprintError(
            f"{root} holds no embeddings that {name} could judge:\n"
            + "\n".join(differing[nearest])
            + f"\nscore the videos themselves with {name}"
        )
    return nearest
