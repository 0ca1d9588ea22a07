"""The grid of distortions from end to end: a detector of loud colours on real clips."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from s3_server import S3Server
from sklearn.metrics import roc_auc_score
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

import effnet_batch
from effnet_batch.cli import main
from effnet_batch.errors import ConfigError
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.pipelines.robustness import robustness
from effnet_batch.pipelines.session import ray_session


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of which one is no video, and their labels."""
    root = tmp_path_factory.mktemp("videos")
    lines = ["uri,label,group,split"]
    for number in range(6):
        clip = encode(num_frames=4 + number, size=(96 + 16 * number, 64))
        (root / f"{number}.mp4").write_bytes(clip if number != 5 else b"no video")
        label = "fake" if number % 2 else "real"
        lines.append(f"{number}.mp4,{label},g{number // 2},{'test' if number else 'train'}")
    (root / "videos.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    model, info = tiny_checkpoint()
    with torch.no_grad():
        # Random features are next to nothing; so the pictures count.
        model.encoder.bottleneck.get_submodule("conv").weight *= 1e9
    save_checkpoint(str(path), model, info)
    return str(path)


def test_a_grid_is_scored_measured_and_taken_up_again(
    videos: Path, checkpoint: str, tmp_path: Path
) -> None:
    output = tmp_path / "robust"
    line = ["robustness", str(videos / "videos.csv"), str(output), "--checkpoint", checkpoint]
    line += ["--split", "test", "--resamples", "20", "--engine", "torch"]
    done = CliRunner().invoke(
        main, [*line, "--distortions", "contrast", "--levels", "5"], catch_exceptions=False
    )
    assert done.exit_code == 3, done.output  # one of six is no video
    clean = output / "clean" / "run.json"
    first = json.loads(clean.read_text())["run_id"]

    # More of the grid: what is there stays.
    more = [*line, "--distortions", "contrast, compression", "--levels", "5,1"]
    more += ["--max-failures", "1"]
    done = CliRunner().invoke(main, more, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(clean.read_text())["run_id"] == first
    document: dict[str, Any] = json.loads((output / "robustness.json").read_text())
    names = ["clean", "contrast-1", "contrast-5", "compression-1", "compression-5"]
    assert [cell["name"] for cell in document["cells"]] == names
    assert [cell["parameter"] for cell in document["cells"]] == [None, 0.85, 0.35, 30, 40]

    logits: dict[str, dict[str, float]] = {}
    for cell in document["cells"]:
        table = effnet_batch.read_scores(str(output / cell["name"])).to_pylist()
        rows = {Path(row["uri"]).name: row for row in table}
        assert len(rows) == 6
        assert rows["5.mp4"]["status"] == "unsupported"
        logits[cell["name"]] = {name: row["logit"] for name, row in rows.items() if row["logit"]}
        judged = [rows[f"{number}.mp4"] for number in (1, 2, 3, 4)]
        truth = [row["label"] == "fake" for row in judged]
        auc = roc_auc_score(truth, [row["score"] for row in judged])
        assert cell["auc"]["value"] == pytest.approx(auc)
        assert cell["auc"]["low"] <= auc <= cell["auc"]["high"]
        assert (cell["num_fake"], cell["num_real"], cell["num_groups"]) == (2, 2, 3)
        assert cell["without_score"] == {"unsupported": {"fake": 1}}
    for name in names[1:]:
        assert logits[name] != logits["clean"]
        assert json.loads((output / name / "run.json").read_text())["resolved"]["distortion"] == (
            name.replace("-", ":")
        )
    page = (output / "index.html").read_text()
    assert "<svg" in page
    assert "parameter 0.85" in page
    assert "1 without a score" in page
    for word in ("contrast", "compression"):
        assert word in done.output
        assert f"<td>{word}</td>" in page

    # A cell is what score makes of it.
    score = tmp_path / "score"
    effnet_batch.score(
        str(videos), str(score), checkpoint=[checkpoint], distortion="contrast:5", engine="torch"
    )
    found = {
        Path(row["uri"]).name: row["logit"]
        for row in effnet_batch.read_scores(str(score)).to_pylist()
        if row["logit"]
    }
    assert found == pytest.approx(logits["contrast-5"], abs=1e-3)


def test_signed_urls_are_taken_from_the_list_for_every_cell(
    videos: Path, checkpoint: str, s3: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    lines = ["uri,label"]
    for name, label in (("0.mp4", "real"), ("1.mp4", "fake")):
        key = f"{s3_prefix.removeprefix(f's3://{s3.bucket}/')}{name}"
        s3.put(key, (videos / name).read_bytes())
        place = {"Bucket": s3.bucket, "Key": key}
        lines.append(f"{s3.client().generate_presigned_url('get_object', Params=place)},{label}")
    listed = tmp_path / "videos.csv"
    listed.write_text("\n".join(lines))
    found = robustness(
        str(listed),
        str(tmp_path / "robust"),
        distortions=["contrast"],
        levels=[1],
        num_resamples=0,
        checkpoint=[checkpoint],
        engine="torch",
        allow_private_hosts=True,
    )
    assert [(cell.num_fake, cell.num_real) for cell in found.cells] == [(1, 1)] * 2
    for name in ("clean", "contrast-1"):
        rows = effnet_batch.read_scores(str(tmp_path / "robust" / name)).to_pylist()
        assert [row["status"] for row in rows] == ["ok"] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distortions": ["fog"]}, "distortion must be one of"),
        ({"levels": [0]}, "level must be"),
        ({"levels": []}, "no distortion and level"),
        ({"distortion": "noise:1"}, "--distortion is for score"),
        ({"impute": 2.0}, "impute must lie"),
    ],
)
def test_a_grid_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        robustness("videos/", str(tmp_path / "robust"), **settings)
    assert not (tmp_path / "robust").exists()
