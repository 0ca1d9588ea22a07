"""Metrics of a binary detector, from scores and labels; every one takes weights.

Scores are sorted once; then each set of weights costs a few passes over the arrays, which is what
makes a thousand bootstrap resamples affordable. Values are those of scikit-learn where it has them.
"""

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

RECALLS: Final = (0.1, 0.5, 0.9)
"""Recalls at which log-weighted precision is reported."""
FALSE_POSITIVE_WEIGHT: Final = 100.0
"""How many real videos stand behind one of the data set, in the DFDC's weighted precision."""
FALSE_POSITIVE_RATES: Final = (0.01, 0.001)
"""False positive rates at which the true positive rate is reported."""
NUM_BINS: Final = 15
"""Equally wide bins of the expected calibration error."""
_SMALLEST_PROBABILITY: Final = float(np.finfo(np.float32).eps)
"""Scores are stored as float32: what rounds to 0 or 1 there is no certainty."""

Floats = npt.NDArray[np.float64]

METRICS: Final = (
    "auc",
    "eer",
    "average_precision",
    "log_loss",
    "accuracy",
    "balanced_accuracy",
    *(f"tpr_at_fpr_{rate:g}" for rate in FALSE_POSITIVE_RATES),
    *(f"log_weighted_precision_at_recall_{recall:g}" for recall in RECALLS),
    "expected_calibration_error",
)
"""Names of all metrics, in the order of reports."""


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The operating points of a detector; one per distinct score, from the highest down."""

    thresholds: Floats
    """[T], falling: a video counts as fake at this score and above."""
    true_positives: Floats
    """[T], weight of the fakes found."""
    false_positives: Floats
    """[T], weight of the reals called fake."""

    @property
    def recall(self) -> Floats:
        """[T], true positive rate; NaN without fakes."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.true_positives / self.true_positives[-1])

    @property
    def false_positive_rate(self) -> Floats:
        """[T]; NaN without reals."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.false_positives / self.false_positives[-1])

    @property
    def precision(self) -> Floats:
        """[T]; NaN where nothing is called fake."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.true_positives / (self.true_positives + self.false_positives))


