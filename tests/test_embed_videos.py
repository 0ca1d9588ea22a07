"""The embedding job on videos from end to end: whole frames and faces, upkeep, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from shard_files import make_tar
from test_embed_video_stage import CARPHONE, plain_embeddings, plain_frames
from video_files import encode

import effnet_batch
from effnet_batch.cli import main
from effnet_batch.config import EmbedConfig, ScoreConfig
from effnet_batch.errors import ConfigError, FingerprintError, InputError
from effnet_batch.media.faces import MODEL_VARIABLE, FaceDetector, FaceSettings, crop_face
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.engine import build_engine
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.pipelines.embed_videos import resolve_videos
from effnet_batch.pipelines.maintain import compact, forget
from effnet_batch.pipelines.score_resolve import resolve_scoring
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify

MODEL = {"model": "efficientnet_lite0", "engine": "torch", "max_failures": 1.0}
ENGINE = {"engine": "torch", "batch_size": 4}
STATUSES = {
    "carphone.mp4": "ok",
    "pattern.webm": "ok",
    "cut.mp4": "decode_error",
    "text.mp4": "unsupported",
    "shard.tar/a/carphone.mp4": "ok",
    "shard.tar/b/broken.mp4": "unsupported",
}


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    files = {
        "carphone.mp4": CARPHONE,
        "pattern.webm": encode("libvpx-vp9", "webm", num_frames=10),
        "cut.mp4": CARPHONE[:200_000],
        "text.mp4": b"no video at all",
        "notes.txt": b"left out",
        "shard.tar": make_tar([("a/carphone.mp4", CARPHONE), ("b/broken.mp4", b"x" * 500)]),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def embedded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, which says itself that it holds videos, embedded by 8 frames of each."""
    output = tmp_path_factory.mktemp("embedded") / "out"
    summary = effnet_batch.embed(str(folder), str(output), num_frames=8, **MODEL)
    assert (summary.state, summary.num_new_records) == ("complete", len(STATUSES))
    assert set(summary.stage_seconds) == {"read", "decode", "model", "write"}
    return output


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        "/".join(filter(None, (row["uri"].rsplit("/", 1)[-1], row["member"]))): row for row in rows
    }


def all_rows(output: Path) -> dict[str, dict[str, Any]]:
    return by_name(effnet_batch.read_scores(str(output)).to_pylist())


def test_every_video_has_one_vector_or_says_why_not(embedded: Path) -> None:
    rows = all_rows(embedded)
    assert {name: row["status"] for name, row in rows.items()} == STATUSES
    for row in rows.values():
        assert (row["embedding"] is not None) == (row["status"] == "ok")
        assert bool(row["error_message"]) == (row["status"] != "ok")
    assert (rows["pattern.webm"]["codec"], rows["pattern.webm"]["num_frames_used"]) == ("vp9", 8)
    report = verify(str(embedded), is_deep=True)
    assert report.is_proven, report
    assert (report.num_sources, report.num_failed) == (5, 3)


def test_read_embeddings_gives_the_vectors_of_a_plain_decode(embedded: Path) -> None:
    table = effnet_batch.read_embeddings(str(embedded))
    vectors = effnet_batch.embedding_matrix(table)
    assert (vectors.shape, vectors.dtype) == ((3, 1280), np.float32)
    model = effnet_batch.load_model("efficientnet_lite0")
    engine = build_engine(model, model.weights_info.preprocessing, engine="torch")
    expected = plain_embeddings(plain_frames(CARPHONE, [i * 15 for i in range(8)]), engine)
    rows = by_name(table.to_pylist())
    for name in ("carphone.mp4", "shard.tar/a/carphone.mp4"):
        np.testing.assert_allclose(rows[name]["embedding"], expected.mean(axis=0), atol=1e-5)


def test_a_second_run_does_nothing_and_what_differs_is_refused(
    folder: Path, embedded: Path, tmp_path: Path
) -> None:
    before = sorted((embedded / "data").iterdir())
    summary = effnet_batch.embed(str(folder), str(embedded), num_frames=8, **MODEL)
    assert (summary.state, summary.num_new_records) == ("complete", 0)
    assert sorted((embedded / "data").iterdir()) == before
    with pytest.raises(FingerprintError, match="sampling"):
        effnet_batch.embed(str(folder), str(embedded), num_frames=9, **MODEL)
    with pytest.raises(ConfigError, match="holds the output of videos, not of images"):
        effnet_batch.embed(str(folder), str(embedded), medium="image", **MODEL)
    with pytest.raises(ConfigError, match="'embed', not 'score'"):
        effnet_batch.score(str(folder), str(embedded), checkpoint=["any"])
    with pytest.raises(ConfigError, match="top_k, logits say nothing of videos"):
        effnet_batch.embed(str(folder), str(tmp_path / "out"), top_k=3, logits=True)
    with pytest.raises(ConfigError, match="ratio, faces say nothing of images"):
        effnet_batch.embed(
            str(folder), str(tmp_path / "out"), medium="image", ratio=3, faces="yunet"
        )
    with pytest.raises(ConfigError, match="sampling uniform has no ratio"):
        effnet_batch.embed(str(folder), str(tmp_path / "out"), ratio=3)
    with pytest.raises(ConfigError, match="give --faces yunet"):
        effnet_batch.embed(str(folder), str(tmp_path / "out"), detect_every=2)


