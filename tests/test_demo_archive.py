"""The archive of ``make demo``: what it holds, and that it is made once."""

import collections
import csv
import sys
from pathlib import Path

import av
import numpy as np

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import demo_archive  # noqa: E402


def pixels(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_the_archive_of_the_demo(tmp_path: Path) -> None:
    names = ("camera", "carphone", "china")  # a grey photograph, a film, a photograph
    demo_archive.make_archive(tmp_path, names=names, num_clips=2)
    rows = {
        place: list(csv.DictReader((tmp_path / place / "videos.csv").read_text().splitlines()))
        for place in ("train", "test")
    }
    groups = {place: {row["group"] for row in listed} for place, listed in rows.items()}
    assert groups == {"train": {"camera"}, "test": {"carphone", "china"}}
    for place, listed in rows.items():
        assert {row["uri"] for row in listed} == {
            path.name for path in (tmp_path / place).glob("*.mp4")
        }
        counts = collections.Counter((row["group"], row["label"]) for row in listed)
        assert set(counts.values()) == {2}
        clips = {row["uri"]: pixels(tmp_path / place / row["uri"]).astype(int) for row in listed}
        for row in listed:
            clip = clips[row["uri"]]
            assert clip.shape == (8, 224, 224, 3)
            if row["label"] == "fake":
                change = np.abs(clip - clips[row["uri"].replace("fake", "real")]).mean(axis=(0, 3))
                assert change.max() > 40  # seen at a glance

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    demo_archive.make_archive(tmp_path, names=names, num_clips=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before


def test_nothing_held_out_is_seen_in_training() -> None:
    splits = collections.Counter(map(demo_archive.split_of, demo_archive.ORIGINALS))
    assert set(splits) == {"train", "val", "test"}
    assert splits["train"] + splits["val"] >= 8
    assert splits["test"] >= 3
