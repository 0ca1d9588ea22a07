import hashlib
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from skimage import data as photographs
from video_files import CLIPS

from effnet_batch.errors import WeightsError
from effnet_batch.media import faces
from effnet_batch.media.faces import (
    FaceDetector,
    FaceSettings,
    crop_face,
    load_model,
    track_faces,
)
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import EveryNth, sample
from effnet_batch.media.tracks import Box, intersection_over_union
from effnet_batch.media.video import Frame, open_video


def box(left: float, top: float, right: float, bottom: float) -> Box:
    return Box(left=left, top=top, right=right, bottom=bottom, score=0.9)


ASTRONAUT = box(175, 65, 270, 180)
"""The face in scikit-image's photograph, measured by eye; 512 x 512."""


@pytest.mark.parametrize("zoom", [1, 3])
def test_the_astronauts_face_is_found(face_model: bytes, zoom: int) -> None:
    picture = np.kron(photographs.astronaut(), np.ones((zoom, zoom, 1), np.uint8))
    (found,) = FaceDetector(face_model, FaceSettings()).detect(picture)
    there = Box(
        left=found.left / zoom,
        top=found.top / zoom,
        right=found.right / zoom,
        bottom=found.bottom / zoom,
        score=1,
    )
    assert intersection_over_union(there, ASTRONAUT) > 0.7
    assert found.score > 0.9


