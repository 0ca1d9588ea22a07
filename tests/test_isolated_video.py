"""Videos decoded in a killable child: the same frames, and every death has its status."""

import contextlib
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from video_files import CLIPS, encode

from effnet_batch.errors import (
    CrashedError,
    DecodeError,
    OutOfMemoryError,
    RecordError,
    TimeoutRecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.isolated_video import IsolatedVideo, open_isolated_video
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.video import open_video
from effnet_batch.storage import spool

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
MIB = 1 << 20
SMALL = Preprocessing(image_size=64, resize_size=64)
SMALLER = Preprocessing(image_size=48, resize_size=56)


@contextlib.contextmanager
def opened(
    data: bytes,
    *,
    limits: VideoLimits | None = None,
    memory_bytes: int = 1024 * MIB,
    timeout_seconds: float = 10,
) -> Iterator[IsolatedVideo]:
    with (
        spool([data]) as file,
        open_isolated_video(
            file,
            limits or VideoLimits(),
            timeout_seconds=timeout_seconds,
            memory_bytes=memory_bytes,
        ) as video,
    ):
        yield video


@pytest.mark.parametrize("recipes", [(SMALL,), (None,), (SMALL, None, SMALLER)])
def test_frames_are_those_of_this_process(recipes: tuple[Preprocessing | None, ...]) -> None:
    with opened(CARPHONE) as there, open_video(CARPHONE) as here:
        assert there.info == here.info
        np.testing.assert_array_equal(there.pts_seconds, here.pts_seconds)
        for indices in ([0, 7, 119], [3], []):
            pairs = list(
                zip(there.read(indices, *recipes), here.read(indices, *recipes), strict=True)
            )
            assert len(pairs) == len(indices) * len(recipes)
            for found, expected in pairs:
                assert (found.index, found.pts_seconds) == (expected.index, expected.pts_seconds)
                np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert not there.is_partial


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", DecodeError),
        (b"plain text, no video" * 9, UnsupportedError),
        (CARPHONE[:200_000], DecodeError),
    ],
)
def test_errors_of_the_decoder_come_through(data: bytes, error: type[RecordError]) -> None:
    with pytest.raises(error) as here, open_video(data):
        pass
    with pytest.raises(error) as there, opened(data):
        pass
    assert str(there.value) == str(here.value)


def test_limits_hold_in_the_child() -> None:
    with pytest.raises(TooLargeError), opened(CARPHONE, limits=VideoLimits(max_pixels=100)):
        pass
    large = encode("mjpeg", "mov", size=(8192, 4000), num_frames=1, pixel_format="yuvj420p")
    with pytest.raises(OutOfMemoryError), opened(large, memory_bytes=32 * MIB) as video:
        list(video.read([0], SMALL))


def test_the_size_of_the_file_takes_no_memory_of_the_child() -> None:
    with opened(CARPHONE + bytes(256 * MIB), memory_bytes=128 * MIB) as video:
        assert [frame.index for frame in video.read([0, 119], SMALL)] == [0, 119]


def child_of(video: IsolatedVideo) -> int:
    return video._child.pid


def test_a_crash_names_its_signal_and_a_hang_is_a_timeout() -> None:
    with opened(CARPHONE) as video:
        os.kill(child_of(video), signal.SIGSEGV)
        with pytest.raises(CrashedError, match="SIGSEGV"):
            list(video.read([0, 1], SMALL))
    with opened(CARPHONE, timeout_seconds=1) as video:
        pid = child_of(video)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutRecordError, match="stood still for 1 s"):
            list(video.read([0, 1], SMALL))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
