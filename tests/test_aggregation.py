"""Aggregations against values worked out by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, strategies as st

from effnet_batch.errors import ConfigError
from effnet_batch.models import aggregation
from effnet_batch.models.aggregation import (
    AGGREGATIONS,
    TRACK_AGGREGATIONS,
    AggregationConfig,
    TrackLogits,
    clip_logits,
    ensemble_logit,
    find_aggregation,
    score_of,
    track_logit,
    video_logit,
)


def logits_of(*scores: float) -> np.ndarray:
    return np.array([math.log(p / (1 - p)) for p in scores])


def track(
    *clips: tuple[float, ...], frames: list[int] | None = None, areas: list[float] | None = None
) -> TrackLogits:
    return TrackLogits(
        clips=tuple(logits_of(*clip) for clip in clips),
        frame_indices=None if frames is None else np.array(frames, np.int64),
        areas=None if areas is None else np.array(areas, np.float64),
    )


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("last", (0.1, 0.9, 0.3), 0.3),
        ("mean", (0.1, 0.9, 0.5), 0.5),
        ("mean", (0.25,), 0.25),
        ("max", (0.1, 0.9, 0.5), 0.9),
        # sigmoid((ln 9 + ln 1) / 2) = 3 / 4
        ("mean_logit", (0.9, 0.5), 0.75),
        # fewer than k: the mean of all
        ("top_k_mean", (0.2, 0.4), 0.3),
        # ten of eleven
        ("top_k_mean", (0.1, *[0.6] * 10), 0.6),
    ],
)
def test_by_hand(name: str, scores: tuple[float, ...], expected: float) -> None:
    assert score_of(AGGREGATIONS[name](logits_of(*scores))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 12 of 29: over 29 // 2.5 = 11 and over 11.
        ([0.9] * 12 + [0.5] * 17, 0.9),
        # 12 of 30 are not over 30 // 2.5 = 12: the mean of all, (10.8 + 9) / 30.
        ([0.9] * 12 + [0.5] * 18, 0.66),
        # 11 of 11 are not over 11: the mean of all.
        ([0.85] * 10 + [0.95], (8.5 + 0.95) / 11),
        # A score must be over 0.8, not at it.
        ([0.79] * 12 + [0.1], (12 * 0.79 + 0.1) / 13),
        # 19 of 20 under 0.2: over 0.9 n = 18, so the one in doubt does not count.
        ([0.1] * 19 + [0.7], 0.1),
        # 9 of 10 are not over 9.
        ([0.1] * 9 + [0.7], 0.16),
        ([0.1], 0.1),
    ],
)
def test_the_confident_strategy(scores: list[float], expected: float) -> None:
    assert score_of(aggregation.confident(logits_of(*scores))) == pytest.approx(expected, abs=1e-12)


def test_k_is_a_parameter() -> None:
    top2 = find_aggregation("top_k_mean", top_k=2)
    assert score_of(top2(logits_of(0.1, 0.8, 0.6, 0.2))) == pytest.approx(0.7)


def test_scores_at_the_ends_stay_finite_and_ordered() -> None:
    """float64's sigmoid is 1 from 37 on; the logit of a mean must not become infinite."""
    for name in AGGREGATIONS:
        for x in (-800.0, -40.0, 40.0, 800.0):
            assert AGGREGATIONS[name](np.full(5, x)) == pytest.approx(x, rel=1e-12)
    assert score_of(800.0) == 1.0
    assert score_of(-800.0) == 0.0
    assert aggregation.mean(np.array([40.0, 50.0])) < aggregation.mean(np.array([41.0, 50.0]))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40))
def test_a_mean_is_between_the_extremes_and_that_of_the_scores(values: list[float]) -> None:
    logits = np.array(values)
    scores = 1 / (1 + np.exp(-logits))
    assert score_of(aggregation.mean(logits)) == pytest.approx(scores.mean(), abs=1e-12)
    for name, aggregate in AGGREGATIONS.items():
        result = aggregate(logits)
        assert logits.min() - 1e-9 <= result <= logits.max() + 1e-9, name


# ---------------------------------------------------------------------- clips, tracks and the video


def test_the_paper_takes_each_clips_last_step() -> None:
    config = AggregationConfig(steps="last", clips="mean", tracks="max")
    person = track((0.9, 0.2), (0.1, 0.4, 0.6))
    other = track((0.3, 0.1))
    np.testing.assert_allclose(clip_logits(person, config), logits_of(0.2, 0.6))
    assert score_of(track_logit(person, config)) == pytest.approx(0.4)
    assert score_of(video_logit([other, person], config)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("steps", "tracks", "expected"),
    [
        ("mean", "max", 0.6),
        ("mean", "mean", 0.4),
        # (0.8 + 0.4 + 3 * 0.2) / 5: each frame counts once, whosever it is.
        ("mean", "pooled", 0.36),
        # Frame order 0, 1, 1, 2, 3; the last is that of frame 3.
        ("last", "pooled", 0.2),
        ("max", "pooled", 0.8),
    ],
)
def test_tracks_of_a_video(steps: str, tracks: str, expected: float) -> None:
    people = [track((0.8, 0.4), frames=[0, 1]), track((0.2, 0.2, 0.2), frames=[1, 2, 3])]
    config = AggregationConfig(steps=steps, tracks=tracks)
    assert score_of(video_logit(people, config)) == pytest.approx(expected, abs=1e-12)


def test_frame_max_leaves_small_faces_out() -> None:
    people = [
        track((0.2, 0.2, 0.1), frames=[0, 5, 9], areas=[100, 100, 40]),
        # Frame 0: half as large counts; frame 5: smaller does not; frame 9: alone the largest.
        track((0.6, 0.9, 0.3), frames=[0, 5, 9], areas=[50, 49, 90]),
    ]
    config = AggregationConfig(tracks="frame_max")
    assert score_of(video_logit(people, config)) == pytest.approx((0.6 + 0.2 + 0.3) / 3)


@pytest.mark.parametrize("tracks", TRACK_AGGREGATIONS)
def test_one_track_of_one_frame_is_its_own_score(tracks: str) -> None:
    person = track((0.7,), frames=[3], areas=[10.0])
    assert score_of(video_logit([person], AggregationConfig(tracks=tracks))) == pytest.approx(0.7)


def test_an_ensemble_is_the_mean_of_scores() -> None:
    logits = logits_of(0.2, 0.9, 0.4)
    assert score_of(ensemble_logit(logits.tolist())) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: AggregationConfig(steps="mode"), "steps must be one of last, mean"),
        (lambda: AggregationConfig(steps="pooled"), "steps must be one of"),
        (lambda: AggregationConfig(tracks="frame_maxx"), "did you mean frame_max"),
        (lambda: AggregationConfig(top_k=0), "top_k must be positive"),
        (lambda: video_logit([], AggregationConfig()), "without tracks has no logit"),
        (lambda: track(), "at least one clip"),
        (lambda: track((0.5,), ()), "at least one logit"),
        (lambda: TrackLogits(clips=(np.array([np.nan]),)), "must be finite"),
        (lambda: track((0.5, 0.5), frames=[1]), "frame_indices must have 2 values, got 1"),
        (
            lambda: video_logit([track((0.5,))], AggregationConfig(tracks="pooled")),
            "needs the frame_indices",
        ),
        (
            lambda: video_logit([track((0.5,), frames=[1])], AggregationConfig(tracks="frame_max")),
            "needs the areas",
        ),
    ],
)
def test_what_cannot_be_aggregated(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"one of last, mean, .*got 'mena'; did you mean mean"):
        find_aggregation("mena")
