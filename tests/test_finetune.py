"""Fine-tuning from end to end on real clips: workers, restarts, the checkpoint that comes of it."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from click.testing import CliRunner
from commit_gate import CommitGate
from killed_training import Remote, losses_in, training_workers
from s3_server import S3Server
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_tracking import mlflow_in
from test_training import moving_square
from video_files import encode

import effnet_batch
import effnet_batch.pipelines.finetune as finetune_module
from effnet_batch.cli import main
from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError, FingerprintError, InputError, JobError
from effnet_batch.models.checkpoint_info import Calibration, Thresholds
from effnet_batch.models.checkpoints import load_checkpoint, save_checkpoint
from effnet_batch.pipelines.finetune import Finetuned, finetune
from effnet_batch.pipelines.finetune_videos import _judged, video_objective
from effnet_batch.pipelines.score import score
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.stored_material import stored_material
from effnet_batch.storage import Storage
from effnet_batch.training.network import build_network
from effnet_batch.training.objective import Objective
from effnet_batch.training.videos import VideoObjective
from effnet_batch.training.worker import BEST_FILE, JUDGED_FILE

SETTINGS: dict[str, Any] = {
    "network": "efficientnet_lite0",
    "weights": "package:efficientnet-lite0",
    "lstm_layers": 1,
    "lstm_dim": 16,
    "image_size": 32,
    "faces": "none",
    "loss": "last_step",
    "clips_per_step": 4,
    "learning_rate": 1e-4,
    "epochs": 3,
}


class Told:
    """Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, **counts: Any) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def gate(s3: S3Server) -> Iterator[CommitGate]:
    """Ray, whose workers write the states of training through a gate."""
    # They have the environment that the cluster was started in.
    with CommitGate(s3, "training/state-") as gate, pytest.MonkeyPatch.context() as patch:
        s3.client_env(patch)
        patch.setenv("AWS_ENDPOINT_URL", gate.endpoint_url)
        with ray_session(None):
            yield gate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen clips, of which one is no video and one has no label."""
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)
    lines = ["uri,label,group,split"]
    for number in range(14):
        frames = moving_square(generator, is_fake=bool(number % 2), num_frames=20)
        name = f"{number:02}.mp4"
        clip = encode(num_frames=20, size=(32, 32), show=lambda at, *_, f=frames: f[at])
        (root / name).write_bytes(clip if number != 12 else b"no video")
        label = "" if number == 13 else "fake" if number % 2 else "real"
        split = "val" if number in (8, 9, 10, 11) else "train"
        lines.append(f"{name},{label},g{number // 2},{split}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def run(source: Path, output: Path | str, **settings: Any) -> tuple[Finetuned, Told]:
    told = Told()
    found = finetune(str(source), str(output), reporter=told, **{**SETTINGS, **settings})
    return found, told


def losses(output: Path) -> list[float]:
    return losses_in((output / "training/metrics.jsonl").read_text())


def drawn(output: Path) -> list[float]:
    """Returns the losses that TensorBoard draws of an output."""
    (events,) = (output / "training/events").iterdir()
    reader = EventAccumulator(str(events))
    reader.Reload()
    scalars = reader.Scalars("step/loss")
    assert [one.step for one in scalars] == list(range(1, len(scalars) + 1))
    return [one.value for one in scalars]


def test_training_is_the_same_for_any_workers_and_restarts(
    folder: Path, tmp_path: Path, s3: S3Server, gate: CommitGate
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    one, told = run(folder / "labels.csv", tmp_path / "one")
    assert signal.getsignal(signal.SIGINT) is handler
    assert (one.num_epochs, one.num_samples, one.num_validated) == (3, 8, 4)
    assert one.left_out == {"unsupported": 1, "no label": 1}
    assert any("1 videos are left out: unsupported" in text for text in told.warnings)
    assert any(text.startswith("epoch 3/3: loss ") for text in told.messages)
    assert any("waited for data" in text for text in told.messages)
    curve = losses(tmp_path / "one")
    assert len(curve) == 6  # two steps of four clips, three times
    assert curve[0] != pytest.approx(curve[-1], abs=1e-3)
    assert drawn(tmp_path / "one") == pytest.approx(curve, rel=1e-6)
    lines = map(json.loads, (tmp_path / "one/training/metrics.jsonl").read_text().splitlines())
    *steps, epoch = (line for line in lines if line["epoch"] == 3)
    waits = [line["wait_seconds"] for line in steps]
    assert 0 < sum(waits) < epoch["seconds"]
    # Of the time of the steps alone, without validation.
    assert sum(waits) / epoch["seconds"] <= epoch["data_wait_share"] < 1

    # Two workers, on object storage. They and the driver are killed when an epoch is saved.
    two = Remote(s3, gate, "finetuned")
    two.hold_next()
    settings = {**SETTINGS, "num_workers": 2, "address": ray.get_runtime_context().gcs_address}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "effnet_batch", "finetune", folder / "labels.csv", two.uri]
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen([*command, *flags], stdout=log, stderr=log)

    def lose_machine() -> None:
        driver.kill()
        for process in training_workers():
            process.kill()

    two.kill_after(1, lose_machine, lambda: driver.poll() is not None)
    assert driver.wait() == -signal.SIGKILL

    # The same command goes on. One of its workers is killed when the second epoch is saved: the
    # group starts again from there.
    ended = threading.Event()
    two.hold_next()
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(two.kill_after, 2, lambda: training_workers()[0].kill(), ended.is_set)
        try:
            _, retold = run(folder / "labels.csv", two.uri, num_workers=2)
        finally:
            ended.set()
        kill.result()
    assert two.losses() == pytest.approx(curve, abs=1e-3)
    # The worker may die before it tells of the epoch that it has saved.
    epochs = [text[:9] for text in retold.messages if "/3: loss" in text]
    assert epochs in (["epoch 2/3", "epoch 3/3"], ["epoch 3/3"])

    # So does another number of workers.
    assert [key[-9:] for key in two.states()] == ["000002.pt", "000003.pt"]
    s3.client().delete_object(Bucket=s3.bucket, Key=two.states()[-1])
    run(folder / "labels.csv", two.uri, num_workers=1)
    assert two.losses() == pytest.approx(curve, abs=1e-3)

    # Nothing is left to do, and nothing is done again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one/prepared").rglob("*.p*")}
    again, told_again = run(folder / "labels.csv", tmp_path / "one")
    assert "all is trained already" in told_again.messages
    assert again.sha256 == one.sha256
    for path, changed in before.items():
        assert path.name == "run.json" or path.stat().st_mtime_ns == changed

    checkpoint = load_checkpoint(one.checkpoint)
    assert checkpoint.sha256 == one.sha256
    # What it has learnt by now may rank no better than chance, which is said instead.
    is_calibrated = not any("is not calibrated" in text for text in told.warnings)
    assert (checkpoint.info.calibration is not None) == is_calibrated
    assert checkpoint.info.sampling["strategy"] == "every_nth"
    summary = score(
        str(folder / "labels.csv"), str(tmp_path / "scores"), checkpoint=[one.checkpoint]
    )
    assert summary.report.records_by_status == {"ok": 13, "unsupported": 1}
    # Scoring takes the path of validation: the same figures.
    done = CliRunner().invoke(
        main, ["evaluate", str(tmp_path / "scores"), "--split", "val", "--resamples", "0"]
    )
    assert done.exit_code == 0, done.output
    assert f"AUC {one.metrics['auc']:.4f}" in " ".join(done.output.split())


HEAD: dict[str, Any] = {"image_size": None, "faces": None, "learning_rate": 1e-2}
"""Beside `SETTINGS`: stored frames say the rest."""


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of the clips as a backbone sees them; 12 videos that are labelled and ok."""
    output = tmp_path_factory.mktemp("stored") / "out"
    effnet_batch.embed(
        str(folder / "labels.csv"),
        str(output),
        medium="video",
        model="efficientnet_lite0",
        image_size=32,
        frames=True,
        sampling="every_nth",
        max_failures=1.0,
    )
    return output