class Detections:
    """Labelled scores, ready to be measured under any weights.

    Args:
        labels: [N], 1 for fake and 0 for real.
        scores: [N], P(fake) in 0..1.

    Raises:
        ValueError: nothing is given, a label is neither 0 nor 1, or a score lies outside 0..1.
    """

    def __init__(self, labels: npt.ArrayLike, scores: npt.ArrayLike) -> None:
        self.labels = np.asarray(labels, np.float64)
        self.scores = np.asarray(scores, np.float64)
        if self.labels.shape != self.scores.shape or self.labels.ndim != 1 or not self.labels.size:
            raise ValueError(
                f"labels and scores must be equally long and not empty, got {self.labels.shape} "
                f"and {self.scores.shape}"
            )
        if not np.isin(self.labels, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError("scores must lie in 0..1")
        self._order = np.argsort(-self.scores, kind="stable")
        falling = self.scores[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
        self._thresholds = falling[self._ends]
        sure = np.clip(self.scores, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        self._losses = -np.log(np.where(self.labels == 1, sure, 1 - sure))
        self._bins = np.minimum((self.scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)

    def curve(self, weights: Floats | None = None) -> Curve:
        """Returns the operating points.

        Args:
            weights: [N], none negative; None counts each once.
        """
        weights = np.ones(len(self.labels)) if weights is None else weights
        fakes = np.cumsum((weights * self.labels)[self._order])
        everything = np.cumsum(weights[self._order])
        found = fakes[self._ends]
        return Curve(self._thresholds, found, everything[self._ends] - found)

    def reliability(self, weights: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Returns weight, mean score and share of fakes of each of `NUM_BINS` bins.

        Means are NaN in an empty bin.
        """
        weights = np.ones(len(self.labels)) if weights is None else weights
        filled, score, fakes = (
            np.bincount(self._bins, weights * values, minlength=NUM_BINS).astype(np.float64)
            for values in (np.ones(len(self.labels)), self.scores, self.labels)
        )
        with np.errstate(invalid="ignore"):
            return filled, score / filled, fakes / filled

    def measure(
        self, weights: Floats | None = None, *, threshold: float = 0.5
    ) -> dict[str, float | None]:
        """Returns every metric by its name in `METRICS`.

        None where it is not defined: all but log loss, accuracy and calibration error need both
        classes.

        Args:
            weights: [N], none negative; None counts each once.
            threshold: score from which a video counts as fake, for the accuracies.
        """
        weights = np.ones(len(self.labels)) if weights is None else weights
        total = weights.sum()
        curve = self.curve(weights)
        is_right = (self.scores >= threshold) == (self.labels == 1)
        filled, confidence, fakes = self.reliability(weights)
        has_some = filled > 0
        found: dict[str, float | None] = dict.fromkeys(METRICS)
        found["log_loss"] = float((weights * self._losses).sum() / total)
        found["accuracy"] = float((weights * is_right).sum() / total)
        found["expected_calibration_error"] = float(
            (filled * np.abs(confidence - fakes))[has_some].sum() / total
        )
        if not (curve.true_positives[-1] > 0 and curve.false_positives[-1] > 0):
            return found
        recall, fall_out = curve.recall, curve.false_positive_rate
        hits = [(weights * is_right * (self.labels == each)).sum() for each in (1, 0)]
        found["balanced_accuracy"] = float(
            (hits[0] / curve.true_positives[-1] + hits[1] / curve.false_positives[-1]) / 2
        )
        found["auc"] = float(np.trapezoid(np.append(0, recall), np.append(0, fall_out)))
        found["eer"] = equal_error_rate(curve)
        gained = np.diff(np.append(0, recall))
        has_gained = gained > 0
        found["average_precision"] = float((gained * curve.precision)[has_gained].sum())
        for rate in FALSE_POSITIVE_RATES:
            found[f"tpr_at_fpr_{rate:g}"] = float(recall[fall_out <= rate].max(initial=0.0))
        for wanted in RECALLS:
            # 1 - 1e-12: the sum of weights that should be a tenth may fall short by rounding.
            at = int(np.argmax(recall >= wanted * (1 - 1e-12)))
            hit, wrong = curve.true_positives[at], curve.false_positives[at]
            found[f"log_weighted_precision_at_recall_{wanted:g}"] = float(
                np.log(hit / (hit + FALSE_POSITIVE_WEIGHT * wrong))
            )
        return found


def equal_error_rate(curve: Curve) -> float:
    """Returns the rate at which as many fakes are missed as reals are called fake.

    Between two operating points both rates are taken as straight lines.
    """
    fall_out = np.append(0, curve.false_positive_rate)
    missed = np.append(1, 1 - curve.recall)
    after = int(np.argmax(fall_out >= missed))
    rise = fall_out[after] - fall_out[after - 1]
    fall = missed[after - 1] - missed[after]
    step = (missed[after - 1] - fall_out[after - 1]) / (rise + fall)
    return float(fall_out[after - 1] + step * rise)


def threshold_at_fpr(detections: Detections, rate: float) -> float:
    """Returns the lowest threshold at which at most ``rate`` of the reals count as fake.

    Just above the highest score of a real that must not pass, so that equal scores do not either.

    Raises:
        ValueError: there is no real, or no threshold in 0..1 is high enough.
    """
    curve = detections.curve()
    if not curve.false_positives[-1] > 0:
        raise ValueError("a false positive rate needs real videos")
    fits = np.flatnonzero(curve.false_positive_rate <= rate)
    if fits.size:
        return float(curve.thresholds[fits[-1]])
    highest = np.nextafter(np.float32(curve.thresholds[0]), np.float32(2))
    if highest > 1:
        raise ValueError(f"at least {curve.false_positive_rate[0]:.2%} of the reals score 1.0")
    return float(highest)
