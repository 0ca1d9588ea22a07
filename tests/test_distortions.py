"""Distortions against the benchmark's published numbers and what other libraries make of them."""

import io
import math
import zlib
from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio
from video_files import CLIPS

from effnet_batch.media.distortions import PARAMETERS, Distortion, distort, parse_distortion
from effnet_batch.media.h264 import reencode
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import EveryNth
from effnet_batch.media.video import Frame, open_video
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.show import Pictures, View, Viewing, show

FACE = np.ascontiguousarray(skimage.data.astronaut()[:300, 100:451])
LEVELS = range(1, 6)


def by_level(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, 1))


def distorted(pixels: np.ndarray, kind: str, level: int, index: int = 0) -> np.ndarray:
    before = pixels.copy()
    (frame,) = distort(
        [Frame(index=index, pts_seconds=0.5, pixels=pixels)], Distortion(kind, level)
    )
    assert (pixels == before).all()
    assert (frame.index, frame.pts_seconds) == (index, 0.5)
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.shape == pixels.shape
    return frame.pixels


def worst(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(("level", "share"), by_level(0.4, 0.3, 0.2, 0.1, 0.0))
def test_saturation_draws_colours_to_their_luma(level: int, share: float) -> None:
    luma = FACE @ np.array([0.299, 0.587, 0.114])
    expected = luma[..., None] + share * (FACE - luma[..., None])
    cut_off = expected - distorted(FACE, "saturation", level)
    assert cut_off.min() > -0.1
    assert cut_off.max() < 1.1


@pytest.mark.parametrize(("level", "share"), by_level(0.85, 0.725, 0.6, 0.475, 0.35))
def test_contrast_scales_values(level: int, share: float) -> None:
    expected = (FACE.astype(np.float32) * share).astype(np.uint8)
    assert (distorted(FACE, "contrast", level) == expected).all()


@pytest.mark.parametrize(("level", "number"), by_level(16, 32, 48, 64, 80))
@pytest.mark.parametrize(("size", "times"), [((1030, 1100), 4), ((100, 400), 1)])
def test_blocks_are_grey_squares(
    size: tuple[int, int], times: int, level: int, number: int
) -> None:
    found = distorted(np.zeros((*size, 3), np.uint8), "blocks", level)
    assert set(np.unique(found)) == {0, 128}
    covered = (found == 128).all(axis=2)
    assert (covered == (found == 128).any(axis=2)).all()
    most = number * times * 64
    # Squares on squares cover less.
    overlap = most / (size[0] * size[1])
    assert most * (1 - 2 * overlap) < covered.sum() <= most
    # Nothing is narrower than a square.
    opened = scipy.ndimage.binary_opening(covered, np.ones((8, 8)))
    assert (opened == covered).all()


@pytest.mark.parametrize(("level", "variance"), by_level(0.001, 0.002, 0.005))
def test_noise_has_its_variance_in_every_channel_of_ycbcr(level: int, variance: float) -> None:
    grey = np.full((400, 400, 3), 128, np.uint8)
    found = skimage.color.rgb2ycbcr(distorted(grey, "noise", level))
    deviations = found.reshape(-1, 3).std(axis=0)
    np.testing.assert_allclose(deviations, 255 * math.sqrt(variance), rtol=0.02)
    assert abs(np.corrcoef(found.reshape(-1, 3).T)[0, 1]) < 0.02


def test_noise_is_the_frames_own_and_always_the_same() -> None:
    grey = np.full((50, 50, 3), 128, np.uint8)
    first = distorted(grey, "noise", 5)
    assert (distorted(grey, "noise", 5) == first).all()
    assert (distorted(grey, "noise", 5, index=1) != first).any()
    other = distorted(grey + np.uint8(1), "noise", 5)
    assert np.corrcoef(other.ravel(), first.ravel())[0, 1] < 0.1


@pytest.mark.parametrize(("level", "side"), by_level(7, 9, 13, 17, 21))
def test_blur_is_a_gaussian_of_that_side(level: int, side: int) -> None:
    expected = scipy.ndimage.gaussian_filter(
        FACE.astype(float), side / 6, mode="mirror", radius=side // 2, axes=(0, 1)
    )
    assert worst(distorted(FACE, "blur", level), expected.round()) <= 1


@pytest.mark.parametrize(("level", "divisor"), by_level(2, 3, 4, 5, 6))
def test_downscale_throws_pixels_away(level: int, divisor: int) -> None:
    def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear").round()

    height, width = FACE.shape[:2]
    pixels = torch.tensor(FACE).permute(2, 0, 1)[None].float()
    small = resize(pixels, height // divisor, width // divisor)
    expected = resize(small, height, width)[0].permute(1, 2, 0).numpy()
    assert worst(distorted(FACE, "downscale", level), expected) <= 2


def through_a_file(frames: list[np.ndarray], crf: int) -> list[np.ndarray]:
    """What FFmpeg's own muxer and its defaults for H.264 make of frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        # With AVX-512 x264 does not repeat itself.
        stream.options = {"crf": str(crf), "threads": "1", "x264-params": "asm=SSE4.2"}
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as coded:
        return [frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)]


@pytest.mark.parametrize(("level", "crf"), by_level(30, 32, 35, 38, 40))
def test_compression_is_ffmpegs(level: int, crf: int) -> None:
    moving = [np.ascontiguousarray(np.roll(FACE[:200, :200], 3 * i, 1)) for i in range(60)]
    frames = (Frame(index=7 * i, pts_seconds=i / 2, pixels=p) for i, p in enumerate(moving))
    found = list(distort(frames, Distortion("compression", level)))
    assert [(each.index, each.pts_seconds) for each in found] == [(7 * i, i / 2) for i in range(60)]
    expected = through_a_file(moving, crf)
    # Not to the bit: a container's clock is finer than ours.
    difference = np.abs(np.stack([f.pixels for f in found]) - np.stack(expected).astype(float))
    assert difference.mean() < 0.01
    assert np.abs(np.stack(expected) - np.stack(moving).astype(float)).mean() > 1


def test_compression_repeats_itself() -> None:
    moving = [np.ascontiguousarray(np.roll(FACE[:200, :200], 3 * i, 1)) for i in range(30)]
    first, *others = (np.stack(list(reencode(moving, crf=35))) for _ in range(4))
    assert all((other == first).all() for other in others)


@pytest.mark.parametrize("size", [(224, 224), (97, 63)])
def test_h264_costs_more_at_a_higher_factor(size: tuple[int, int]) -> None:
    clip = np.stack([FACE[: size[0], : size[1]]] * 3)
    fine, coarse = (
        peak_signal_noise_ratio(clip, np.stack(list(reencode(clip, crf=crf)))) for crf in (17, 40)
    )
    assert fine > 35 > coarse > 20


def test_h264_of_pictures_that_change_their_size() -> None:
    clip = [FACE[:97, :63], FACE[:200, :120], FACE[:40, :40]]
    shapes = [pixels.shape for pixels in reencode(clip, crf=30)]
    assert shapes == [(97, 63, 3)] * 3


def test_no_pictures_give_none() -> None:
    assert list(reencode([], crf=30)) == []
    assert list(distort([], Distortion("noise", 1))) == []


def test_all_seven_grow_worse_with_their_level() -> None:
    assert len(PARAMETERS) == 7
    for kind in PARAMETERS:
        errors = [np.square(distorted(FACE, kind, level) - FACE.astype(float)) for level in LEVELS]
        means = [error.mean() for error in errors]
        assert means == sorted(means), kind
        assert means[0] > 0, kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fog:3", "must be one of saturation, contrast"),
        ("noise:6", r"level must be 1\.\.5"),
        ("noise", "written kind:level"),
    ],
)
def test_what_is_no_distortion_is_refused(text: str, message: str) -> None:
    assert str(parse_distortion("noise:3")) == "noise:3"
    with pytest.raises(ValueError, match=message):
        parse_distortion(text)


def shown(view: View, recipe: Preprocessing) -> Iterator[np.ndarray]:
    with open_video((CLIPS / "carphone_pristine.mp4").read_bytes()) as reader:
        for each in show(reader, Viewing(view, (recipe,), 8), None, StageClock()):
            if isinstance(each, Pictures):
                yield from each.pixels


def test_frames_are_distorted_before_they_are_resized() -> None:
    recipe = Preprocessing(image_size=64, resize_size=64, interpolation="bilinear")
    sampling, distortion = EveryNth(ratio=30), Distortion("downscale", 5)
    found = list(shown(View(sampling=sampling, distortion=distortion), recipe))
    plain = list(shown(View(sampling=sampling), recipe))
    assert len(found) == len(plain) == 4
    with open_video((CLIPS / "carphone_pristine.mp4").read_bytes()) as reader:
        whole = [frame.pixels for frame in reader.read([0, 30, 60, 90], None)]
    for pixels, before, frame in zip(found, plain, whole, strict=True):
        height, width = frame.shape[:2]
        small = cv2.resize(frame, (width // 6, height // 6))
        expected = cv2.resize(small, (width, height))[:, (width - height) // 2 :][:, :height]
        expected = cv2.resize(expected, (64, 64), interpolation=cv2.INTER_AREA)
        assert zlib.crc32(pixels) != zlib.crc32(before)
        assert np.abs(pixels.astype(int) - expected).mean() < 3
        assert np.abs(pixels.astype(int) - before).mean() > 3