def test_a_head_is_trained_on_stored_frames(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_in(tmp_path / "runs", monkeypatch)
    found, told = run(stored, tmp_path / "head", **HEAD, epochs=12, ema=0.5, track="mlflow")
    assert (found.num_epochs, found.num_samples, found.num_validated) == (12, 8, 4)
    assert found.left_out == {"unsupported": 1, "no label": 1}
    assert any("8 clips of stored frames" in text for text in told.messages)
    assert not (tmp_path / "head/prepared").exists()
    lines = map(json.loads, (tmp_path / "head/training/metrics.jsonl").read_text().splitlines())
    epochs = [line for line in lines if "val_auc" in line]
    assert epochs[-1]["mean_loss"] < 0.7 * epochs[0]["mean_loss"]
    (tracked,) = client.search_runs(["0"])
    assert tracked.data.params["lstm_dim"] == "16"
    curve = client.get_metric_history(tracked.info.run_id, "val/auc")
    assert [metric.value for metric in curve] == [line["val_auc"] for line in epochs]

    # What comes of it runs as it is: rescoring the same frames says what validation said.
    effnet_batch.rescore(str(stored), str(tmp_path / "again"), checkpoint=[found.checkpoint])
    rows = effnet_batch.read_scores(str(tmp_path / "again"), columns=["split", "label", "logit"])
    calibration = load_checkpoint(found.checkpoint).info.calibration
    scale = 1.0 if calibration is None else calibration.scale
    judged = [row for row in rows.to_pylist() if row["split"] == "val"]
    expected = np.mean(
        [
            np.logaddexp(0, row["logit"] / scale * (1 if row["label"] == "real" else -1))
            for row in judged
        ]
    )
    assert len(judged) == 4
    assert epochs[found.best_epoch - 1]["val_log_loss"] == pytest.approx(expected, abs=1e-4)


def objective_of(stored: Path, **settings: Any) -> Objective:
    config = FinetuneConfig.from_flat(settings)
    material = stored_material(str(stored), config, Storage(), Told())
    return video_objective(material, config, Storage(), Told())[0]


def test_another_file_under_the_same_name_is_another_training(stored: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "start.safetensors")
    storage = Storage()

    def write_start(training_seed: int) -> None:
        config = FinetuneConfig.from_flat({**SETTINGS, "training_seed": training_seed})
        model, info, _ = build_network(config.network, config.optimisation, storage)
        save_checkpoint(path, model, info)

    sizes: dict[str, Any] = {"steps_per_epoch": 1, "device": "cpu", "num_workers": 1}
    write_start(0)
    first = objective_of(stored, start=path)
    assert objective_of(stored, start=path).fingerprint == first.fingerprint
    first.make_trainer(storage, **sizes)
    write_start(1)
    assert objective_of(stored, start=path).fingerprint != first.fingerprint
    # Nor does a worker start from it that was told of the first.
    with pytest.raises(FingerprintError, match=f"{first.start_sha256} where the run was resolved"):
        first.make_trainer(storage, **sizes)


def test_training_goes_on_from_a_detector(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig.from_flat({**SETTINGS, "training_seed": 5})
    model, info, _ = build_network(config.network, config.optimisation, Storage())
    fitted = Thresholds(fake=0.93, no_forgery_found=0.2)
    info = dataclasses.replace(info, thresholds=fitted, calibration=Calibration(scale=0.5))
    path = str(tmp_path / "start.safetensors")
    save_checkpoint(path, model, info)
    settings = {**HEAD, "start": path, "epochs": 1, "calibration": "none"}
    settings |= {"learning_rate": 1e-9, "min_learning_rate": 0.0}
    found, _ = run(stored, tmp_path / "more", **settings)
    trained = load_checkpoint(found.checkpoint)
    assert (trained.info.thresholds, trained.info.calibration) == (Thresholds(), None)
    # Hardly anything was learnt: what there is comes of the start.
    for name, tensor in trained.model.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-6), name

    # What was judged then is what is fitted to, however often the same command is run.
    kept = tmp_path / "more/training" / JUDGED_FILE
    said = json.loads(kept.read_text())
    objective: Any = objective_of(stored, **{**SETTINGS, **settings})
    labels = objective.validation["label"].to_pylist()
    kept.write_text(json.dumps(said | {"judged": [9.0 if label else -9.0 for label in labels]}))
    settings |= {"device": "cuda"}  # which nobody has, nor needs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoObjective, "open", None)  # nothing is judged again
        again, _ = run(stored, tmp_path / "more", **{**settings, "calibration": "temperature"})
    assert again.sha256 != found.sha256
    assert load_checkpoint(again.checkpoint).info.calibration is not None
    # Where that is of another epoch, of an older version, or lost, it is judged anew.
    best = load_checkpoint(str(kept.with_name(BEST_FILE)))
    for text in (json.dumps(said | {"sha256": "0" * 64}), json.dumps([9.0] * len(labels))):
        kept.write_text(text)
        logits = _judged(Storage(), str(kept.parent), best, objective, Told())
        assert logits == pytest.approx(said["judged"], abs=1e-5)
    kept.unlink()

    # Every node must be able to read what is trained on, where there are several.
    asked: list[Any] = []
    monkeypatch.setattr(finetune_module, "cluster_cpus_and_gpus", lambda: [(2.0, 0.0)] * 2)
    monkeypatch.setattr(finetune_module, "check_nodes", lambda *given: asked.append(given))
    run(stored, tmp_path / "more", **settings)
    ((root, source, _, load, _),) = asked
    assert root == str(tmp_path / "more")
    assert Path(source).is_relative_to(stored / "data")
    assert load()[2] == load_checkpoint(path).sha256


def test_a_loss_that_is_no_number_is_not_tried_again(stored: Path, tmp_path: Path) -> None:
    settings = {**HEAD, "learning_rate": 3e37, "warmup_epochs": 0.0, "clips_per_step": 2}
    with pytest.raises(
        JobError, match=r"the loss became (nan|inf) .* lower --learning-rate"
    ) as caught:
        run(stored, tmp_path / "head", **settings)
    # It would come from Ray Train's own error, had that lost all its tries.
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"weights": "random"}, FingerprintError, "frames of the encoder .*, that they were"),
        (
            {"network": "thesis_efficientnet_b1_lstm", "weights": "random"},
            FingerprintError,
            "the bottleneck of this network stands before",
        ),
        ({"image_size": 64}, FingerprintError, "image_size: the frames were stored with 32"),
        ({"num_frames": 3, "sampling": "uniform"}, FingerprintError, "sampling: the frames were"),
        ({"self_blended": 0.5}, ConfigError, "needs the videos"),
        ({"resolutions": ("0:16",)}, ConfigError, "--resolutions needs the videos"),
        ({"limit": 3}, ConfigError, "--limit says nothing of stored frames"),
        ({"flip": 0.0}, ConfigError, "--flip needs the videos; stored frames cannot be changed"),
        ({"mixup": 0.2}, ConfigError, "--mixup mixes images"),
    ],
)
def test_frames_that_a_head_cannot_be_trained_on(
    stored: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(stored, tmp_path / "output", **{**HEAD, **settings})


@pytest.mark.parametrize(
    ("labels", "settings", "error", "message"),
    [
        ("uri,label\n00.mp4,real\n02.mp4,real\n", {}, InputError, "has no fake videos"),
        ("uri\n00.mp4\n01.mp4\n", {}, InputError, '"no label": 2}; labels come from'),
        ("uri,label\n0gone.mp4,real\n", {}, InputError, '"fetch_error": 1'),
        ("uri,label\n00.mp4,cat\n", {}, InputError, "label 'cat'"),
        ("uri,label\n00.mp4,real\n", {"weights": None}, ConfigError, "nothing to start from"),
        ("uri,label\n00.mp4,real\n", {"network": "vgg"}, ConfigError, "allowed are .*resnet50_l"),
    ],
)
def test_what_cannot_be_trained(
    folder: Path,
    tmp_path: Path,
    labels: str,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    text = labels.replace("\n0", f"\n{folder}/0")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(error, match=message):
        run(tmp_path / "labels.csv", tmp_path / "output", **settings)
