"""Videos to verdicts without Ray: every number against plain PyTorch on the same frames."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_checkpoint import PREPROCESSING, plain_logits, sigmoid, tiny_checkpoint
from video_files import CLIPS, encode

from effnet_batch.errors import FetchError
from effnet_batch.media.faces import FaceSettings, crop_face
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import Clips, EveryNth, Sampling, Uniform
from effnet_batch.media.tracks import Box
from effnet_batch.media.video import VideoReader, open_video
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import Calibration, Thresholds
from effnet_batch.models.engine import build_engine
from effnet_batch.pipelines.reading import embedding_matrix
from effnet_batch.schema import videos_schema
from effnet_batch.stages import show as show_module
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.evidence import suspicious_span
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item, Source
from effnet_batch.stages.records import Stamp, record_columns
from effnet_batch.stages.score import Member, Scorer, score_item
from effnet_batch.stages.show import View
from effnet_batch.stages.video import VideoHere

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
SOURCE = Source(
    uri="/videos/one.mp4",
    source_id="0" * 32,
    kind="video",
    size_bytes=None,
    etag=None,
    label="fake",
    group=None,
    split=None,
    source_version="7",
    attempt=2,
    skip=frozenset(),
    fetch_uri=None,
)
NEAR = {"rtol": 0, "atol": 2e-4}
"""Engines fold batch normalisation, which moves these steep logits in the fifth digit."""


def member(seed: int = 0, *, sampling: Sampling, clip: int | None = 3, **changes: Any) -> Member:
    view_names = {field.name for field in dataclasses.fields(View)}
    view = {name: changes.pop(name) for name in list(changes) if name in view_names}
    model, info = tiny_checkpoint(seed, **changes)
    engine = build_engine(model.encoder, info.preprocessing, engine="torch", batch_size=4)
    shown = View(sampling=sampling, max_clip_frames=clip, **view)
    return Member(info=info, view=shown, model=model, encoder=OwnEncoder(engine))


@contextlib.contextmanager
def open_here(item: Item, face_model: bytes | None = None) -> Iterator[VideoHere]:
    assert item.data is not None
    with open_video(item.data) as reader:
        yield VideoHere(reader, face_model, StageClock())


def score(
    data: bytes, *members: Member, face_model: bytes | None = None, **settings: Any
) -> dict[str, Any]:
    scorer = Scorer(members=members, **{"thresholds": Thresholds(), **settings})
    item = Item(SOURCE, data=data, size_bytes=len(data), num_source_records=1)
    opener = functools.partial(open_here, face_model=face_model)
    table = score_item(item, opener, scorer, Stamp("run", "f" * 16), StageClock())
    assert table.schema == videos_schema()
    (row,) = table.to_pylist()
    return row


def test_stored_frames_are_what_the_members_saw() -> None:
    first, second = (
        dataclasses.replace(member(seed, sampling=Uniform(num_frames=4)), frames=f"frames-{seed}")
        for seed in (0, 1)
    )
    item = Item(SOURCE, data=CARPHONE, size_bytes=len(CARPHONE), num_source_records=1)
    frames = FrameSpool(record_columns(item, None, Stamp("run", "f")), float16=False)
    scorer = Scorer(members=[first, second], thresholds=Thresholds())
    score_item(item, open_here, scorer, Stamp("run", "f"), StageClock(), frames)
    table = pa.concat_tables(frames.tables())
    indices = [0, 30, 60, 90]
    assert table["frame_index"].to_pylist() == indices * 2
    pixels = frames_at(CARPHONE, indices, PREPROCESSING)
    for number, one in enumerate((first, second)):
        rows = table.slice(4 * number, 4)
        assert rows["fingerprint"].unique().to_pylist() == [f"frames-{number}"]
        np.testing.assert_array_equal(
            embedding_matrix(rows.combine_chunks()),
            one.encoder.encode(pixels, StageClock()).result(),
        )


def frames_at(data: bytes, indices: list[int], preprocessing: Preprocessing) -> np.ndarray:
    with open_video(data) as reader:
        return np.stack([frame.pixels for frame in reader.read(indices, preprocessing)])


def mean_score_logit(logits: Any) -> float:
    share = sigmoid(logits).mean()
    return float(np.log(share / (1 - share)))


def test_whole_frames_are_judged_as_plain_pytorch_does() -> None:
    calibration = Calibration(scale=0.5, offset=0.25)
    one = member(sampling=Uniform(num_frames=8), calibration=calibration)
    row = score(CARPHONE, one, thresholds=Thresholds(fake=0.99, no_forgery_found=0.01))
    indices = [i * 120 // 8 for i in range(8)]
    frames = frames_at(CARPHONE, indices, PREPROCESSING)
    clips = plain_logits(one.model, PREPROCESSING, [frames[:3], frames[3:6], frames[6:]])
    logits = np.concatenate(clips)
    assert np.ptp(sigmoid(logits)) > 0.05, "the frames are judged alike, so nothing is tested"
    video = mean_score_logit([clip[-1] for clip in clips])
    assert row["logit"] == pytest.approx(0.5 * video + 0.25, abs=2e-4)
    assert row["score"] == pytest.approx(sigmoid(0.5 * video + 0.25), abs=1e-4)
    assert row["verdict"] == "undecided"
    (track,) = row["tracks"]
    np.testing.assert_allclose([f["logit"] for f in track["frames"]], logits, **NEAR)
    np.testing.assert_allclose([f["score"] for f in track["frames"]], sigmoid(logits), **NEAR)
    with open_video(CARPHONE) as reader:
        times = reader.pts_seconds[indices]
    assert [f["pts_seconds"] for f in track["frames"]] == times.tolist()
    assert track["logit"] == pytest.approx(video, abs=2e-4)
    assert (track["first_pts_seconds"], track["last_pts_seconds"]) == (times[0], times[-1])
    assert {track[edge] for edge in ("left", "top", "right", "bottom")} == {None}
    scores = sigmoid(logits)
    peak = first = last = int(np.argmax(scores))
    while first and scores[first - 1] >= scores[peak] / 2:
        first -= 1
    while last < 7 and scores[last + 1] >= scores[peak] / 2:
        last += 1
    assert row["suspicious_start_seconds"] == times[first]
    assert row["suspicious_end_seconds"] == times[last]
    counts = ("expected", "sampled", "used")
    assert [row[f"num_frames_{name}"] for name in counts] == [8, 8, 8]
    assert (row["num_faces"], row["num_tracks"], row["is_partial"]) == (None, 1, False)
    assert row["aggregation"] == "steps=last clips=mean tracks=max"
    assert (row["codec"], row["width"], row["height"]) == ("h264", 176, 144)
    assert row["duration_seconds"] == pytest.approx(4.004)
    assert (row["status"], row["label"], row["attempt"]) == ("ok", "fake", 2)


def test_a_segment_is_sampled_on_its_own_and_the_video_stays_one_track() -> None:
    data = encode(num_frames=60)  # 25 frames a second
    one = member(sampling=Uniform(num_frames=2), clip=None, segment_seconds=1.0)
    row = score(data, one)
    indices = [0, 12, 25, 37, 50, 55]
    frames = frames_at(data, indices, PREPROCESSING)
    clips = plain_logits(one.model, PREPROCESSING, [frames[:2], frames[2:4], frames[4:]])
    (track,) = row["tracks"]
    np.testing.assert_allclose([f["logit"] for f in track["frames"]], np.concatenate(clips), **NEAR)
    assert row["logit"] == pytest.approx(mean_score_logit([c[-1] for c in clips]), abs=2e-4)


def test_a_frame_of_overlapping_clips_has_the_mean_of_its_scores() -> None:
    data = encode(num_frames=5)
    one = member(sampling=Clips(num_clips=2, num_frames=4), clip=None)
    frames = frames_at(data, [0, 1, 2, 3, 4], PREPROCESSING)
    early, late = plain_logits(one.model, PREPROCESSING, [frames[:4], frames[1:]])
    expected = [
        early[0],
        *(mean_score_logit([early[i], late[i - 1]]) for i in (1, 2, 3)),
        late[3],
    ]
    row = score(data, one)
    found = [frame["logit"] for frame in row["tracks"][0]["frames"]]
    np.testing.assert_allclose(found, expected, **NEAR)
    assert row["num_frames_used"] == 5


class CountingReader:
    """Notes what is read of a video."""

    def __init__(self, reader: VideoReader, reads: list[Any]) -> None:
        self._reader, self._reads = reader, reads
        self.info, self.pts_seconds = reader.info, reader.pts_seconds
        self.decoder = reader.decoder

    @property
    def is_partial(self) -> bool:
        return self._reader.is_partial

    def read(self, indices: Any, *recipes: Preprocessing | None) -> Iterator[Any]:
        self._reads.append((tuple(indices), *recipes))
        return self._reader.read(indices, *recipes)


def test_an_ensemble_keeps_every_score_and_shares_frames() -> None:
    small = dataclasses.replace(PREPROCESSING, image_size=48, resize_size=48)
    mean = AggregationConfig(steps="mean")
    members = [
        member(0, sampling=Uniform(num_frames=4)),
        member(1, sampling=Uniform(num_frames=4), aggregation=mean),
        member(2, sampling=Uniform(num_frames=4), preprocessing=small),
        member(3, sampling=EveryNth(ratio=60), clip=None),
    ]
    reads: list[Any] = []
    row: dict[str, Any] = {}
    with open_video(CARPHONE) as reader:
        scorer = Scorer(members=members, thresholds=Thresholds())
        video = VideoHere(CountingReader(reader, reads), None, StageClock())
        scorer.score(video, row, StageClock())
    assert reads == [
        ((0, 30, 60, 90), PREPROCESSING, small),
        ((0, 60), PREPROCESSING),
    ]
    alone = [score(CARPHONE, one) for one in members]
    names = [f"tiny-{seed}" for seed in range(4)]
    assert [one["checkpoint"] for one in row["checkpoints"]] == names
    found = [one["score"] for one in row["checkpoints"]]
    np.testing.assert_allclose(found, [each["score"] for each in alone], atol=1e-6)
    assert np.ptp(found) > 0.01
    assert row["score"] == pytest.approx(np.mean(found), abs=1e-9)
    assert row["aggregation"].startswith("mean of 4 checkpoints: steps=last")
    assert (row["num_frames_expected"], row["num_tracks"]) == (4, 2)
    first, second = row["tracks"]
    by_member = [each["tracks"][0]["frames"] for each in alone]
    shared = np.mean([[f["score"] for f in frames] for frames in by_member[:3]], axis=0)
    np.testing.assert_allclose([f["score"] for f in first["frames"]], shared, atol=1e-6)
    assert len(second["frames"]) == 2


def test_a_cut_video_is_judged_by_the_frames_that_it_has() -> None:
    whole = encode(container="matroska", num_frames=100, options={"g": "10"})
    cut = whole[: len(whole) * 6 // 10]
    one = member(sampling=EveryNth(ratio=5), clip=None)
    row = score(cut, one)
    assert (row["status"], row["is_partial"]) == ("ok", True)
    with open_video(cut) as reader:
        indices = list(range(0, len(reader.pts_seconds), 5))
        frames = np.stack([frame.pixels for frame in reader.read(indices, PREPROCESSING)])
    (logits,) = plain_logits(one.model, PREPROCESSING, [frames])
    assert row["num_frames_sampled"] == row["num_frames_used"] == len(logits) < 20
    np.testing.assert_allclose([f["logit"] for f in row["tracks"][0]["frames"]], logits, **NEAR)


def test_without_what_it_needs_a_video_has_no_score() -> None:
    one = member(sampling=Uniform(num_frames=4))
    short = score(encode(num_frames=3), one, min_frames=4)
    assert (short["status"], short["error_type"]) == ("too_short", "TooShortError")
    assert (short["num_frames_sampled"], short["codec"]) == (3, "h264")
    empty = score(b"", one)
    assert (empty["status"], empty["codec"], empty["is_partial"]) == ("decode_error", None, None)
    scorer = Scorer(members=[one], thresholds=Thresholds())
    missing = Item(SOURCE, error=FetchError("gone", error_type="Gone"), num_source_records=1)
    table = score_item(missing, open_here, scorer, Stamp("run", "f"), StageClock())
    (gone,) = table.to_pylist()
    assert (gone["status"], gone["error_type"]) == ("fetch_error", "Gone")
    for row in (short, empty, gone):
        assert [row[name] for name in ("score", "logit", "verdict", "tracks")] == [None] * 4


LEFT = Box(left=10, top=20, right=50, bottom=70, score=0.9)
RIGHT = Box(left=100.5, top=30, right=130, bottom=60, score=0.8)


class FakeDetector:
    """Finds one face in even frames' left half, and a second, smaller one in all."""

    def __init__(self, model: bytes, settings: FaceSettings) -> None:
        assert model == b"model"
        self._number = 0

    def detect(self, pixels: np.ndarray) -> list[Box]:
        assert pixels.shape == (144, 176, 3)
        self._number += 1
        return [LEFT, RIGHT] if self._number % 2 else [RIGHT]


