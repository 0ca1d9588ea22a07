"""Evaluating and calibrating outputs of scores: joins, slices, missing scores, files."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from tiny_checkpoint import tiny_checkpoint

from effnet_batch import schema
from effnet_batch.errors import ConfigError, InputError
from effnet_batch.models.checkpoints import load_checkpoint, save_checkpoint
from effnet_batch.pipelines.calibrate import calibrate
from effnet_batch.pipelines.evaluate import evaluate
from effnet_batch.sink import part_bytes

RUN_ID = "20260101T000000-000000"


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def write_output(
    root: Path, rows: list[dict[str, Any]], *, checkpoints: list[str] | None = None
) -> str:
    """Writes an output as `score` does, with rows by their file's name."""
    table = []
    for row in rows:
        uri = f"/videos/{row['name']}"
        score = row.get("score")
        frames = [
            {"pts_seconds": float(i), "score": s} for i, s in enumerate(row.get("frames", []))
        ]
        table.append(
            {
                "uri": uri,
                "member": row.get("member"),
                "status": row.get("status", "ok"),
                "score": score,
                "logit": None if score is None else logit(score),
                "tracks": [{"track": 0, "frames": frames}] if frames else None,
                "codec": row.get("codec"),
                **{name: row.get(name) for name in ("label", "group", "split")},
                "run_id": RUN_ID,
                "fingerprint": "f",
                "source_id": schema.source_id(uri),
                "record_id": schema.record_id(uri, row.get("member"), 0),
                "attempt": row.get("attempt", 1),
                "num_source_records": 1,
            }
        )
    (root / "data").mkdir(parents=True)
    for number, columns in enumerate((table[::2], table[1::2])):  # two parts
        part = pa.Table.from_pylist(columns, schema.videos_schema())
        name = f"part-{RUN_ID}-{number:06}-0000.parquet"
        (root / "data" / name).write_bytes(part_bytes(part, {"fingerprint": "f"}))
    resolved = {
        "thresholds": {"fake": 0.6, "no_forgery_found": 0.6},
        "checkpoints": [{"sha256": sha256} for sha256 in checkpoints or ["0" * 64]],
    }
    run = {"job": "score", "input": "/videos", "fingerprint": "f", "state": "complete"}
    (root / "run.json").write_text(json.dumps({**run, "resolved": resolved}))
    return str(root)


ROWS: list[dict[str, Any]] = [
    {"name": "a.mp4", "score": 0.9, "frames": [0.8, 0.95]},
    {"name": "b.mp4", "score": 0.3, "frames": [0.4]},
    {"name": "c.mp4", "score": 0.5, "frames": [0.5, None]},
    {"name": "d.mp4", "score": 0.2},
    {"name": "e.mp4", "status": "no_face"},
    {"name": "f.mp4", "score": 0.7},
    # Replaced by a later attempt.
    {"name": "a.mp4", "score": 0.1, "attempt": 0},
]
LABELS = """uri,label,group,split,method,compression
videos/a.mp4,FAKE,1,test,Deepfakes,c23
videos/b.mp4,fake,2,test,FaceSwap,c23
videos/c.mp4,REAL,1,test,,c23
videos/d.mp4,real,2,test,,c40
videos/e.mp4,1,3,test,FaceSwap,c40
videos/f.mp4,0,4,train,,c23
videos/gone.mp4,0,4,test,,c23
"""


@pytest.fixture
def labels(tmp_path: Path) -> str:
    file = tmp_path / "labels.csv"
    # The scored URIs are /videos/..., so the list is read as if it stood in the root folder.
    file.write_text(LABELS.replace("videos/", "/videos/"))
    return str(file)


def test_scores_are_joined_with_labels(tmp_path: Path, labels: str) -> None:
    output = write_output(tmp_path / "scores", ROWS)
    found = evaluate(output, labels=labels, num_resamples=50)
    assert found.videos is not None
    assert found.frames is not None
    truth, scores = [1, 1, 0, 0, 0], [0.9, 0.3, 0.5, 0.2, 0.7]
    assert found.videos.metrics["auc"].value == pytest.approx(roc_auc_score(truth, scores))
    assert found.videos.metrics["log_loss"].value == pytest.approx(log_loss(truth, scores))
    # At the checkpoint's own threshold of 0.6: a, c and d are right.
    assert found.threshold == 0.6
    assert found.videos.metrics["accuracy"].value == pytest.approx(3 / 5)
    assert (found.videos.num_fake, found.videos.num_real, found.videos.num_groups) == (2, 3, 3)
    assert found.frames.metrics["auc"].value == pytest.approx(
        roc_auc_score([1, 1, 1, 0], [0.8, 0.95, 0.4, 0.5])
    )
    assert (found.frames.num_fake, found.frames.num_real, found.frames.num_groups) == (3, 1, 2)
    assert found.without_score == {"no_face": {"fake": 1}}
    assert (found.num_videos, found.num_absent, found.num_unlabelled) == (6, 1, 0)


