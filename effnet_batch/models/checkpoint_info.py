"""What a checkpoint knows beside its tensors, and what it makes of a logit."""

import dataclasses
from typing import Any, Final

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import AggregationConfig, score_of
from effnet_batch.models.plain_values import from_plain
from effnet_batch.models.sequence_config import SequenceConfig

LABELS: Final = {"fake": 1, "real": 0}
"""What a high score means in every checkpoint; another meaning in a file is refused."""

VERDICT_FAKE: Final = "fake"
VERDICT_NO_FORGERY_FOUND: Final = "no_forgery_found"
VERDICT_UNDECIDED: Final = "undecided"
VERDICTS: Final = (VERDICT_FAKE, VERDICT_NO_FORGERY_FOUND, VERDICT_UNDECIDED)
"""What a score can lead to. None of them is "real": not finding a forgery proves nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where scores become verdicts; between the two a video is undecided."""

    fake: float = 0.5
    """Lowest score of ``fake``, in 0..1."""
    no_forgery_found: float = 0.5
    """Scores below this one are ``no_forgery_found``; at most ``fake``."""

    def __post_init__(self) -> None:
        if not 0 <= self.no_forgery_found <= self.fake <= 1:
            raise ValueError(
                "thresholds must be 0 <= no_forgery_found <= fake <= 1, "
                f"got {self.no_forgery_found} and {self.fake}"
            )

    def verdict(self, score: float) -> str:
        """Returns one of `VERDICTS`."""
        if score >= self.fake:
            return VERDICT_FAKE
        return VERDICT_NO_FORGERY_FOUND if score < self.no_forgery_found else VERDICT_UNDECIDED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Makes scores agree with frequencies: sigmoid(scale * logit + offset) of a video's logit.

    Temperature scaling (Guo et al., 2017) has ``scale = 1 / T`` and no offset, Platt's has both.
    """

    scale: float
    """Positive, so that the order of videos stays."""
    offset: float = 0.0
    """Added to the scaled logit."""

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    @classmethod
    def from_temperature(cls, temperature: float) -> "Calibration":
        """Returns the calibration that divides logits by ``temperature``, which is positive."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        return cls(scale=1 / temperature)

    def apply(self, logit: float) -> float:
        """Returns the calibrated logit."""
        return self.scale * logit + self.offset


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Everything needed to run a checkpoint as it was trained, and what its logits mean."""

    name: str
    """Of the checkpoint, for people."""
    sequence: SequenceConfig
    """What the network is built of."""
    preprocessing: Preprocessing
    """From a face crop or whole frame to the network's input."""
    sampling: dict[str, Any]
    """``strategy`` (``every_nth``, ``uniform``, ``clips``, ``fps``) and its own parameters; also
    ``max_clip_frames``, the longest clip that the network sees at once, null for any length."""
    faces: dict[str, Any]
    """``detector`` (``none`` takes whole frames); ``margin``, the crop's sides as a multiple of the
    box's; ``is_square``, or false where crops keep the box's shape; ``border``; ``which`` of a
    frame's faces (``all``, ``largest``)."""
    aggregation: AggregationConfig
    """From time steps to the video."""
    thresholds: Thresholds = Thresholds()
    """From the calibrated score to the verdict."""
    calibration: Calibration | None = None
    """Of the video's logit, if it was ever fitted."""
    training_fingerprint: str | None = None
    """Of the run that trained it, if it was ours."""
    licence: str | None = None
    """SPDX identifier or a few words, where known."""

    def calibrated(self, logit: float) -> tuple[float, float, str]:
        """Returns a video's calibrated logit, its score in 0..1 and the verdict."""
        logit = logit if self.calibration is None else self.calibration.apply(logit)
        score = score_of(logit)
        return logit, score, self.thresholds.verdict(score)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; `from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str = "checkpoint") -> "CheckpointInfo":
        """Rebuilds what `to_dict` returned and JSON carried.

        Raises:
            WeightsError: a name is unknown or missing, or a value is out of range.
        """
        return from_plain(cls, values, where)