def test_several_faces_come_by_confidence(face_model: bytes) -> None:
    person = photographs.astronaut()[:300, 100:350]
    crowd = np.concatenate([person, person[:, ::-1], person // 3 + 60], axis=1)
    found = FaceDetector(face_model, FaceSettings()).detect(crowd)
    assert len(found) == 3
    assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    assert sorted(int(each.left) // 250 for each in found) == [0, 1, 2]
    assert len(FaceDetector(face_model, FaceSettings(max_faces=2)).detect(crowd)) == 2


def test_small_faces_and_frames_are_left_out(face_model: bytes) -> None:
    assert (
        FaceDetector(face_model, FaceSettings(min_face_size=150)).detect(photographs.astronaut())
        == []
    )
    detector = FaceDetector(face_model, FaceSettings())
    for height, width in ((1, 1), (2, 4000), (15, 300), (300, 15), (16, 16)):
        assert detector.detect(np.zeros((height, width, 3), np.uint8)) == []
    assert detector.detect(photographs.coffee()) == []


@pytest.mark.parametrize("detect_every", [1, 4, 30])
def test_the_face_of_carphone_is_one_track(face_model: bytes, detect_every: int) -> None:
    settings = FaceSettings(detect_every=detect_every)
    detect = FaceDetector(face_model, settings).detect
    with open_video((CLIPS / "carphone_pristine.mp4").read_bytes()) as video:
        indices = sample(video.pts_seconds, EveryNth(ratio=5)).indices
        crops = list(track_faces(video.read(indices, None), detect, settings))
        frames = {frame.index: frame for frame in video.read(indices, None)}
    assert len(crops) == 24
    assert {crop.track for crop in crops} == {0}
    assert [crop.frame_index for crop in crops] == indices.tolist()
    assert [crop.pts_seconds for crop in crops] == [frames[i].pts_seconds for i in frames]
    detected = [not crop.is_interpolated for crop in crops]
    assert detected == [p % detect_every == 0 or p == 23 for p in range(24)]
    for crop in crops:
        assert crop.pixels.shape[0] == crop.pixels.shape[1]
        (truth,) = FaceDetector(face_model, settings).detect(frames[crop.frame_index].pixels)
        assert intersection_over_union(crop.box, truth) > (0.99 if detect_every == 1 else 0.5)


def frames_of(positions: list[int]) -> Iterator[Frame]:
    for number, position in enumerate(positions):
        pixels = np.zeros((60, 200, 3), np.uint8)
        pixels[20:40, position : position + 20] = 255
        yield Frame(index=5 * number, pts_seconds=number / 5, pixels=pixels)


def detect_white(pixels: np.ndarray) -> list[Box]:
    columns = np.flatnonzero(pixels[30].any(axis=-1))
    return [box(columns[0], 20, columns[-1] + 1, 40)] if len(columns) else []


@pytest.mark.parametrize("detect_every", [1, 3, 4, 100])
def test_boxes_between_detections_follow_a_steady_face(detect_every: int) -> None:
    # Slow enough for the first and the last box to overlap.
    settings = FaceSettings(detect_every=detect_every, margin=1)
    crops = list(track_faces(frames_of(list(range(50, 60))), detect_white, settings))
    assert [crop.frame_index for crop in crops] == list(range(0, 50, 5))
    assert {crop.track for crop in crops} == {0}
    for crop in crops:
        assert crop.box.left == pytest.approx(50 + crop.frame_index / 5)
        np.testing.assert_array_equal(crop.pixels, 255)


def test_a_face_that_comes_and_goes_is_not_made_up() -> None:
    positions = [50, 50, 50, 180, 180, 180, 180]
    crops = list(
        track_faces(frames_of(positions), detect_white, FaceSettings(detect_every=3, max_gap=1))
    )
    assert [(crop.frame_index, crop.track) for crop in crops] == [
        (0, 0),
        (15, 1),
        (20, 1),
        (25, 1),
        (30, 1),
    ]


@pytest.mark.parametrize("detect_every", [1, 6])
def test_frames_are_not_hoarded(detect_every: int) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    num_alive = []

    def frames() -> Iterator[Frame]:
        for number in range(50):
            pixels = np.zeros((60, 60, 3), np.uint8)
            made.append(weakref.ref(pixels))
            yield Frame(index=number, pts_seconds=number, pixels=pixels)
            del pixels
            num_alive.append(sum(each() is not None for each in made))

    settings = FaceSettings(detect_every=detect_every)
    tracks = Counter(
        crop.track for crop in track_faces(frames(), lambda _: [box(5, 5, 50, 50)], settings)
    )
    assert tracks == {0: 50}
    assert max(num_alive) <= detect_every + 2


@given(st.floats(-30, 90), st.floats(-30, 90), st.floats(1, 60), st.floats(1, 60), st.floats(1, 2))
def test_crops_are_squares_with_black_outside(
    left: float, top: float, width: float, height: float, margin: float
) -> None:
    y, x = np.mgrid[1:51, 1:71]
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.uint8)
    where = box(left, top, left + width, top + height)
    crop = crop_face(pixels, where, margin=margin)
    side = max(1, round(max(width, height) * margin))
    assert crop.shape == (side, side, 3)
    first_x, first_y = round(left + width / 2 - side / 2), round(top + height / 2 - side / 2)
    for row in {0, side // 2, side - 1}:
        for column in {0, side // 3, side - 1}:
            at_x, at_y = first_x + column, first_y + row
            inside = 0 <= at_x < 70 and 0 <= at_y < 50
            expected = (at_x + 1, at_y + 1, 1) if inside else (0, 0, 0)
            assert tuple(crop[row, column]) == expected
    clipped = crop_face(pixels, where, margin=margin, border="clip")
    assert clipped.size > 0
    assert (clipped[..., 2] == 1).all()
    assert clipped.shape[0] <= side
    assert clipped.shape[1] <= side


def test_a_crop_may_keep_the_shape_of_its_box() -> None:
    pixels = photographs.astronaut()
    crop = crop_face(pixels, box(100, 200, 130, 260), margin=1.5, is_square=False)
    np.testing.assert_array_equal(crop, pixels[185:275, 92:137])
    clipped = crop_face(pixels, box(-10, 500, 20, 560), margin=2.0, is_square=False, border="clip")
    np.testing.assert_array_equal(clipped, pixels[470:512, 0:35])


def test_a_crop_fits_a_model() -> None:
    preprocessing = Preprocessing(image_size=64, resize_size=64, interpolation="bilinear")
    crop = crop_face(photographs.astronaut(), ASTRONAUT, margin=1.3)
    fitted = PixelConverter(preprocessing).fit(crop)
    assert fitted.shape == (64, 64, 3)
    np.testing.assert_allclose(fitted.mean(axis=(0, 1)), crop.mean(axis=(0, 1)), atol=2)


def test_the_model_is_checked(
    face_model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hashlib.sha256(face_model).hexdigest() == faces.MODEL_SHA256
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(face_model)
    bad.write_bytes(face_model[:-1])
    monkeypatch.setenv(faces.MODEL_VARIABLE, str(good))
    assert load_model() == face_model
    with pytest.raises(WeightsError, match=r"bad\.onnx is not the face detector's model"):
        load_model(bad)
    monkeypatch.setenv(faces.MODEL_VARIABLE, str(tmp_path / "none.onnx"))
    with pytest.raises(WeightsError, match=r"none\.onnx: No such file.*EFFNET_BATCH_YUNET"):
        load_model()


def test_the_model_comes_from_the_hub_at_its_revision(
    face_model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(repository: str, name: str, *, revision: str) -> str:
        asked.append((repository, name, revision))
        (tmp_path / name).write_bytes(face_model)
        return str(tmp_path / name)

    monkeypatch.delenv(faces.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_model() == face_model
    assert asked == [(faces.MODEL_REPOSITORY, faces.MODEL_FILE, faces.MODEL_REVISION)]

    def fail(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match=r"cannot fetch .* set EFFNET_BATCH_YUNET"):
        load_model()


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_score": 0},
        {"min_iou": 1},
        {"detection_size": 8},
        {"margin": 0.5},
        {"border": "mirror"},
        {"detect_every": 0},
        {"max_gap": 0},
        {"max_faces": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FaceSettings(**wrong)  # type: ignore[arg-type]