def test_a_mixed_folder_says_which_flag(folder: Path, photos: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "in"
    mixed.mkdir()
    (mixed / "carphone.mp4").symlink_to(folder / "carphone.mp4")
    (mixed / "photo.jpg").symlink_to(min(photos.glob("*.jpg")))
    with pytest.raises(InputError, match="1 images and 1 videos; --medium says which"):
        effnet_batch.embed(str(mixed), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()


def test_faces_make_the_vector_where_they_are_wanted(
    folder: Path, tmp_path: Path, face_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(face_model)
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    settings: dict[str, Any] = {"faces": "yunet", "face_model": str(path), "medium": "video"}
    settings |= {"sampling": "every_nth", "ratio": 40, "dtype": "float16", "frames": True}
    out = str(tmp_path / "out")
    # Faces are looked for in tasks then.
    effnet_batch.embed(str(folder), out, placement="split", **settings, **MODEL)
    rows = all_rows(tmp_path / "out")
    assert rows["pattern.webm"]["status"] == "no_face"
    assert {name: row["status"] for name, row in rows.items()} == {
        **STATUSES,
        "pattern.webm": "no_face",
    }
    model = effnet_batch.load_model("efficientnet_lite0")
    engine = build_engine(model, model.weights_info.preprocessing, engine="torch")
    detector = FaceDetector(face_model, FaceSettings())
    crops = []
    for pixels in whole_frames(CARPHONE)[::40]:
        (box,) = detector.detect(pixels)
        crop = crop_face(pixels, box, margin=1.3)
        crops.append(PixelConverter(model.weights_info.preprocessing).fit(crop))
    by_frame = plain_embeddings(crops, engine)
    row = rows["carphone.mp4"]
    assert (row["num_faces"], row["num_tracks"], row["num_frames_used"]) == (3, 1, 3)
    np.testing.assert_allclose(row["embedding"], by_frame.mean(axis=0), rtol=1e-3, atol=1e-5)
    vectors = effnet_batch.embedding_matrix(effnet_batch.read_embeddings(out))
    assert vectors.dtype == np.float16
    frames = effnet_batch.read_frames(out)
    assert len(frames) == 6, "three of the file, three of the shard's member"
    assert frames["frame_index"].to_pylist() == [0, 40, 80] * 2
    assert frames["left"].null_count == 0
    stored = effnet_batch.embedding_matrix(frames)
    np.testing.assert_allclose(stored, np.concatenate([by_frame] * 2), rtol=1e-3, atol=1e-5)
    assert verify(out, is_deep=True).is_proven
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["fingerprint_fields"]["faces"]["margin"] == 1.3
    assert run["fingerprint_fields"]["face_model_sha256"]


def whole_frames(data: bytes) -> list[np.ndarray]:
    from video_files import decode_plainly

    return [pixels for _, pixels in decode_plainly(data)]


def test_an_output_is_looked_after_like_one_of_images(embedded: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["retry", str(embedded), "--status", "unsupported"])
    assert done.exit_code == 0, done.output
    rows = all_rows(embedded)
    assert {name: row["status"] for name, row in rows.items()} == STATUSES
    redone = {name for name, row in rows.items() if row["attempt"] == 2}
    assert redone == {"text.mp4", "shard.tar/a/carphone.mp4", "shard.tar/b/broken.mp4"}
    assert verify(str(embedded)).num_superseded == 3
    assert compact(str(embedded))[1] == 1
    erased = tmp_path / "erase.txt"
    erased.write_text(rows["pattern.webm"]["uri"])
    assert forget(str(embedded), str(erased))["rows erased"] == 1
    assert set(all_rows(embedded)) == set(STATUSES) - {"pattern.webm"}
    assert verify(str(embedded), is_deep=True).is_proven


def test_stored_frames_are_those_that_a_classifier_of_the_backbone_wants(tmp_path: Path) -> None:
    backbone = effnet_batch.load_model("efficientnet_lite0")
    info = backbone.weights_info
    model = SequenceClassifier(
        SequenceConfig(
            architecture=info.architecture, padding=info.padding, bn_eps=info.bn_eps, lstm_layers=1
        )
    )
    described = CheckpointInfo(
        name="head",
        sequence=model.config,
        preprocessing=info.preprocessing,
        sampling={"strategy": "uniform", "num_frames": 8, "max_clip_frames": 4},
        faces={"detector": "none"},
        aggregation=AggregationConfig(steps="last"),
    )
    stored = {}
    for name in ("random", "same"):
        save_checkpoint(str(tmp_path / f"{name}.safetensors"), model, described)
        config = ScoreConfig.from_flat(
            {"checkpoint": [str(tmp_path / f"{name}.safetensors")], "embeddings": True, **ENGINE}
        )
        (stored[name],) = resolve_scoring(config).frames.values()
        model.take_backbone(backbone)
    settings = {"model": "efficientnet_lite0", "frames": True, "num_frames": 8, **ENGINE}
    (mine,) = resolve_videos(EmbedConfig.from_flat(settings)).frames.values()
    assert mine == stored["same"]
    differing = {key for key in mine if mine[key] != stored["random"][key]}
    assert differing == {"encoder_sha256"}
