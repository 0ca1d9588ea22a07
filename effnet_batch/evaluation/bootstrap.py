"""Confidence intervals that know which videos belong together."""

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from effnet_batch.evaluation.metrics import METRICS, Detections

DEFAULT_RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric and how far it could lie elsewhere with other people in the videos."""

    value: float | None
    """None where it is not defined, as without one of the classes."""
    low: float | None = None
    """2.5th percentile of the resamples in which it is defined."""
    high: float | None = None
    """97.5th percentile."""


def estimate(
    detections: Detections,
    groups: npt.NDArray[np.int64],
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    threshold: float = 0.5,
) -> dict[str, Estimate]:
    """Returns every metric with its percentile bootstrap interval.

    Whole groups are drawn with replacement, since videos of one person are no independent
    evidence (a cluster bootstrap).

    Args:
        detections: N labelled scores.
        groups: [N], numbers 0..G-1.
        num_resamples: draws; 0 leaves the intervals out.
        seed: of the draws.
        threshold: as `Detections.measure`.
    """
    values = detections.measure(threshold=threshold)
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    generator = np.random.default_rng(seed)
    num_groups = int(groups.max()) + 1
    for _ in range(num_resamples):
        picks = np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
        weights = picks[groups].astype(np.float64)
        for name, value in detections.measure(weights, threshold=threshold).items():
            if value is not None:
                drawn[name].append(value)
    tails = (1 - CONFIDENCE) / 2
    found = {}
    for name, value in values.items():
        low = high = None
        if value is not None and drawn[name]:
            low, high = (float(x) for x in np.quantile(drawn[name], (tails, 1 - tails)))
        found[name] = Estimate(value, low, high)
    return found