def test_a_missing_score_is_imputed_only_by_name(tmp_path: Path, labels: str) -> None:
    output = write_output(tmp_path / "scores", ROWS)
    found = evaluate(output, labels=labels, impute=0.5, num_resamples=0)
    assert found.videos is not None
    assert found.videos.metrics["log_loss"].value == pytest.approx(
        log_loss([1, 1, 0, 0, 0, 1], [0.9, 0.3, 0.5, 0.2, 0.7, 0.5])
    )
    assert found.to_dict()["imputed_score"] == 0.5
    assert found.without_score == {"no_face": {"fake": 1}}


def test_slices_and_splits(tmp_path: Path, labels: str) -> None:
    output = write_output(tmp_path / "scores", ROWS)
    found = evaluate(
        output, labels=labels, split="test", by=["method", "compression"], num_resamples=0
    )
    assert found.num_videos == 5
    assert found.num_absent == 1
    # Each method's fakes against the reals, which come from no method.
    deepfakes, face_swap = found.by["method"]["Deepfakes"], found.by["method"]["FaceSwap"]
    assert (deepfakes.num_fake, deepfakes.num_real) == (1, 2)
    assert deepfakes.metrics["auc"].value == 1.0
    assert (face_swap.num_fake, face_swap.num_real) == (1, 2)
    assert face_swap.metrics["auc"].value == 0.5
    assert found.by["compression"]["c23"].metrics["auc"].value == 0.5
    assert found.by["compression"]["c40"].metrics["auc"].value is None


def test_cells_are_texts(tmp_path: Path) -> None:
    """Numbers once were: takes 01 and 1 were one, and so were the groups 7 and 007."""
    output = write_output(tmp_path / "scores", ROWS)
    labels = tmp_path / "labels.tsv"
    cells = ["uri label group take", "a.mp4 1 007 01", "b.mp4 1 7 1", "c.mp4 0 8 01", "d.mp4 0 9 1"]
    lines = [cells[0], *(f"/videos/{line}" for line in cells[1:])]
    labels.write_text("\n".join(lines).replace(" ", "\t"))
    found = evaluate(output, labels=str(labels), by=["take"], num_resamples=0)
    assert found.videos is not None
    assert found.videos.num_groups == 4
    assert list(found.by["take"]) == ["01", "1"]


def test_labels_of_the_manifest_are_in_the_rows(tmp_path: Path) -> None:
    rows = [
        {"name": "a.mp4", "score": 0.9, "label": "fake", "codec": "h264"},
        {"name": "b.tar", "member": "b.mp4", "score": 0.2, "label": "real", "codec": "vp9"},
        {"name": "c.mp4", "score": 0.2},
    ]
    output = write_output(tmp_path / "scores", rows)
    found = evaluate(output, by=["codec"], num_resamples=0)
    assert found.num_unlabelled == 1
    assert found.videos is not None
    assert found.videos.metrics["auc"].value == 1.0
    assert list(found.by["codec"]) == ["h264", "vp9"]
    assert found.frames is None


def test_labels_of_shards_and_of_parquet(tmp_path: Path) -> None:
    rows = [
        {"name": "s.tar", "member": "x.mp4", "score": 0.9},
        {"name": "t.tar", "member": "y.mp4", "score": 0.2},
    ]
    output = write_output(tmp_path / "scores", rows)
    file = tmp_path / "labels.parquet"
    table = pa.table(
        {
            "URL": ["/videos/s.tar", "/videos/t.tar"],
            "member": ["x.mp4", None],  # by itself, and by its shard
            "label": [1, 0],
            "vector": [[1.0], [2.0]],
        }
    )
    pq.write_table(table, file)
    found = evaluate(output, labels=str(file), num_resamples=0)
    assert found.videos is not None
    assert found.videos.metrics["auc"].value == 1.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "uri,label\n/videos/a.mp4,synthetic\n", "row 1: label 'synthetic'"),
        ("l.csv", "uri,label\n/videos/a.mp4,fake\n/videos/a.mp4,real\n", "rows 1 and 2 label"),
        ("l.csv", "name,label\n/videos/a.mp4,fake\n", "no column uri, url, path, file; got: name"),
        ("l.csv", "uri,label\n,fake\n", "row 1 has no uri"),
        ("l.csv", "uri,label\ns3://key:hidden@b/a.mp4,fake\n", "row 1"),
        ("l.csv", "uri,label\n/videos/other.mp4,fake\n", "no labelled video"),
        ("l.csv", "uri,label\n/videos/a.mp4,\n", "no labelled video"),
        ("l.csv", 'uri,label\n"/videos/a.mp4', "cannot be read as .csv"),
        (
            "l.csv",
            "uri,label,who\n/videos/a.mp4,fake,Jos\udce9\n",
            "cannot be read as .csv: .*UTF8",
        ),
        ("l.parquet", "PAR1", "cannot be read as .parquet"),
        ("l.xlsx", "", "labels are read from .csv"),
    ],
)
def test_labels_that_will_not_do(tmp_path: Path, name: str, text: str, message: str) -> None:
    output = write_output(tmp_path / "scores", ROWS)
    (tmp_path / name).write_bytes(os.fsencode(text))
    with pytest.raises(InputError, match=message) as caught:
        evaluate(output, labels=str(tmp_path / name))
    assert "hidden" not in str(caught.value)


