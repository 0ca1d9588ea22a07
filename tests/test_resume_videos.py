"""Scoring runs that are killed at seeded moments: every video exactly once, with its own frames."""

from pathlib import Path

import pytest
from killed_runs import Place, assert_exactly_once, moments, run_and_strike
from s3_server import S3Server
from tiny_checkpoint import tiny_checkpoint
from video_files import encode, first_frames

import effnet_batch
from effnet_batch.models.checkpoints import save_checkpoint

NUM_TWINS = 24
NUM_OTHERS = 24
LEAST_FRAMES = 20


@pytest.fixture
def place(s3: S3Server, s3_prefix: str, tmp_path: Path) -> Place:
    model, info = tiny_checkpoint(0)
    save_checkpoint(str(tmp_path / "tiny.safetensors"), model, info)
    place = Place(
        server=s3,
        prefix=s3_prefix.split("/", 3)[3],
        command=(
            "score",
            f"--checkpoint={tmp_path}/tiny.safetensors",
            "--engine=torch",
            "--sampling=every_nth",
            "--ratio=1",
        ),
        extension="mp4",
        num_twins=NUM_TWINS,
        num_others=NUM_OTHERS,
        rows_per_part=1,
    )
    # Of different lengths, so that a row tells which video it was made of.
    num_videos = NUM_TWINS + NUM_OTHERS
    longest = encode(num_frames=LEAST_FRAMES + num_videos, options={"g": "1"})
    place.fill([first_frames(longest, LEAST_FRAMES + index) for index in range(num_videos)])
    return place


@pytest.mark.slow
def test_scoring_survives_dead_drivers_and_actors(tmp_path: Path, place: Place) -> None:
    actor = "ScoreWorker"
    runs = [
        moments(31, (0.12, 0.15, actor), (0.2, 0.23, actor), (0.28, 0.31, "driver")),
        moments(32, (0.36, 0.39, actor), (0.44, 0.47, actor), (0.52, 0.55, "machine")),
        moments(33, *((low, low + 0.02, actor) for low in (0.6, 0.67, 0.74, 0.81))),
    ]
    assert sum(map(len, runs)) == 10
    snapshots = run_and_strike(tmp_path, place, runs[:2])
    # The rest is decoded in tasks, which die with the driver and outlive an actor.
    snapshots += run_and_strike(tmp_path, place, runs[2:], "--placement=split")
    assert_exactly_once(place, snapshots)

    table = effnet_batch.read_scores(place.output)
    rows = {(row["uri"], row["member"]): row for row in table.to_pylist()}
    num_frames = {
        **{(uri, None): LEAST_FRAMES + i for i, uri in enumerate(place.names("a"))},
        **{(place.tar, name): LEAST_FRAMES + i for i, name in enumerate(place.members())},
        **{(uri, None): LEAST_FRAMES + NUM_TWINS + i for i, uri in enumerate(place.names("z"))},
    }
    assert {key: row["num_frames_used"] for key, row in rows.items()} == num_frames
    for uri, name in zip(place.names("a"), place.members(), strict=True):
        assert rows[uri, None]["score"] == pytest.approx(rows[place.tar, name]["score"], abs=1e-4)
