"""The rescoring job from end to end: against full runs, killed, resumed, refused."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from embed_process import EmbedProcess
from manifest_tables import read_manifest, write_manifest
from s3_server import S3Server
from shard_files import make_tar
from test_rescore_stage import assert_close
from tiny_checkpoint import tiny_checkpoint
from video_files import CLIPS, encode

import effnet_batch
from effnet_batch import schema
from effnet_batch.cli import main
from effnet_batch.errors import ConfigError, FingerprintError, InputError
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify
from effnet_batch.sink import OutputPaths, PartWriter, read_metadata
from effnet_batch.storage import Storage

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
SETTINGS: dict[str, Any] = {"engine": "torch", "segment_seconds": 2.0, "max_failures": 1.0}
NUM_CLONES = 40


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two backbones, and two other heads on the first: an LSTM, and none."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first, info = tiny_checkpoint(0)
    models = {"first": (first, info), "second": tiny_checkpoint(1)}
    tuned, _ = tiny_checkpoint(2)
    tuned.encoder.load_state_dict(first.encoder.state_dict())
    models["tuned"] = (tuned, dataclasses.replace(info, name="tuned"))
    plain = SequenceConfig(architecture="mobilenet_v2", bottleneck_dim=16)
    frames, frames_info = tiny_checkpoint(
        3, sequence=plain, aggregation=AggregationConfig(), name="frames"
    )
    frames.encoder.load_state_dict(first.encoder.state_dict())
    models["frames"] = (frames, frames_info)
    for name, (model, described) in models.items():
        save_checkpoint(str(folder / f"{name}.safetensors"), model, described)
    return {name: str(folder / f"{name}.safetensors") for name in models}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    files = {
        "bikes.mp4": (CLIPS / "bikes.mp4").read_bytes(),
        "empty.mp4": b"",
        "one_frame.mp4": encode(num_frames=1),
        "shard.tar": make_tar([("a.mp4", CARPHONE), ("b.mp4", b"x" * 500)]),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def stored(
    videos: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("stored") / "out"
    both = [checkpoints["first"], checkpoints["second"]]
    effnet_batch.score(str(videos), str(output), checkpoint=both, embeddings=True, **SETTINGS)
    assert verify(str(output), is_deep=True).is_proven
    return output


def rows_of(output: Path | str) -> dict[str, dict[str, Any]]:
    rows = effnet_batch.read_scores(str(output)).to_pylist()
    return {
        "/".join(filter(None, (row["uri"].rsplit("/", 1)[-1], row["member"]))): row for row in rows
    }


def test_verdicts_are_those_of_a_full_run(
    videos: Path, stored: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    heads = [checkpoints[name] for name in ("tuned", "second", "frames")]
    given = {"checkpoint": heads, "track_aggregation": "mean", "fake_threshold": 0.6}
    full, again = tmp_path / "full", tmp_path / "again"
    effnet_batch.score(str(videos), str(full), **given, **SETTINGS)
    summary = effnet_batch.rescore(str(stored), str(again), **given)
    assert (summary.state, summary.num_new_records) == ("complete", 5)
    assert set(summary.stage_seconds) == {"read", "model", "write"}
    expected, found = rows_of(full), rows_of(again)
    assert {row["status"] for row in found.values()} == {"ok", "decode_error", "unsupported"}
    for row in (*expected.values(), *found.values()):
        del row["run_id"], row["fingerprint"]
    assert_close(found, expected)
    assert len(found["shard.tar/a.mp4"]["tracks"][0]["frames"]) == 16
    report = verify(str(again), is_deep=True)
    assert report.is_proven
    assert (report.num_sources, report.num_failed) == (4, 2)
    assert not (again / "frames").exists()

    # Again: nothing is done, other numbers are refused, and what came since is taken in.
    assert effnet_batch.rescore(str(stored), str(again), **given).num_new_records == 0
    with pytest.raises(FingerprintError, match="thresholds"):
        effnet_batch.rescore(str(stored), str(again), **{**given, "fake_threshold": 0.7})
    done = CliRunner().invoke(main, ["retry", str(again), "--status", "unsupported"])
    assert done.exit_code == 2
    done = CliRunner().invoke(main, ["retry", str(stored), "--status", "unsupported"])
    assert done.exit_code == 0, done.output
    assert effnet_batch.rescore(str(stored), str(again), **given).num_new_records == 2
    assert verify(str(again)).is_proven
    assert {n: row["attempt"] for n, row in rows_of(again).items() if row["member"]} == {
        "shard.tar/a.mp4": 2,
        "shard.tar/b.mp4": 2,
    }


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("second", None),
        ("other", "encoder_sha256: stored"),
        ("resized", "preprocessing: stored"),
        ("sampled", "sampling: stored"),
        ("faced", "faces: stored None"),
    ],
)
def test_embeddings_of_another_kind_are_refused(
    checkpoint: str,
    message: str | None,
    stored: Path,
    checkpoints: dict[str, str],
    tmp_path: Path,
) -> None:
    if message is None:
        effnet_batch.rescore(str(stored), str(tmp_path / "out"), checkpoint=[checkpoints["second"]])
        return
    model, info = tiny_checkpoint(7 if checkpoint == "other" else 0)
    changes: dict[str, dict[str, Any]] = {
        "other": {},
        "resized": {"preprocessing": dataclasses.replace(info.preprocessing, resize_size=70)},
        "sampled": {"sampling": {"strategy": "uniform", "num_frames": 9}},
        "faced": {"faces": {"detector": "yunet"}},
    }
    path = str(tmp_path / "other.safetensors")
    save_checkpoint(path, model, dataclasses.replace(info, **changes[checkpoint]))
    with pytest.raises(FingerprintError, match=message):
        effnet_batch.rescore(str(stored), str(tmp_path / "out"), checkpoint=[path])


def test_an_output_without_frames_is_refused(
    videos: Path, stored: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    given = {"checkpoint": [checkpoints["second"]]}
    effnet_batch.rescore(str(stored), str(tmp_path / "again"), **given)
    with pytest.raises(InputError, match="score --embeddings"):
        effnet_batch.rescore(str(tmp_path / "again"), str(tmp_path / "more"), **given)
    with pytest.raises(ConfigError, match="no checkpoint is named"):
        effnet_batch.rescore(str(stored), str(tmp_path / "more"))
    # Frames of some rows and none of others would make an output that nobody can rescore.
    both = [checkpoints["first"], checkpoints["second"]]
    with pytest.raises(FingerprintError, match="embeddings: output has 'float32', this run None"):
        effnet_batch.score(str(videos), str(stored), checkpoint=both, **SETTINGS)


def test_frames_that_embed_stored_are_judged_too(videos: Path, tmp_path: Path) -> None:
    backbone = effnet_batch.load_model("efficientnet_lite0")
    weights = backbone.weights_info
    assert weights is not None
    config = SequenceConfig(
        architecture=weights.architecture,
        padding=weights.padding,
        bn_eps=weights.bn_eps,
        lstm_layers=1,
        lstm_dim=8,
    )
    sampling = {"strategy": "uniform", "num_frames": 6, "max_clip_frames": 4}
    model, info = tiny_checkpoint(
        0, sequence=config, preprocessing=weights.preprocessing, sampling=sampling
    )
    model.take_backbone(backbone)
    path, source = str(tmp_path / "head.safetensors"), str(videos / "shard.tar")
    save_checkpoint(path, model, info)
    engine = {"engine": "torch", "max_failures": 1.0}
    effnet_batch.embed(
        source,
        str(tmp_path / "embedded"),
        medium="video",
        model="efficientnet_lite0",
        frames=True,
        num_frames=6,
        **engine,
    )
    effnet_batch.rescore(str(tmp_path / "embedded"), str(tmp_path / "again"), checkpoint=[path])
    effnet_batch.score(source, str(tmp_path / "full"), checkpoint=[path], **engine)
    expected, found = rows_of(tmp_path / "full"), rows_of(tmp_path / "again")
    assert {row["status"] for row in found.values()} == {"ok", "unsupported"}
    for row in (*expected.values(), *found.values()):
        del row["run_id"], row["fingerprint"]
    assert_close(found, expected)


def clone(stored: Path, root: str, num_clones: int) -> None:
    """Write an output of many parts, each a copy of one video's row and frames."""
    storage, paths = Storage(), OutputPaths(root)
    run = json.loads((stored / "run.json").read_text())
    storage.write(paths.run, json.dumps(run).encode())
    manifest = read_manifest(storage, str(stored)).to_pylist()
    (listed,) = (row for row in manifest if row["uri"].endswith("bikes.mp4"))
    uris = [f"/videos/{number:04}.mp4" for number in range(num_clones)]
    write_manifest(
        storage,
        root,
        pa.Table.from_pylist(
            [{**listed, "uri": uri, "source_id": schema.source_id(uri)} for uri in uris],
            schema.MANIFEST_SCHEMA,
        ),
    )
    parts = sorted((stored / "data").iterdir())
    (row,) = (
        row
        for path in parts
        for row in pq.read_table(path).to_pylist()
        if row["uri"].endswith("bikes.mp4")
    )
    metadata = {**read_metadata(pq.read_schema(parts[0])), "run_id": "clone"}
    metadata.pop("frames", None)
    frames = effnet_batch.read_frames(str(stored))
    frames = frames.filter(pa.compute.equal(frames["record_id"], row["record_id"]))
    for number, uri in enumerate(uris):
        ids = {
            "uri": uri,
            "source_id": schema.source_id(uri),
            "record_id": schema.record_id(uri, None, 0),
        }
        writer = PartWriter(storage, paths, "clone", number, rows_per_part=1, metadata=metadata)
        mine = frames
        for name, value in ids.items():
            place = mine.schema.get_field_index(name)
            mine = mine.set_column(place, mine.field(name), pa.repeat(value, len(mine)))
        table = pa.Table.from_pylist([{**row, **ids}], schema.videos_schema())
        writer.add(table, [mine])


