"""Fine-tuning from end to end on real clips: workers, restarts, the checkpoint that comes of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_training import moving_square
from video_files import encode

from effnet_batch.cli import main
from effnet_batch.errors import ConfigError, InputError
from effnet_batch.models.checkpoints import load_checkpoint
from effnet_batch.pipelines.finetune import Finetuned, finetune
from effnet_batch.pipelines.score import score
from effnet_batch.pipelines.session import ray_session

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
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


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


def run(folder: Path, output: Path, **settings: Any) -> tuple[Finetuned, Told]:
    told = Told()
    found = finetune(
        str(folder / "labels.csv"), str(output), reporter=told, **{**SETTINGS, **settings}
    )
    return found, told


def losses(output: Path) -> list[float]:
    lines = (output / "training/metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def test_training_is_the_same_for_any_workers_and_restarts(folder: Path, tmp_path: Path) -> None:
    one, told = run(folder, tmp_path / "one")
    assert (one.num_epochs, one.num_train_clips, one.num_validation_videos) == (3, 8, 4)
    assert one.left_out == {"unsupported": 1, "no label": 1}
    assert any("1 videos are left out: unsupported" in text for text in told.warnings)
    assert any(text.startswith("epoch 3/3: loss ") for text in told.messages)
    curve = losses(tmp_path / "one")
    assert len(curve) == 6  # two steps of four clips, three times
    assert curve[0] != pytest.approx(curve[-1], abs=1e-3)

    # Two workers, killed after their first epoch was saved: the group starts again from there.
    two = tmp_path / "two"
    run(folder, two, num_workers=2, epochs=3, patience=None)
    assert losses(two) == pytest.approx(curve, abs=1e-3)

    # The state of an earlier epoch is where a run that was killed goes on.
    kept = sorted((two / "training").glob("state-*.pt"))
    assert [path.name[-9:] for path in kept] == ["000002.pt", "000003.pt"]
    kept[-1].unlink()
    run(folder, two, num_workers=1)
    assert losses(two) == pytest.approx(curve, abs=1e-3)

    # Nothing is left to do, and nothing is done again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one/prepared").rglob("*.p*")}
    again, _ = run(folder, tmp_path / "one")
    assert again.sha256 == one.sha256
    for path, changed in before.items():
        assert path.name == "run.json" or path.stat().st_mtime_ns == changed

    checkpoint = load_checkpoint(one.checkpoint)
    assert checkpoint.sha256 == one.sha256
    assert checkpoint.info.calibration is not None
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
    assert f"AUC {one.validation_auc:.4f}" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("labels", "settings", "error", "message"),
    [
        ("uri,label\n00.mp4,real\n02.mp4,real\n", {}, InputError, "has no fake videos"),
        ("uri\n00.mp4\n01.mp4\n", {}, InputError, '"no label": 2'),
        ("uri,label\n00.mp4,cat\n", {}, InputError, "label 'cat'"),
        ("uri,label\n00.mp4,real\n", {"weights": None}, ConfigError, "nothing to start from"),
        (
            "uri,label\n00.mp4,real\n",
            {"network": "vgg"},
            ConfigError,
            "allowed are .*resnet50_l",
        ),
        (
            "uri,label\n00.mp4,real\n",
            {"num_workers": 3},
            ConfigError,
            "clips-per-step 4 must be a multiple",
        ),
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
        run(tmp_path, tmp_path / "output", **settings)
