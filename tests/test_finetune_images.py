"""Fine-tuning on images from end to end: a folder of classes, CIFAR-100, what comes of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_finetune import Told, losses
from test_image_layouts import write_cifar
from test_image_training import planted

import effnet_batch
from effnet_batch.cli import main
from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError, InputError
from effnet_batch.pipelines.finetune import Finetuned, finetune
from effnet_batch.pipelines.finetune_images import image_objective
from effnet_batch.pipelines.prepare_images import ResolvedImages
from effnet_batch.pipelines.progress import Silent
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import Storage

CLASSES = ("daisy", "iris", "rose")
SETTINGS: dict[str, Any] = {
    "network": "efficientnet_lite0",
    "weights": "package:efficientnet-lite0",
    "image_size": 64,
    "freeze_backbone": True,
    "clips_per_step": 8,
    "learning_rate": 2e-2,
    "epochs": 3,
    "mixup": 0.2,
    "resolutions": ("0:48", "2:64"),
    "ema": 0.8,
}


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 24 images to train on, 9 to validate on, 3 to test; one is none, one lies twice."""
    root = tmp_path_factory.mktemp("flowers")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 1)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = root / split / name / f"{number}.{'png' if number % 2 else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(planted(generator, label, 48)).save(path)
    (root / "train/iris/broken.jpg").write_bytes((root / "train/iris/0.jpg").read_bytes()[:300])
    done = CliRunner().invoke(main, ["labels", str(root), str(root / "flowers.csv")])
    assert done.exit_code == 0, done.output
    return root / "flowers.csv"


def run(source: Path, output: Path, **settings: Any) -> tuple[Finetuned, Told]:
    told = Told()
    found = finetune(str(source), str(output), reporter=told, **{**SETTINGS, **settings})
    return found, told


def test_a_classifier_is_trained_and_runs_as_it_is(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    found, told = run(manifest, output)
    assert (found.num_epochs, found.num_samples, found.num_validated) == (3, 24, 9)
    assert found.left_out == {"decode_error": 1}
    assert "1 images are left out: decode_error" in told.warnings
    assert "training on 24 images of 3 classes, 8 to 8 each, validating on 9" in told.messages
    assert found.metrics["top1"] >= 7 / 9  # by chance it would be a third
    assert found.metrics["top5"] == 1.0
    curve = losses(output)
    assert len(curve) == 9

    # What was killed after its second epoch goes on there, with other workers, to the same end.
    states = sorted((output / "training").glob("state-*.pt"))
    assert [path.name[-9:] for path in states] == ["000002.pt", "000003.pt"]
    states[-1].unlink()
    again, _ = run(manifest, output, num_workers=2)
    assert losses(output) == pytest.approx(curve, abs=1e-3)
    assert again.metrics == pytest.approx(found.metrics, abs=1e-3)

    # The checkpoint says itself how it is run and what its classes are called.
    model = effnet_batch.load_model("efficientnet_lite0", weights=again.checkpoint)
    assert model.weights_info is not None
    assert model.weights_info.class_names == CLASSES
    assert model.weights_info.preprocessing.image_size == 64
    vectors = str(tmp_path / "vectors")
    effnet_batch.embed(
        str(manifest),
        vectors,
        model="efficientnet_lite0",
        weights=again.checkpoint,
        top_k=3,
        engine="torch",
        max_failures=1.0,
    )
    record = json.loads((Path(vectors) / "run.json").read_text())
    assert record["fingerprint_fields"]["top_k_names"] is True  # a column that others lack
    rows = effnet_batch.read_embeddings(vectors).to_pylist()
    assert len(rows) == 36
    log_losses, are_right = [], []
    for row in rows:
        assert [CLASSES[number] for number in row["top_k_classes"]] == row["top_k_names"]
        if row["split"] == "val":
            are_right.append(row["top_k_names"][0] == row["label"])
            scores = dict(zip(row["top_k_names"], row["top_k_scores"], strict=True))
            log_losses.append(-np.log(scores[row["label"]]))
    assert np.mean(are_right) == pytest.approx(again.metrics["top1"])
    assert np.mean(log_losses) == pytest.approx(again.metrics["log_loss"], abs=1e-4)

    # The images are kept already: these say what is wrong with their labels.
    names = [line.split(",")[0].strip('"') for line in manifest.read_text().splitlines()[1:]]
    lists = {
        "one": dict.fromkeys(names, "daisy"),
        "strange": {name: "lily" if "/val/iris" in name else name.split("/")[-2] for name in names},
        "none": {},
    }
    for name, message in (
        ("one", r"are of 1 class \(daisy\); two are needed"),
        ("strange", "1 classes stand in validation alone, lily: give every class"),
        ("none", "nothing labelled can be trained on: .*no label.: 36"),
    ):
        lines = [
            f"{uri},{label},{'val' if '/val/' in uri else 'train'}"
            for uri, label in lists[name].items()
        ] or ["/elsewhere.jpg,daisy,train"]
        (tmp_path / "l.csv").write_text("\n".join(["uri,label,split", *lines]))
        with pytest.raises(InputError, match=message):
            run(manifest, output, labels=str(tmp_path / "l.csv"))

    # Other names of the same classes are another classifier: no state of this one goes on.
    def fingerprint(labels: str | None) -> str:
        prepared = output / "prepared"
        stored = json.loads((prepared / "run.json").read_text())["resolved"]
        config = FinetuneConfig.from_flat({**SETTINGS, "labels": labels})
        objective, _ = image_objective(
            str(prepared), ResolvedImages.from_dict(stored), config, Storage(), Silent()
        )
        return objective.fingerprint

    assert f"state-{fingerprint(None)}-" in states[-1].name
    lines = [f"{name},new {name.split('/')[-2]},{name.split('/')[-3]}" for name in names]
    (tmp_path / "l.csv").write_text("\n".join(["uri,label,split", *lines]))
    assert fingerprint(str(tmp_path / "l.csv")) != fingerprint(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 4}, "mixes the images of a worker in pairs: .* multiple of 8"),
        ({"resolutions": ("1:24",)}, "--resolutions: got '1:24'"),
        ({"lstm_layers": 1, "h264": 0.5}, "lstm_layers, h264 say nothing of images"),
        ({"weights": None}, "nothing to start from: give --weights"),
        ({"network": "resnet50_lstm"}, "unknown model 'resnet50_lstm'"),
    ],
)
def test_settings_that_do_not_go_with_images(
    manifest: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if "num_workers" in settings:
        settings = {**settings, "clips_per_step": 4}
    with pytest.raises(ConfigError, match=message):
        run(manifest, tmp_path / "out", **settings)


def test_a_shard_without_validation_holds_some_images_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_cifar(tmp_path / "cifar", num_train=20)
    done = CliRunner().invoke(
        main, ["labels", str(tmp_path / "cifar"), str(tmp_path / "cifar.csv")]
    )
    assert done.exit_code == 0, done.output
    arguments = ["finetune", str(tmp_path / "cifar.csv"), str(tmp_path / "out")]
    arguments += ["--network", "efficientnet_lite0", "--weights", "random", "--image-size", "32"]
    arguments += ["--epochs", "1", "--clips-per-step", "8"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    told = capfd.readouterr().err
    assert re.search(r"training on 16 images of 3 classes, \d to \d each, validating on 4\n", told)
    (line,) = [
        line
        for line in map(json.loads, (tmp_path / "out/training/metrics.jsonl").open())
        if "val_top1" in line
    ]
    assert f"{line['val_top1']:.4f}" in done.stdout