@pytest.mark.parametrize("which", ["all", "largest"])
def test_faces_are_judged_track_by_track(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "FaceDetector", FakeDetector)
    settings = FaceSettings(margin=1.5)
    one = member(sampling=EveryNth(ratio=30), clip=None, which_faces=which, faces=settings)
    row = score(CARPHONE, one, face_model=b"model")
    with open_video(CARPHONE) as reader:
        whole = [frame.pixels for frame in reader.read([0, 30, 60, 90], None)]
    fit = PixelConverter(PREPROCESSING).fit
    left = np.stack([fit(crop_face(whole[i], LEFT, margin=1.5)) for i in (0, 2)])
    seen_right = range(4) if which == "all" else (1, 3)
    right = np.stack([fit(crop_face(whole[i], RIGHT, margin=1.5)) for i in seen_right])
    expected = plain_logits(one.model, PREPROCESSING, [left, right])
    for track, logits in zip(row["tracks"], expected, strict=True):
        np.testing.assert_allclose([f["logit"] for f in track["frames"]], logits, **NEAR)
    edges = ("left", "top", "right", "bottom")
    assert [row["tracks"][1][edge] for edge in edges] == [100, 30, 130, 60]
    assert [row["tracks"][0]["frames"][0][edge] for edge in edges] == [10, 20, 50, 70]
    best = max(logits[-1] for logits in expected)
    assert row["logit"] == pytest.approx(best, abs=2e-4)
    assert (row["num_faces"], row["num_tracks"]) == (2 + len(right), 2)
    assert (row["num_frames_sampled"], row["num_frames_used"]) == (4, 4)


def test_a_video_without_a_face_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "FaceDetector", FakeDetector)
    monkeypatch.setattr(FakeDetector, "detect", lambda self, pixels: [])
    one = member(sampling=Uniform(num_frames=4), faces=FaceSettings())
    row = score(CARPHONE, one, face_model=b"model")
    assert (row["status"], row["score"], row["verdict"]) == ("no_face", None, None)
    assert (row["num_faces"], row["num_frames_sampled"], row["num_frames_used"]) == (0, 4, 0)


@pytest.mark.parametrize(
    ("scores", "span"),
    [
        ([[0.1, 0.5, 0.9, 0.44, 0.9]], (1, 2)),
        ([[0.4, 0.2], [0.1, 0.6, 0.3]], (1, 2)),
        ([[0.2]], (0, 0)),
        ([[0.5, 0.5, 0.5]], (0, 2)),
    ],
)
def test_the_span_is_the_run_around_the_highest_score(
    scores: list[list[float]], span: tuple[int, int]
) -> None:
    tracks = [
        {"frames": [{"pts_seconds": i, "score": score} for i, score in enumerate(one)]}
        for one in scores
    ]
    assert suspicious_span(tracks) == span
