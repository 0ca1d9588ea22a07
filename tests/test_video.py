"""Frames of real encodings against a full decode, and files that are not what they seem."""

import gc
import io
import os
import threading

import numpy as np
import psutil
import pytest
from video_files import B_FRAMES, CLIPS, ENCODINGS, decode_plainly, encode, encoded, remux

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import Clips, EveryNth, Sampling, Uniform, sample
from effnet_batch.media.video import VideoReader, open_video

SAMPLINGS: tuple[Sampling, ...] = (
    EveryNth(ratio=5),
    EveryNth(ratio=1),
    Uniform(num_frames=3),
    Clips(num_clips=2, num_frames=5),
)


@pytest.mark.parametrize("name", ENCODINGS)
def test_kept_frames_are_those_of_a_full_decode(name: str) -> None:
    data = encoded(name)
    expected = decode_plainly(data)
    with open_video(data) as video:
        assert video.info.num_frames == len(video.pts_seconds) == len(expected)
        if (
            name != "H.264 in avi"
        ):  # AVI has no times, and what FFmpeg makes up goes back and forth.
            np.testing.assert_allclose(video.pts_seconds, [t for t, _ in expected], atol=1e-9)
        for sampling in SAMPLINGS:
            indices = sample(video.pts_seconds, sampling).indices
            frames = list(video.read(indices, None))
            assert [frame.index for frame in frames] == indices.tolist()
            for frame in frames:
                assert frame.pts_seconds == video.pts_seconds[frame.index]
                np.testing.assert_array_equal(frame.pixels, expected[frame.index][1])
        assert not video.is_partial


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ENCODINGS
        # What cannot be read off the packets, or needs frames from before the keyframe.
        if name
        not in {
            "H.264 in avi",
            "MPEG-4 in avi",
            "VP8 in webm",
            "H.264 interlaced in ts",
            "H.264 without whole keyframes",
        }
    ],
)
def test_nothing_needs_a_full_decode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full_decodes = []
    monkeypatch.setattr(VideoReader, "_decode_fully", lambda *_: full_decodes.append(name) or ())
    with open_video(encoded(name)) as video:
        for sampling in SAMPLINGS:
            list(video.read(sample(video.pts_seconds, sampling).indices, None))
    assert full_decodes == []


def test_what_is_read_follows_the_frames_not_the_length() -> None:
    class Counting(io.BytesIO):
        num_bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.num_bytes += len(data)
            return data

    data = encode(num_frames=400, size=(320, 240), options={"g": "10", "crf": "1"})
    assert len(data) > 8e6
    file = Counting(data)
    with open_video(file) as video:
        file.num_bytes = 0
        frames = list(video.read([100, 300], None))
    assert [frame.index for frame in frames] == [100, 300]
    assert file.num_bytes < 0.3 * len(data)


def test_info() -> None:
    with open_video((CLIPS / "carphone_pristine.mp4").read_bytes()) as video:
        info = video.info
    assert (info.codec, info.pixel_format, info.width, info.height) == ("h264", "yuv420p", 176, 144)
    assert info.num_frames == 120
    assert info.fps == pytest.approx(30000 / 1001)
    assert info.duration_seconds == pytest.approx(4.004)
    assert info.start_seconds == 0
    assert "mp4" in info.container


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(degrees: int, is_mirrored: bool) -> None:
    # What ffmpeg's own autorotation shows: turned counterclockwise, then mirrored.
    stored = decode_plainly(encode(num_frames=1))[0][1]
    shown = np.rot90(stored, degrees // 90)[:, :: -1 if is_mirrored else 1]
    data = encode(num_frames=1, rotation_degrees=degrees, is_mirrored=is_mirrored)
    with open_video(data) as video:
        (frame,) = video.read([0], None)
        assert (video.info.height, video.info.width) == shown.shape[:2]
        small = Preprocessing(image_size=24, resize_size=32, interpolation="bilinear")
        (cropped,) = video.read([0], small)
    np.testing.assert_array_equal(frame.pixels, shown)
    assert frame.pixels.flags.c_contiguous
    assert cropped.pixels.shape == (24, 24, 3)
    middle = shown[shown.shape[0] // 2 - 24 :][:48, shown.shape[1] // 2 - 24 :][:, :48]
    blocks = middle.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))
    assert np.abs(blocks - cropped.pixels).mean() < 12


