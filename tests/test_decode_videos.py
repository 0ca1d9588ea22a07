"""What a decode task sends, without Ray: the parts of a video, joined to parcels."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_score_stage import SOURCE
from video_files import CLIPS, encode

from effnet_batch.config import VideoLimitSettings
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import EveryNth, Uniform
from effnet_batch.media.video import VideoInfo, open_video
from effnet_batch.pipelines import decode_videos
from effnet_batch.pipelines.decode_videos import (
    DecodeTask,
    Ended,
    Fetched,
    Part,
    decode_video,
)
from effnet_batch.stages.read import Source
from effnet_batch.stages.show import Pictures, Stretch, View, Viewing
from effnet_batch.storage import StorageOptions

LARGE = Preprocessing(image_size=224, resize_size=224, interpolation="bilinear")
SMALL = Preprocessing(image_size=64, resize_size=64, interpolation="bicubic")
VIEWINGS = (
    Viewing(View(sampling=EveryNth(ratio=2), segment_seconds=2.0), (LARGE, SMALL), 16),
    Viewing(View(sampling=Uniform(num_frames=5)), (SMALL,), 4),
)
TASK = DecodeTask(
    storage=StorageOptions(), limits=VideoLimitSettings(), viewings=VIEWINGS, face_model=None
)


def parcels(content: bytes | None, source: Source = SOURCE, **settings: Any) -> list[Any]:
    array = None if content is None else np.frombuffer(content, np.uint8)
    return list(decode_video(TASK, source, array, settings.get("is_suspect", False)))


def parts(sent: list[Any]) -> list[Part]:
    return [part for parcel in sent for part in parcel]


@pytest.mark.parametrize("is_suspect", [False, True])
def test_a_video_is_sent_as_it_is_shown(is_suspect: bool) -> None:
    data = (CLIPS / "carphone_pristine.mp4").read_bytes()
    sent = parcels(data, is_suspect=is_suspect)
    fetched, info, *shown = parts(sent)
    assert fetched == Fetched(len(data), None)
    with open_video(data) as reader:
        assert info == reader.info
        times = reader.pts_seconds
        ends = [number for number, part in enumerate(shown) if isinstance(part, Ended)]
        assert [shown[end] for end in ends] == [Ended(False, None)] * 2
        assert ends[1] == len(shown) - 1
        wanted = [(0, LARGE), (0, SMALL), (1, SMALL)]
        groups = (shown[: ends[0]], shown[ends[0] + 1 : ends[1]])
        for viewing, preprocessing in wanted:
            stretches = [part for part in groups[viewing] if isinstance(part, Stretch)]
            recipe = VIEWINGS[viewing].recipes.index(preprocessing)
            pictures = [
                part.pixels
                for part in groups[viewing]
                if isinstance(part, Pictures) and part.recipe == recipe
            ]
            assert max(map(len, pictures)) == VIEWINGS[viewing].num_together
            indices = np.concatenate([stretch.expected for stretch in stretches])
            frames = [frame.pixels for frame in reader.read(indices, preprocessing)]
            np.testing.assert_array_equal(np.concatenate(pictures), np.stack(frames))
            shots = [shot for stretch in stretches for shot in stretch.shots]
            assert [shot.pts_seconds for shot in shots] == times[indices].tolist()
    # 16 pictures of 224 pixels are over 2 MiB, so that none waits for others.
    sizes = [sum(p.pixels.nbytes for p in parcel if isinstance(p, Pictures)) for parcel in sent]
    assert len(sizes) > 2
    assert max(sizes) < (2 << 20) + 16 * 3 * 224**2


def test_a_failure_is_the_last_part(tmp_path: Path) -> None:
    (empty,) = parcels(b"")
    assert isinstance(empty[0], Fetched)
    assert (empty[0].size_bytes, empty[0].error) == (0, None)
    assert isinstance(empty[1], Ended)
    assert type(empty[1].error).__name__ == "DecodeError"
    path = tmp_path / "gone.mp4"
    source = Source(**{**vars(SOURCE), "uri": str(path), "source_version": None})
    (gone,) = parcels(None, source)
    assert [type(part) for part in gone] == [Fetched]
    assert type(gone[0].error).__name__ == "FetchError"
    path.write_bytes(encode(num_frames=9))
    fetched, info, *_ = parts(parcels(None, source))
    assert fetched == Fetched(path.stat().st_size, None)
    assert isinstance(info, VideoInfo)


def test_a_large_member_lies_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(num_frames=9)
    spooled = []

    def spool(pieces: Any) -> Any:
        spooled.append(sum(len(piece) for piece in pieces))
        raise decode_videos.RecordError("no room")

    monkeypatch.setattr(decode_videos, "MAX_HELD_BYTES", len(data))
    monkeypatch.setattr(decode_videos, "spool", spool)
    assert len(parts(parcels(data))) > 2
    monkeypatch.setattr(decode_videos, "MAX_HELD_BYTES", len(data) - 1)
    (failed,) = parts(parcels(data))
    assert spooled == [len(data)]
    assert isinstance(failed, Fetched)
    assert (failed.size_bytes, str(failed.error)) == (len(data), "no room")


def test_a_process_that_decodes_loads_no_model() -> None:
    script = (
        "import sys, effnet_batch.pipelines.decode_videos\n"
        "assert not {'torch', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
