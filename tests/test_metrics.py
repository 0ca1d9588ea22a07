"""Metrics, intervals and calibration, against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.calibration import _sigmoid_calibration
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from effnet_batch.evaluation.bootstrap import Estimate, estimate
from effnet_batch.evaluation.calibration import fit_calibration
from effnet_batch.evaluation.labels import parse_label
from effnet_batch.evaluation.metrics import METRICS, Detections, equal_error_rate, threshold_at_fpr


def draw(seed: int, size: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels, overlapping scores with many ties, and whole weights."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size)
    scores = np.clip(generator.normal(0.35 + 0.3 * labels, 0.25), 0, 1).round(2)
    return labels, scores, generator.integers(0, 4, size).astype(float)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_metrics_are_those_of_scikit_learn(seed: int, is_weighted: bool) -> None:
    labels, scores, weights = draw(seed)
    given_weights = weights if is_weighted else None
    found = Detections(labels, scores).measure(given_weights, threshold=0.4)
    called = scores >= 0.4
    sure = np.clip(scores, 2**-23, 1 - 2**-23)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores, sample_weight=given_weights))
    assert found["average_precision"] == pytest.approx(
        average_precision_score(labels, scores, sample_weight=given_weights)
    )
    assert found["log_loss"] == pytest.approx(log_loss(labels, sure, sample_weight=given_weights))
    assert found["accuracy"] == pytest.approx(
        accuracy_score(labels, called, sample_weight=given_weights)
    )
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, called, sample_weight=given_weights)
    )
    fpr, tpr, _ = roc_curve(labels, scores, sample_weight=given_weights, drop_intermediate=False)
    for rate in (0.01, 0.001):
        assert found[f"tpr_at_fpr_{rate:g}"] == pytest.approx(tpr[fpr <= rate].max())
    assert 0 < found["eer"] < 0.5
    # Where both error rates, as straight lines between the points of the curve, are equal.
    assert np.interp(found["eer"], fpr, 1 - tpr) == pytest.approx(found["eer"], abs=1e-9)


def test_weights_count_as_copies() -> None:
    labels, scores, weights = draw(7, 200)
    copies = np.repeat(np.arange(200), weights.astype(int))
    assert Detections(labels, scores).measure(weights) == pytest.approx(
        Detections(labels[copies], scores[copies]).measure()
    )


def test_figures_by_hand() -> None:
    found = Detections([1, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.1]).measure()
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["log_weighted_precision_at_recall_0.1"] == 0.0
    assert found["log_weighted_precision_at_recall_0.5"] == 0.0
    assert found["log_weighted_precision_at_recall_0.9"] == pytest.approx(math.log(3 / (3 + 100)))
    assert found["tpr_at_fpr_0.01"] == pytest.approx(2 / 3)
    # One score a bin: |0.9-1|, |0.8-1|, |0.7-0|, |0.6-1|, |0.1-0|.
    assert found["expected_calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.1) / 5)
    assert found["eer"] == pytest.approx(1 / 3)
    assert list(found) == list(METRICS)


def test_certain_scores_cost_what_float32_can_say() -> None:
    found = Detections([1, 0], [0.0, 1.0]).measure()
    assert found["log_loss"] == pytest.approx(-math.log(2**-23))
    assert (found["auc"], found["eer"]) == (0.0, 1.0)


def test_one_class_has_no_ranking() -> None:
    found = Detections([1, 1], [0.9, 0.2]).measure()
    defined = {name for name, value in found.items() if value is not None}
    assert defined == {"log_loss", "accuracy", "expected_calibration_error"}
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "not empty"),
        ([1], [0.1, 0.2], "equally long"),
        ([2], [0.1], "0 or 1"),
        ([1], [1.5], "in 0..1"),
        ([1], [math.nan], "in 0..1"),
    ],
)
def test_wrong_input_is_refused(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detections(labels, scores)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_a_threshold_keeps_its_false_positive_rate(seed: int, rate: float) -> None:
    labels, scores, _ = draw(seed, 60)
    labels[:2] = 0, 1
    scores = np.minimum(scores, 0.99)
    threshold = threshold_at_fpr(Detections(labels, scores), rate)
    reals = scores[labels == 0]
    assert (reals >= threshold).mean() <= rate
    below = scores[scores < threshold]
    if below.size:  # it is the lowest such threshold
        assert (reals >= below.max()).mean() > rate


def test_a_threshold_needs_reals_below_certainty() -> None:
    with pytest.raises(ValueError, match="needs real"):
        threshold_at_fpr(Detections([1], [0.5]), 0.1)
    with pytest.raises(ValueError, match=r"50\.00% of the reals score 1"):
        threshold_at_fpr(Detections([1, 0, 0], [0.5, 1.0, 0.2]), 0.1)


def test_intervals_draw_whole_groups() -> None:
    labels, scores, _ = draw(3, 400)
    alone = estimate(Detections(labels, scores), np.arange(400), num_resamples=300)
    auc = alone["auc"]
    assert auc.value is not None
    assert auc.low is not None
    assert auc.high is not None
    assert auc.low < auc.value < auc.high
    # Ten copies of each video in one group say no more than the video itself.
    copies = np.repeat(np.arange(400), 10)
    grouped = estimate(Detections(labels[copies], scores[copies]), copies, num_resamples=300)
    assert grouped["auc"].value == pytest.approx(auc.value)
    assert grouped["auc"].low == pytest.approx(auc.low)
    # Taken for independent, they would seem to.
    wrong = estimate(Detections(labels[copies], scores[copies]), np.arange(4000), num_resamples=100)
    assert wrong["auc"].high is not None
    assert wrong["auc"].low is not None
    assert wrong["auc"].high - wrong["auc"].low < (auc.high - auc.low) / 2


def test_intervals_repeat_and_can_be_left_out() -> None:
    labels, scores, _ = draw(3, 50)
    first, again = (
        estimate(Detections(labels, scores), np.arange(50), num_resamples=20) for _ in "ab"
    )
    assert first == again
    bare = estimate(Detections(labels, scores), np.arange(50), num_resamples=0)
    assert bare["auc"] == Estimate(first["auc"].value)


def test_an_interval_needs_the_class() -> None:
    found = estimate(Detections([1, 1], [0.9, 0.1]), np.arange(2), num_resamples=10)
    assert found["auc"] == Estimate(None)


@pytest.mark.parametrize("seed", range(3))
def test_platt_scaling_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 300)
    logits = generator.normal(4 * labels - 1, 3)
    scale, offset = fit_calibration(logits, labels, "platt")
    minus_scale, minus_offset = _sigmoid_calibration(logits, labels)
    assert scale == pytest.approx(-minus_scale, rel=1e-4)
    assert offset == pytest.approx(-minus_offset, rel=1e-3, abs=1e-3)


def test_temperature_undoes_overconfidence() -> None:
    generator = np.random.default_rng(0)
    true_logits = generator.normal(0, 2, 20_000)
    labels = generator.random(20_000) < 1 / (1 + np.exp(-true_logits))
    scale, offset = fit_calibration(5 * true_logits, labels, "temperature")
    assert scale == pytest.approx(1 / 5, rel=0.03)
    assert offset == 0.0


def test_separated_classes_give_a_finite_calibration() -> None:
    scale, offset = fit_calibration([-30, -20, 20, 30], [0, 0, 1, 1], "platt")
    assert 0 < scale < 1
    assert offset == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "method", "message"),
    [
        ([1, 1], "platt", "both classes, got 2 fake and 0 real"),
        ([1, 0], "temperature", "do not go with fakes"),
        ([0, 1], "isotonic", "temperature, platt"),
    ],
)
def test_calibration_that_cannot_be(labels: list[int], method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_calibration([-1.0, 1.0], labels, method)


@pytest.mark.parametrize(
    ("text", "label"),
    [("FAKE", 1), (" real ", 0), ("1", 1), ("0.0", 0), ("", None), (None, None), ("original", 0)],
)
def test_labels_as_people_write_them(text: str | None, label: int | None) -> None:
    assert parse_label(text) == label


def test_other_labels_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="'synthetic'"):
        parse_label("synthetic")


def test_perfect_scores_have_no_equal_error() -> None:
    assert equal_error_rate(Detections([1, 0], [0.9, 0.1]).curve()) == 0.0
