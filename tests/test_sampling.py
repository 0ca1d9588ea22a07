import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from effnet_batch.media.sampling import (
    Clips,
    EveryNth,
    Fps,
    Sampling,
    Uniform,
    find_clips,
    sample,
    split_segments,
)

SAMPLINGS: st.SearchStrategy[Sampling] = st.one_of(
    st.builds(EveryNth, ratio=st.integers(1, 50)),
    st.builds(Uniform, num_frames=st.integers(1, 50)),
    st.builds(
        Clips,
        num_clips=st.integers(1, 6),
        num_frames=st.integers(1, 10),
        stride=st.integers(1, 5),
    ),
    st.builds(Fps, fps=st.floats(0.1, 100)),
)


@st.composite
def timelines(draw: st.DrawFn) -> np.ndarray:
    """Rising times with steps from a millisecond to a century: what damaged files hold."""
    steps = draw(st.lists(st.one_of(st.floats(1e-3, 1), st.just(3e9)), max_size=200))
    return np.cumsum([draw(st.floats(-100, 100)), *steps])[: len(steps)]


@given(timelines(), SAMPLINGS, st.integers(10, 60), st.integers(0, 9))
def test_clips_are_found_again_from_the_frames(
    times: np.ndarray, sampling: Sampling, max_frames: int, offset: int
) -> None:
    taken = sample(times, sampling, max_frames=max_frames)
    clips = find_clips(taken.indices + offset, sampling, max_frames=max_frames)
    expected = taken.clips or (taken.indices,)
    assert [clip.tolist() for clip in clips] == [clip.tolist() for clip in expected]


@given(timelines(), SAMPLINGS, st.integers(10, 60), st.one_of(st.none(), st.integers(1, 12)))
def test_what_every_sample_is(
    times: np.ndarray, sampling: Sampling, max_frames: int, max_clip_frames: int | None
) -> None:
    taken = sample(times, sampling, max_frames=max_frames, max_clip_frames=max_clip_frames)
    indices = taken.indices
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    assert len(indices) <= max_frames
    assert (len(indices) > 0) == (len(times) > 0)
    assert all(0 <= index < len(times) for index in indices)
    # Clips hold every frame, are no longer than asked, and point into the taken frames.
    assert all(0 < len(clip) <= (max_clip_frames or max_frames) for clip in taken.clips)
    assert {int(i) for clip in taken.clips for i in clip} == set(range(len(indices)))
    assert all((np.diff(clip) > 0).all() for clip in taken.clips)
    again = sample(times, sampling, max_frames=max_frames, max_clip_frames=max_clip_frames)
    np.testing.assert_array_equal(again.indices, indices)


def at(fps: float, num_frames: int) -> np.ndarray:
    return np.arange(num_frames) / fps


def test_every_5th_frame_as_the_paper() -> None:
    np.testing.assert_array_equal(sample(at(30, 23), EveryNth()).indices, [0, 5, 10, 15, 20])


@given(st.integers(1, 400), st.integers(1, 60))
def test_uniform_is_linspace(num_frames: int, num_taken: int) -> None:
    taken = sample(at(25, num_frames), Uniform(num_frames=num_taken)).indices
    expected = [math.floor(i * num_frames / num_taken) for i in range(num_taken)]
    if num_taken > num_frames:
        expected = list(range(num_frames))
    assert taken.tolist() == expected
    linspace = np.unique(np.linspace(0, num_frames, num_taken, endpoint=False).astype(int))
    # linspace itself may fall below a whole number by a rounding error.
    assert np.abs(linspace - taken).max() <= 1


def test_fps_takes_what_is_on_screen() -> None:
    np.testing.assert_array_equal(sample(at(25, 26), Fps(fps=5)).indices, [0, 5, 10, 15, 20, 25])
    # A still of two seconds is on screen at several ticks and taken once.
    times = np.array([0.0, 0.1, 0.2, 2.2, 2.3])
    np.testing.assert_array_equal(sample(times, Fps(fps=2)).indices, [0, 2])
    np.testing.assert_array_equal(sample(times, Fps(fps=10)).indices, [0, 1, 2, 3, 4])


@given(timelines(), st.floats(0.1, 100))
def test_fps_agrees_with_listing_the_ticks(times: np.ndarray, fps: float) -> None:
    if len(times) < 2 or times[-1] - times[0] > 100:
        return
    end = 2 * times[-1] - times[-2]
    ticks = times[0] + np.arange(math.ceil((end - times[0]) * fps) + 1) / fps
    # Ticks within the tolerance of a frame's start belong to either neighbour.
    if np.abs(ticks[:, None] - np.append(times, end)).min(axis=0)[1:].min() < 1e-5:
        return
    ticks = ticks[ticks < end]
    expected = np.unique(np.searchsorted(times, ticks, side="right") - 1)
    np.testing.assert_array_equal(sample(times, Fps(fps=fps)).indices, expected)


def test_clips_span_the_video() -> None:
    taken = sample(at(30, 100), Clips(num_clips=3, num_frames=4, stride=2))
    frames = [taken.indices[clip].tolist() for clip in taken.clips]
    assert frames == [[0, 2, 4, 6], [46, 48, 50, 52], [93, 95, 97, 99]]


def test_clips_of_a_short_video_overlap_or_shrink() -> None:
    overlapping = sample(at(30, 6), Clips(num_clips=2, num_frames=4))
    assert [overlapping.indices[clip].tolist() for clip in overlapping.clips] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
    ]
    short = sample(at(30, 3), Clips(num_clips=2, num_frames=4))
    assert [short.indices[clip].tolist() for clip in short.clips] == [[0, 1, 2]]


def test_over_the_cap_the_spacing_stays_regular() -> None:
    taken = sample(at(30, 1000), EveryNth(ratio=5), max_frames=60).indices
    assert set(np.diff(taken)) == {20}
    assert len(taken) == 50


def test_clips_are_cut_for_the_sequence_model() -> None:
    taken = sample(at(30, 50), EveryNth(ratio=5), max_clip_frames=4)
    assert [clip.tolist() for clip in taken.clips] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@given(timelines(), st.floats(0.5, 1e4))
def test_segments_cover_every_frame_once(times: np.ndarray, segment_seconds: float) -> None:
    segments = split_segments(times, segment_seconds)
    assert [index for segment in segments for index in segment] == list(range(len(times)))
    for segment in segments:
        assert len(segment) > 0
        span = times[segment[-1]] - times[segment[0]]
        assert span <= segment_seconds * (1 + 1e-5)


def test_segments_of_a_minute() -> None:
    segments = split_segments(at(25, 25 * 150), 60)
    assert segments == (range(1500), range(1500, 3000), range(3000, 3750))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EveryNth(ratio=0),
        lambda: Uniform(num_frames=0),
        lambda: Clips(stride=0),
        lambda: Fps(fps=float("nan")),
        lambda: Fps(fps=-1),
        lambda: sample(at(1, 3), EveryNth(), max_frames=0),
        lambda: sample(at(1, 3), Clips(num_frames=20), max_frames=10),
        lambda: split_segments(at(1, 3), 0),
    ],
)
def test_wrong_arguments_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"positive|longer than"):
        make()  # type: ignore[operator]
