"""Settings of measuring scores."""

import dataclasses

from effnet_batch.config.base import JobConfig, setting
from effnet_batch.config.groups import StorageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What the scores are measured against, and how."""

    labels: str | None = setting(
        None, "Manifest or list with uri and label; default: the scored one's."
    )
    split: str | None = setting(None, "Measure only videos of this split.")
    by: tuple[str, ...] = setting((), "Also by the values of this column, such as method.")
    impute: float | None = setting(
        None, "Score of videos without one; the DFDC takes 0.5.", minimum=0, maximum=1
    )
    threshold: float | None = setting(
        None, "Of the accuracies; default: the checkpoint's.", minimum=0, maximum=1
    )
    resamples: int = setting(1000, "Of the intervals; 0 leaves them out.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(JobConfig):
    """Configuration of measuring scores."""

    evaluation: EvaluationSettings = dataclasses.field(default_factory=EvaluationSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
