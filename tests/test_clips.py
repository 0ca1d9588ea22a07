"""Clips of videos: kept as they were shown, and made ready for an epoch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_training import PREPROCESSING, SIDE
from video_files import encode

from effnet_batch.config import AugmentationSettings
from effnet_batch.errors import DecodeError
from effnet_batch.media.sampling import Uniform
from effnet_batch.media.video import open_video
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.show import View, Viewing
from effnet_batch.stages.video import VideoHere
from effnet_batch.storage import StorageOptions
from effnet_batch.training.augmentation import Augmentation
from effnet_batch.training.clips import ShownClips, gather, pack, unpack
from effnet_batch.training.feed import Feed

CHANCES = [field.name for field in dataclasses.fields(Augmentation)]
VIEW = View(sampling=Uniform(num_frames=7), max_clip_frames=3, segment_seconds=0.5)
VIEWING = Viewing(VIEW, (PREPROCESSING,), 2)


def shown_clips() -> ShownClips:
    with open_video(encode(num_frames=30)) as reader:
        stretches, pixels = gather(reader.info, VideoHere(reader, None, StageClock()).show(VIEWING))
        return ShownClips(reader.info, reader.is_partial, stretches, pixels)


def test_what_is_shown_is_kept_as_it_was() -> None:
    clips = shown_clips()
    again = unpack(pack(clips))
    assert again.info == clips.info
    assert [s.shots for s in again.stretches] == [s.shots for s in clips.stretches]
    assert len(again.clips()) == len(clips.clip_lengths) > 2
    for mine, theirs in zip(again.clips(), clips.clips(), strict=True):
        assert (mine == theirs).all()
        assert mine.shape[1:] == (SIDE, SIDE, 3)
    shown = list(again.show(VIEWING))
    assert sum(1 for each in shown if hasattr(each, "shots")) == len(clips.stretches)
    for damaged in (b"", pack(clips)[:-100], json.dumps({}).encode() * 20):
        with pytest.raises(DecodeError, match="stored clips are damaged"):
            unpack(damaged)


def test_reals_are_blended_into_fakes_at_the_side_of_the_epoch(tmp_path: Path) -> None:
    clips = shown_clips()
    path = tmp_path / "clips"
    path.write_bytes(pack(clips))
    rows = {"uri": [str(path)] * 2, "record_id": ["01", "02"], "clip": [0, 1]}
    samples = pa.table({**rows, "label": pa.array([0, 1], pa.int8()), "weight": [0.5, 2.0]})

    def feed(chance: float, epoch: int) -> list[dict[str, Any]]:
        made = Feed(
            storage=StorageOptions(),
            augmentation=AugmentationSettings(**dict.fromkeys(CHANCES, 0.0)),
            self_blended=chance,
            resolutions=("0:24", "1:32"),
            seed=0,
            epoch=epoch,
        )(samples)
        return made.to_pylist()

    real, fake = feed(0.0, 1)
    shown = [clip.tobytes() for clip in clips.clips()]
    assert [real["label"], fake["label"]] == [0, 1]
    assert [real["pixels"], fake["pixels"]] == shown[:2]
    blended, untouched = feed(1.0, 1)
    assert (blended["label"], blended["weight"], untouched) == (1, 0.5, fake)
    assert blended["shape"] == real["shape"]
    assert blended["pixels"] != real["pixels"]
    assert [row["shape"][1:] for row in feed(0.0, 0)] == [[24, 24, 3]] * 2