@pytest.mark.parametrize("victim", ["machine", "RescoreWorker"])
def test_a_killed_rescore_goes_on_where_it_was(
    victim: str,
    stored: Path,
    checkpoints: dict[str, str],
    tmp_path: Path,
    s3: S3Server,
    s3_prefix: str,
) -> None:
    clone(stored, f"{s3_prefix}stored", NUM_CLONES)
    prefix = s3_prefix.split("/", 3)[3]
    command = [
        "rescore",
        f"{s3_prefix}stored",
        f"{s3_prefix}out",
        f"--checkpoint={checkpoints['tuned']}",
        "--num-actors=1",
    ]
    is_reached: Callable[[], bool] = lambda: len(s3.keys(f"{prefix}out/data/")) >= 8  # noqa: E731
    with EmbedProcess(s3, tmp_path, *command) as driver:
        driver.wait_until(is_reached)
        if victim == "machine":
            driver.kill_all()
            committed = len(s3.keys(f"{prefix}out/data/"))
            assert 0.1 * NUM_CLONES <= committed <= 0.9 * NUM_CLONES
        else:
            (worker,) = driver.workers(victim)
            worker.kill()
            assert len(s3.keys(f"{prefix}out/data/")) < NUM_CLONES
            assert driver.wait() == 0, driver.output
    if victim == "machine":
        with EmbedProcess(s3, tmp_path, *command) as driver:
            assert driver.wait() == 0, driver.output
            assert f"{NUM_CLONES - committed} records in" in driver.output
    report = verify(f"{s3_prefix}out", is_deep=True)
    assert report.is_proven
    assert (report.num_records, report.num_superseded) == (NUM_CLONES, 0)
    assert len({row["score"] for row in rows_of(f"{s3_prefix}out").values()}) == 1
