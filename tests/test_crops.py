"""The crops that are kept: those of the highest scores, pixel by pixel what the model saw."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import PREPROCESSING, tiny_checkpoint
from video_files import CLIPS

from effnet_batch.errors import NoFaceError
from effnet_batch.media import jpeg as jpeg_module
from effnet_batch.media.faces import FaceSettings, crop_face
from effnet_batch.media.jpeg import encode_jpeg
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.media.sampling import Clips, EveryNth, Sampling, Uniform
from effnet_batch.media.tracks import Box
from effnet_batch.media.video import open_video
from effnet_batch.models.checkpoint_info import Thresholds
from effnet_batch.models.engine import build_engine
from effnet_batch.stages import show as show_module
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.score import Member, Scorer
from effnet_batch.stages.show import View
from effnet_batch.stages.video import VideoHere

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
LEFT = Box(left=10, top=20, right=50, bottom=70, score=0.9)
RIGHT = Box(left=100.5, top=30, right=130, bottom=60, score=0.8)


def member(seed: int, sampling: Sampling, **view: Any) -> Member:
    model, info = tiny_checkpoint(seed)
    engine = build_engine(model.encoder, info.preprocessing, engine="torch", batch_size=4)
    shown = View(sampling=sampling, max_clip_frames=3, **view)
    return Member(info=info, view=shown, model=model, encoder=OwnEncoder(engine))


def judge(data: bytes, members: list[Member], num_crops: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    scorer = Scorer(members=members, thresholds=Thresholds(), num_crops=num_crops)
    with open_video(data) as reader:
        scorer.score(VideoHere(reader, b"model", StageClock()), row, StageClock())
    return row


def expected_crops(row: dict[str, Any], number: int) -> list[tuple[int, float, float]]:
    """Track, time and score of the frames that the row itself says are the most suspicious."""
    frames = [
        (track["track"], frame["pts_seconds"], frame["score"], frame["logit"])
        for track in row["tracks"]
        for frame in track["frames"]
    ]
    frames.sort(key=lambda frame: (-frame[3], frame[1], frame[0]))
    return [frame[:3] for frame in frames[:number]]


def found_crops(row: dict[str, Any]) -> list[tuple[int, float, float]]:
    return [(crop["track"], crop["pts_seconds"], crop["score"]) for crop in row["crops"]]


@pytest.mark.parametrize("memory_bytes", [16 << 20, 3_000])
def test_the_best_frames_over_all_segments_are_kept(
    memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_module, "_SPOOL_BYTES", memory_bytes)
    one = member(0, Clips(num_clips=3, num_frames=4), segment_seconds=1.0)
    row = judge(CARPHONE, [one], 12)
    assert found_crops(row) == expected_crops(row, 12)
    with open_video(CARPHONE) as reader:
        times = reader.pts_seconds.tolist()
        places = [times.index(crop["pts_seconds"]) for crop in row["crops"]]
        pixels = {f.index: f.pixels for f in reader.read(sorted(places), PREPROCESSING)}
    assert len({int(crop["pts_seconds"]) for crop in row["crops"]}) > 1, (
        "all crops are of one segment"
    )
    for place, crop in zip(places, row["crops"], strict=True):
        assert crop["jpeg"] == encode_jpeg(pixels[place])
    assert judge(CARPHONE, [one], 12) == row
    without = judge(CARPHONE, [one], 0)
    assert without == {**row, "crops": None}


def test_crops_of_an_ensemble_name_the_tracks_of_the_row() -> None:
    small = dataclasses.replace(PREPROCESSING, image_size=48, resize_size=48)
    other = member(2, Uniform(num_frames=4))
    engine = build_engine(other.model.encoder, small, engine="torch", batch_size=4)
    members = [
        member(0, Uniform(num_frames=4)),
        member(1, EveryNth(ratio=40)),
        dataclasses.replace(
            other,
            info=dataclasses.replace(other.info, preprocessing=small),
            encoder=OwnEncoder(engine),
        ),
    ]
    row = judge(CARPHONE, members, 64)
    assert found_crops(row) == expected_crops(row, 64)
    assert [len(track["frames"]) for track in row["tracks"]] == [4, 3]
    sizes = {Image.open(io.BytesIO(crop["jpeg"])).size for crop in row["crops"]}
    assert sizes == {(64, 64)}


class FakeDetector:
    """Finds one face in every other frame, and a second one in all."""

    faces = (LEFT, RIGHT)

    def __init__(self, model: bytes, settings: FaceSettings) -> None:
        self._number = 0

    def detect(self, pixels: np.ndarray) -> list[Box]:
        self._number += 1
        return list(self.faces[(self._number + 1) % 2 :])


def test_crops_are_the_faces_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "FaceDetector", FakeDetector)
    one = member(0, EveryNth(ratio=30), faces=FaceSettings(margin=1.5))
    row = judge(CARPHONE, [one], 6)
    assert found_crops(row) == expected_crops(row, 6)
    assert {crop["track"] for crop in row["crops"]} == {0, 1}
    fit = PixelConverter(PREPROCESSING).fit
    with open_video(CARPHONE) as reader:
        times = reader.pts_seconds.tolist()
        whole = {frame.index: frame.pixels for frame in reader.read([0, 30, 60, 90], None)}
    for crop in row["crops"]:
        box = (LEFT, RIGHT)[crop["track"]]
        seen = fit(crop_face(whole[times.index(crop["pts_seconds"])], box, margin=1.5))
        assert crop["jpeg"] == encode_jpeg(seen)
    monkeypatch.setattr(FakeDetector, "faces", ())
    with pytest.raises(NoFaceError):
        judge(CARPHONE, [one], 6)


def test_a_jpeg_is_of_quality_90_with_all_colours() -> None:
    with open_video(CARPHONE) as reader:
        (frame,) = reader.read([0], PREPROCESSING)
    with Image.open(io.BytesIO(encode_jpeg(frame.pixels))) as picture:
        again = np.asarray(picture.convert("RGB"), np.int16)
        tables, layers = picture.quantization, picture.layer
    # The standard's first step of brightness is 16, and quality 90 takes a fifth of it.
    assert tables[0][0] == 3
    assert [layer[1:3] for layer in layers] == [(1, 1)] * 3
    assert np.abs(again - frame.pixels).mean() < 3