@pytest.mark.parametrize(("mode", "resize_size"), [("crop", 40), ("squash", 32), ("pad", 32)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_preprocessing_means_what_it_means_for_images(
    mode: str, resize_size: int, interpolation: str
) -> None:
    from PIL import Image

    from effnet_batch.media.image import ImageLimits, decode_image

    data = (CLIPS / "bikes.mp4").read_bytes()
    preprocessing = Preprocessing(
        image_size=32, resize_size=resize_size, resize_mode=mode, interpolation=interpolation
    )
    with open_video(data) as video:
        (whole,) = video.read([30], None)
        (frame,) = video.read([30], preprocessing)
    png = io.BytesIO()
    Image.fromarray(whole.pixels).save(png, "PNG")
    expected = decode_image(png.getvalue(), preprocessing, ImageLimits()).frame
    assert frame.pixels.shape == expected.shape
    difference = np.abs(frame.pixels.astype(int) - expected)
    # Other arithmetic, and luma before colours: the same picture, not the same bytes.
    assert difference.mean() < (12 if interpolation == "nearest" else 3)
    if mode == "pad":
        np.testing.assert_array_equal(frame.pixels[:9], 0)


def test_every_form_of_a_frame_comes_from_one_reading() -> None:
    data = (CLIPS / "bikes.mp4").read_bytes()
    large = Preprocessing(image_size=96, resize_size=96)
    small = Preprocessing(image_size=32, resize_size=40)
    indices = [0, 7, 30]
    with open_video(data) as video:
        alone = [list(video.read(indices, recipe)) for recipe in (large, None, small)]
        together = list(video.read(indices, large, None, small))
    assert [frame.index for frame in together] == [0, 0, 0, 7, 7, 7, 30, 30, 30]
    for number, frame in enumerate(together):
        expected = alone[number % 3][number // 3]
        assert frame.pts_seconds == expected.pts_seconds
        np.testing.assert_array_equal(frame.pixels, expected.pixels)


def test_a_very_long_frame_stays_small() -> None:
    data = encode("mjpeg", "mov", size=(4096, 16), pixel_format="yuvj420p", num_frames=2)
    with open_video(data) as video:
        (frame,) = video.read([1], Preprocessing(image_size=224, resize_size=256))
        (whole,) = video.read([1], None)
    assert frame.pixels.shape == (224, 224, 3)
    middle = whole.pixels[1:15, 2041:2055].mean(axis=(0, 1))
    np.testing.assert_allclose(frame.pixels.mean(axis=(0, 1)), middle, atol=6)


def test_times_that_repeat_are_replaced() -> None:
    data = remux(encode("mjpeg", "mov", pixel_format="yuvj420p"), "matroska", move=lambda pts: 0)
    expected = decode_plainly(data)
    assert {seconds for seconds, _ in expected} == {0.0}
    with open_video(data) as video:
        assert video.info.num_frames == len(video.pts_seconds) == 60
        assert (np.diff(video.pts_seconds) > 0).all()
        frames = list(video.read([0, 7, 59], None))
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, expected[frame.index][1])


def test_wrong_indices_are_refused() -> None:
    with open_video(encode(num_frames=5)) as video:
        assert list(video.read([], None)) == []
        for indices in ([5], [-1], [1, 1], [2, 1]):
            with pytest.raises(ValueError, match=r"must rise and be in 0\.\.4"):
                list(video.read(indices, None))


def test_a_reader_can_be_left_and_asked_again() -> None:
    data = encode(options=B_FRAMES, num_frames=100)
    expected = decode_plainly(data)
    with open_video(data) as video:
        for indices in ([90, 95], [3], [40, 41, 99]):
            first = next(iter(video.read(indices, None)))
            np.testing.assert_array_equal(first.pixels, expected[indices[0]][1])
        for frame in video.read([0, 50, 98], None):
            np.testing.assert_array_equal(frame.pixels, expected[frame.index][1])


def test_frames_leave_memory_without_the_garbage_collector() -> None:
    """PyAV's objects can hold each other in circles: 200 frames of these would be 90 MB."""
    data = encode(num_frames=200, size=(640, 480), options={"preset": "ultrafast"})
    small = Preprocessing(image_size=32, resize_size=32)
    process = psutil.Process()
    gc.disable()
    try:
        with open_video(data) as video:
            sizes = [process.memory_info().rss for _ in video.read(range(200), small)]
    finally:
        gc.enable()
    assert max(sizes[20:]) - sizes[20] < 20e6


def test_long_steps_show_progress() -> None:
    data = encode("mpeg4", "avi", num_frames=100)  # Its frames have to be counted.
    calls: list[int] = []
    with open_video(data, on_progress=lambda: calls.append(threading.get_ident())) as video:
        assert len(calls) >= 2 * 100
        list(video.read([99], None))
    assert len(calls) >= 3 * 100
    assert set(calls) == {threading.get_ident()}


def test_clips_are_encoded_without_making_this_a_realtime_process() -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    assert encode("libsvtav1", options={"preset": "12"}, num_frames=4)
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
