"""The scoring job from end to end: real clips, shards, bad files; resume, verify, upkeep."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from shard_files import make_tar, make_zip
from tiny_checkpoint import PREPROCESSING, plain_logits, sigmoid, tiny_checkpoint
from video_files import CLIPS, encode, sound_only

import effnet_batch
from effnet_batch.cli import main
from effnet_batch.errors import ConfigError, FingerprintError
from effnet_batch.media.video import open_video
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.forgery_registry import FORGERY_REGISTRY
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.pipelines.maintain import compact, forget, output_status
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
STATUSES = {
    "bikes.mp4": "ok",
    "carphone.mp4": "ok",
    "cut.mkv": "ok",
    "cut.mp4": "decode_error",
    "empty.mp4": "decode_error",
    "one_frame.mp4": "ok",
    "picture.mp4": "unsupported",
    "silent.webm": "ok",
    "sound_only.mp4": "decode_error",
    "text.mp4": "unsupported",
    "shard.tar/a/carphone.mp4": "ok",
    "shard.tar/b/broken.mp4": "unsupported",
    "shard.zip/carphone.mp4": "ok",
}


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    matroska = encode(container="matroska", num_frames=100, options={"g": "10"}, with_audio=True)
    files = {
        "bikes.mp4": (CLIPS / "bikes.mp4").read_bytes(),
        "carphone.mp4": CARPHONE,
        "cut.mkv": matroska[: len(matroska) * 6 // 10],
        "cut.mp4": CARPHONE[:200_000],
        "empty.mp4": b"",
        "one_frame.mp4": encode(num_frames=1),
        "picture.mp4": picture.getvalue(),
        "silent.webm": encode("libvpx-vp9", "webm", num_frames=10),
        "sound_only.mp4": sound_only(),
        "text.mp4": b"no video at all",
        "notes.txt": b"left out",
        "shard.tar": make_tar([("a/carphone.mp4", CARPHONE), ("b/broken.mp4", b"x" * 500)]),
        "shard.zip": make_zip([("carphone.mp4", CARPHONE), ("readme.txt", b"left out")]),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, SequenceClassifier]:
    model, info = tiny_checkpoint(0)
    path = str(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")
    save_checkpoint(path, model, info)
    return path, model


@pytest.fixture(scope="module")
def scored(
    folder: Path,
    checkpoint: tuple[str, SequenceClassifier],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("scored") / "out"
    summary = effnet_batch.score(
        str(folder), str(output), checkpoint=[checkpoint[0]], engine="torch", max_failures=1.0
    )
    assert (summary.state, summary.num_new_records) == ("complete", len(STATUSES))
    assert set(summary.stage_seconds) == {"read", "decode", "model", "write"}
    return output


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    rows = effnet_batch.read_scores(str(output)).to_pylist()
    return {
        "/".join(filter(None, (row["uri"].rsplit("/", 1)[-1], row["member"]))): row for row in rows
    }


def test_every_video_has_its_row_and_its_status(scored: Path) -> None:
    rows = rows_of(scored)
    assert {name: row["status"] for name, row in rows.items()} == STATUSES
    for name, row in rows.items():
        is_ok = row["status"] == "ok"
        for column in ("score", "logit", "verdict", "tracks", "aggregation", "checkpoints"):
            assert (row[column] is not None) == is_ok, (name, column)
        assert bool(row["error_message"]) != is_ok
    partial = {name for name, row in rows.items() if row["is_partial"]}
    assert partial == {"cut.mkv"}
    assert rows["cut.mkv"]["num_frames_used"] == 8
    assert rows["one_frame.mp4"]["num_frames_used"] == 1
    assert rows["silent.webm"]["codec"] == "vp9"
    report = verify(str(scored), is_deep=True)
    assert report.is_proven, report
    assert (report.num_sources, report.num_failed) == (12, 6)


def test_the_score_is_that_of_plain_pytorch(
    scored: Path, checkpoint: tuple[str, SequenceClassifier]
) -> None:
    with open_video(CARPHONE) as reader:
        indices = [i * 120 // 8 for i in range(8)]
        frames = np.stack([frame.pixels for frame in reader.read(indices, PREPROCESSING)])
    clips = plain_logits(checkpoint[1], PREPROCESSING, [frames[:3], frames[3:6], frames[6:]])
    expected = np.mean([sigmoid(clip[-1]) for clip in clips])
    rows = rows_of(scored)
    for name in ("carphone.mp4", "shard.tar/a/carphone.mp4", "shard.zip/carphone.mp4"):
        assert rows[name]["score"] == pytest.approx(expected, abs=1e-4)
        assert rows[name]["verdict"] == ("fake" if expected >= 0.5 else "no_forgery_found")
    assert len(rows["carphone.mp4"]["tracks"][0]["frames"]) == 8


def test_a_second_run_does_nothing_and_other_numbers_are_refused(
    folder: Path, scored: Path, checkpoint: tuple[str, SequenceClassifier]
) -> None:
    before = sorted((scored / "data").iterdir())
    settings = {"checkpoint": [checkpoint[0]], "engine": "torch"}
    summary = effnet_batch.score(str(folder), str(scored), **settings)
    assert (summary.state, summary.num_new_records) == ("complete", 0)
    assert sorted((scored / "data").iterdir()) == before
    with pytest.raises(FingerprintError, match="thresholds"):
        effnet_batch.score(str(folder), str(scored), fake_threshold=0.9, **settings)
    with pytest.raises(ConfigError, match="'score', not 'embed'"):
        effnet_batch.embed(str(folder), str(scored))


def test_an_output_is_looked_after_like_one_of_embeddings(scored: Path, tmp_path: Path) -> None:
    facts = output_status(str(scored)).facts()
    assert facts["checkpoints"] == "tiny-0"
    done = CliRunner().invoke(main, ["retry", str(scored), "--status", "unsupported"])
    assert done.exit_code == 0, done.output
    rows = rows_of(scored)
    assert {name: row["status"] for name, row in rows.items()} == STATUSES
    assert {name for name, row in rows.items() if row["attempt"] == 2} == {
        "picture.mp4",
        "text.mp4",
        "shard.tar/a/carphone.mp4",
        "shard.tar/b/broken.mp4",
    }
    assert verify(str(scored)).num_superseded == 4
    assert compact(str(scored))[1] == 1
    erased = tmp_path / "erase.txt"
    erased.write_text(rows["bikes.mp4"]["uri"])
    assert forget(str(scored), str(erased))["rows erased"] == 1
    assert set(rows_of(scored)) == set(STATUSES) - {"bikes.mp4"}
    assert verify(str(scored), is_deep=True).is_proven


def test_verify_sees_a_score_that_was_made_up(scored: Path) -> None:
    import pyarrow.parquet as pq

    (part,) = (scored / "data").iterdir()
    whole = part.read_bytes()
    table = pq.read_table(part)
    rows = table.to_pylist()
    next(row for row in rows if row["status"] != "ok")["score"] = 0.5
    pq.write_table(type(table).from_pylist(rows, table.schema), part)
    assert any("made up" in problem for problem in verify(str(scored), is_deep=True).problems)
    part.write_bytes(whole)


def test_several_checkpoints_are_an_ensemble(
    checkpoint: tuple[str, SequenceClassifier], tmp_path: Path
) -> None:
    model, info = tiny_checkpoint(1)
    save_checkpoint(str(tmp_path / "second.safetensors"), model, info)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "carphone.mp4").write_bytes(CARPHONE)
    settings = {
        "checkpoint": [checkpoint[0], str(tmp_path / "second.safetensors")],
        "engine": "torch",
        "sampling": "every_nth",
        "ratio": 40,
        "max_clip_frames": 2,
        "track_aggregation": "mean",
        "fake_threshold": 0.9,
        "no_forgery_threshold": 0.1,
    }
    folders = str(tmp_path / "in"), str(tmp_path / "out")
    effnet_batch.score(*folders, **settings, store_crops=2)
    row = rows_of(tmp_path / "out")["carphone.mp4"]
    members = row["checkpoints"]
    assert [one["checkpoint"] for one in members] == ["tiny-0", "tiny-1"]
    assert row["score"] == pytest.approx(np.mean([one["score"] for one in members]), abs=1e-6)
    assert row["num_frames_used"] == 3
    assert row["aggregation"] == "mean of 2 checkpoints: steps=last clips=mean tracks=mean"
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    (first, second) = run["fingerprint_fields"]["checkpoints"]
    assert first["sampling"] == {"strategy": "every_nth", "ratio": 40, "max_clip_frames": 2}
    assert first["checkpoint_sha256"] != second["checkpoint_sha256"]
    scores = sorted((frame["score"] for frame in row["tracks"][0]["frames"]), reverse=True)
    assert [crop["score"] for crop in row["crops"]] == scores[:2]
    # How many crops are kept decides no number, so that an output may go on with fewer.
    assert effnet_batch.score(*folders, **settings).num_new_records == 0
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", folders[1], "--html", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.count("<img ") == 4, "one video with two crops in two tables"
    assert f"{row['score']:.3f}" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no checkpoint is named"),
        ({"checkpoint": ["selimsef"]}, "neither a file nor a published name"),
        ({"ratio": 5}, "sampling uniform has no ratio; its parameters are num_frames"),
        ({"detect_every": 2}, "give --faces yunet"),
        ({"sampling": "clips", "num_frames": 40, "max_frames": 20}, "longer than max_frames"),
        ({"fake_threshold": 0.2}, "thresholds must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any],
    message: str,
    folder: Path,
    checkpoint: tuple[str, SequenceClassifier],
    tmp_path: Path,
) -> None:
    if settings:
        settings = {"checkpoint": [checkpoint[0]], **settings}
    with pytest.raises(ConfigError, match=message):
        effnet_batch.score(str(folder), str(tmp_path / "out"), **settings)


def test_the_table_of_checkpoints_has_every_published_one() -> None:
    done = CliRunner().invoke(main, ["checkpoints"])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) == 1 + len(FORGERY_REGISTRY)
    assert {line.split()[0] for line in lines[1:]} == set(FORGERY_REGISTRY)