def test_what_cannot_be_evaluated(tmp_path: Path, labels: str) -> None:
    output = write_output(tmp_path / "scores", ROWS)
    with pytest.raises(InputError, match=r"no column 'colour'; there are .*method"):
        evaluate(output, labels=labels, by=["colour"])
    with pytest.raises(InputError, match="no labelled video of split 'dev'"):
        evaluate(output, labels=labels, split="dev")
    with pytest.raises(ConfigError, match=r"impute must lie in 0\.\.1"):
        evaluate(output, labels=labels, impute=2)
    with pytest.raises(InputError, match="is no output of effnet-batch"):
        evaluate(str(tmp_path / "nothing"), labels=labels)
    run = Path(output, "run.json")
    run.write_text(json.dumps({**json.loads(run.read_text()), "job": "embed", "resolved": {}}))
    with pytest.raises(InputError, match="holds no scores; it is an output of embed"):
        evaluate(output, labels=labels)


def test_figures_plots_and_page_are_written(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    labels = tmp_path / "labels.csv"
    labels.write_text(LABELS.replace("videos/", "/videos/").replace("Deepfakes", hostile))
    output = write_output(tmp_path / "scores <b>", ROWS)
    folder = tmp_path / "evaluation"
    found = evaluate(
        output, labels=str(labels), output=str(folder), by=["method"], num_resamples=20
    )
    document = json.loads((folder / "metrics.json").read_text())
    assert document == json.loads(json.dumps(found.to_dict()))
    assert document["videos"]["metrics"]["auc"]["low"] is not None
    names = {path.name for path in folder.iterdir() if path.is_file()}
    plots = {"roc.svg", "precision_recall.svg", "reliability.svg", "histogram.svg"}
    assert names == plots | {"metrics.json", "index.html"}
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 4
    assert hostile not in page
    assert "scores &lt;b&gt;" in page
    assert "<script" not in page
    assert f"{found.videos.metrics['auc'].value:.4f}" in page  # type: ignore[union-attr]
    for name in plots:
        assert (folder / name).read_bytes().startswith(b"<?xml")


def test_a_calibrated_checkpoint_holds_what_was_fitted(tmp_path: Path) -> None:
    source = str(tmp_path / "model.safetensors")
    sha256 = save_checkpoint(source, *tiny_checkpoint())
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(400):
        true = float(generator.normal(0, 2))
        is_fake = bool(generator.random() < 1 / (1 + math.exp(-true)))
        score = 1 / (1 + math.exp(-3 * true))  # three times too sure
        split = "val" if number % 4 else "test"
        label = "fake" if is_fake else "real"
        rows.append({"name": f"{number}.mp4", "score": score, "label": label, "split": split})
    output = write_output(tmp_path / "scores", rows, checkpoints=[sha256])
    target = str(tmp_path / "calibrated.safetensors")
    found = calibrate(output, source, target, split="val", fpr=0.05)
    assert found.num_fake + found.num_real == 300
    assert found.log_loss_after < found.log_loss_before
    made = load_checkpoint(target)
    assert made.sha256 == found.sha256
    assert made.info.calibration == found.calibration
    assert made.info.calibration is not None
    assert made.info.calibration.scale == pytest.approx(1 / 3, rel=0.25)
    threshold = made.info.thresholds.fake
    reals = [
        made.info.calibrated(logit(row["score"]))[1]
        for row in rows
        if row["label"] == "real" and row["split"] == "val"
    ]
    assert 0.03 < np.mean(np.array(reals) >= threshold) <= 0.05
    # Fitting again on scores of the calibrated checkpoint changes nothing more.
    again = [{**row, "score": made.info.calibrated(logit(row["score"]))[1]} for row in rows]
    output = write_output(tmp_path / "again", again, checkpoints=[found.sha256])
    once_more = calibrate(output, target, str(tmp_path / "third.safetensors"), split="val")
    assert once_more.calibration is not None
    assert once_more.calibration.scale == pytest.approx(made.info.calibration.scale, rel=1e-3)
    assert once_more.thresholds == made.info.thresholds


def test_calibration_wants_the_scores_of_this_checkpoint(tmp_path: Path) -> None:
    source = str(tmp_path / "model.safetensors")
    sha256 = save_checkpoint(source, *tiny_checkpoint())
    rows = [{"name": "a.mp4", "score": 0.9, "label": "fake"}]
    target = str(tmp_path / "out.safetensors")
    other = write_output(tmp_path / "other", rows)
    with pytest.raises(ConfigError, match="was scored by 1 checkpoint"):
        calibrate(other, source, target)
    output = write_output(tmp_path / "scores", rows, checkpoints=[sha256])
    with pytest.raises(ConfigError, match="both classes, got 1 fake and 0 real"):
        calibrate(output, source, target)
    with pytest.raises(ConfigError, match="changes nothing"):
        calibrate(output, source, target, method="none")
    assert not Path(target).exists()
