import itertools

import pytest
from hypothesis import given, strategies as st

from effnet_batch.media.tracks import Box, TrackLinker, interpolate, intersection_over_union
from effnet_batch.models.forgery_registry import PROTOCOLS


def box(left: float, top: float, size: float = 10, score: float = 0.9) -> Box:
    return Box(left=left, top=top, right=left + size, bottom=top + size, score=score)


boxes = st.builds(box, st.integers(0, 60), st.integers(0, 60), st.integers(1, 30))


def link_all(
    frames: list[list[Box]], *, min_iou: float = 0.3, max_gap: int = 2
) -> dict[int, list[tuple[int, Box]]]:
    linker = TrackLinker(min_iou=min_iou, max_gap=max_gap)
    tracks: dict[int, list[tuple[int, Box]]] = {}
    for step, found in enumerate(frames):
        for track, each in zip(linker.link(found), found, strict=True):
            tracks.setdefault(track, []).append((step, each))
    return tracks


@given(boxes, boxes)
def test_intersection_over_union_counts_pixels(one: Box, other: Box) -> None:
    def cells(each: Box) -> set[tuple[int, int]]:
        return set(
            itertools.product(
                range(int(each.left), int(each.right)), range(int(each.top), int(each.bottom))
            )
        )

    expected = len(cells(one) & cells(other)) / len(cells(one) | cells(other))
    assert intersection_over_union(one, other) == pytest.approx(expected)


@given(
    st.lists(st.lists(boxes, max_size=4), max_size=12),
    st.floats(0.05, 0.9),
    st.integers(1, 4),
)
def test_what_every_track_is(frames: list[list[Box]], min_iou: float, max_gap: int) -> None:
    tracks = link_all(frames, min_iou=min_iou, max_gap=max_gap)
    assert sorted(tracks) == list(range(len(tracks)))
    assert sum(map(len, tracks.values())) == sum(map(len, frames))
    for seen in tracks.values():
        for (step, last), (next_step, following) in itertools.pairwise(seen):
            assert 1 <= next_step - step <= max_gap
            assert intersection_over_union(last, following) >= min_iou
    starts = [tracks[track][0][0] for track in sorted(tracks)]
    assert starts == sorted(starts)
    assert link_all(frames, min_iou=min_iou, max_gap=max_gap) == tracks


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.randoms())
def test_two_people_are_two_tracks_in_whatever_order(steps: list[int], random: object) -> None:
    frames = []
    position = 100
    for step in steps:
        position += step
        pair = [box(position, 50, 30), box(300 - position / 4, 50, 30)]
        random.shuffle(pair)  # type: ignore[attr-defined]
        frames.append(pair)
    tracks = link_all(frames)
    assert len(tracks) == 2
    for seen in tracks.values():
        assert [step for step, _ in seen] == list(range(len(frames)))
        assert len({each.left < 200 for _, each in seen}) == 1


def test_a_gap_is_bridged_up_to_the_limit() -> None:
    face = [box(0, 0)]
    assert len(link_all([face, [], face], max_gap=2)) == 1
    assert len(link_all([face, [], face], max_gap=1)) == 2
    assert len(link_all([face, [], [], face], max_gap=2)) == 2


def test_the_best_overlap_wins() -> None:
    linker = TrackLinker(min_iou=0.1, max_gap=1)
    assert linker.link([box(0, 0), box(6, 0)]) == [0, 1]
    # The first overlaps both, and the second track more.
    assert linker.link([box(5, 0), box(1, 0)]) == [1, 0]


def test_interpolation_moves_every_side() -> None:
    middle = interpolate(box(0, 0, 10, 0.5), box(10, 20, 30, 0.9), 0.25)
    assert middle == Box(left=2.5, top=5, right=17.5, bottom=20, score=0.6)


@pytest.mark.parametrize("layout", [name for name in PROTOCOLS if name.startswith("thesis_")])
def test_a_moving_head_stays_one_sequence_where_the_publisher_has_one(layout: str) -> None:
    linking = {name: PROTOCOLS[layout].faces[name] for name in ("min_iou", "max_gap")}
    num_frames = PROTOCOLS[layout].sampling["num_frames"]
    # Three fifths of its side from one sampled frame to the next, and once out of sight.
    frames = [[box(6 * step, 0)] for step in range(num_frames)]
    assert len(link_all(frames, **linking)) == 1
    assert len(link_all(frames)) == num_frames
    away = [frames[0], *([] for _ in range(num_frames - 2)), frames[1]]
    assert len(link_all(away, **linking)) == 1
