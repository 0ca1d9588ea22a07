"""Our own checkpoints: everything comes back, from anywhere, and nothing else is let in."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_checkpoint_layouts import resnet_lstm_shapes

from effnet_batch.errors import OutageError, WeightsError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models import checkpoints, forgery_registry
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint import read_state_dict
from effnet_batch.models.checkpoint_file import METADATA_KEY, checkpoint_bytes
from effnet_batch.models.checkpoint_info import (
    VERDICT_FAKE,
    VERDICT_NO_FORGERY_FOUND,
    VERDICT_UNDECIDED,
    Calibration,
    CheckpointInfo,
    Thresholds,
)
from effnet_batch.models.checkpoint_layouts import CHECKPOINT_LAYOUTS
from effnet_batch.models.checkpoints import OWN_LAYOUT, load_checkpoint, save_checkpoint
from effnet_batch.models.forgery_registry import FORGERY_REGISTRY, PROTOCOLS, find_published
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig

INFO = CheckpointInfo(
    name="small",
    sequence=SequenceConfig(
        architecture="efficientnet_lite0", bottleneck_dim=8, lstm_layers=1, lstm_dim=8
    ),
    preprocessing=Preprocessing(image_size=96, resize_size=100, mean=(0.5, 0.4, 0.3)),
    sampling={"strategy": "every_nth", "ratio": 5, "max_clip_frames": 40},
    faces={"detector": "yunet", "margin": 1.3, "is_square": True, "which": "all"},
    aggregation=AggregationConfig(steps="last", clips="mean", tracks="max", top_k=7),
    thresholds=Thresholds(fake=0.8, no_forgery_found=0.3),
    calibration=Calibration(scale=0.5, offset=-1.0),
    training_fingerprint="0123456789abcdef",
    licence="Apache-2.0",
)


@pytest.fixture(scope="module")
def model() -> SequenceClassifier:
    torch.manual_seed(3)
    return SequenceClassifier(INFO.sequence).eval()


@pytest.fixture
def file(model: SequenceClassifier, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    path.write_bytes(checkpoint_bytes(model, INFO))
    return path


def with_document(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Rewrites the file's description, its tensors as they are."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        document = json.loads(opened.metadata()[METADATA_KEY])
    change(document)
    save_file(tensors, file, metadata={METADATA_KEY: json.dumps(document)})
    return file


def assert_is_the_model(loaded: SequenceClassifier, model: SequenceClassifier) -> None:
    assert loaded.config == model.config
    assert not loaded.training
    theirs = model.state_dict()
    assert loaded.state_dict().keys() == theirs.keys()
    for key, value in loaded.state_dict().items():
        assert value.device.type == "cpu"
        if value.is_floating_point():
            assert torch.equal(value, theirs[key])


# --------------------------------------------------------------------------------- there and back


def test_everything_comes_back(model: SequenceClassifier, tmp_path: Path) -> None:
    path = tmp_path / "a" / "small.safetensors"
    sha256 = save_checkpoint(str(path), model, INFO)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_checkpoint(str(path))
    assert loaded.info == INFO
    assert (loaded.layout, loaded.source, loaded.sha256) == (OWN_LAYOUT, str(path), sha256)
    assert_is_the_model(loaded.model, model)
    # Loaded tensors are no views of a file that may go away or change.
    path.write_bytes(b"")
    assert_is_the_model(loaded.model, model)


def test_the_same_checkpoint_is_the_same_bytes(model: SequenceClassifier) -> None:
    assert checkpoint_bytes(model, INFO) == checkpoint_bytes(model, INFO)


def test_a_folder_and_a_bucket(model: SequenceClassifier, tmp_path: Path, s3_prefix: str) -> None:
    save_checkpoint(str(tmp_path / "model.safetensors"), model, INFO)
    assert load_checkpoint(str(tmp_path)).info == INFO
    sha256 = save_checkpoint(f"{s3_prefix}small.safetensors", model, INFO)
    loaded = load_checkpoint(f"{s3_prefix}small.safetensors")
    assert (loaded.info, loaded.sha256) == (INFO, sha256)
    assert_is_the_model(loaded.model, model)


def test_a_description_of_another_network_is_not_saved(
    model: SequenceClassifier, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(INFO, sequence=SequenceConfig(architecture="resnet50"))
    with pytest.raises(ValueError, match="but info describes"):
        save_checkpoint(str(tmp_path / "x"), model, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(model: SequenceClassifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutageError, match="cannot write"):
        save_checkpoint(str(tmp_path / "file" / "small.safetensors"), model, INFO)


def test_the_fingerprint_follows_what_counts(model: SequenceClassifier, tmp_path: Path) -> None:
    def fields(info: CheckpointInfo) -> dict[str, Any]:
        path = tmp_path / f"{info.name}.safetensors"
        save_checkpoint(str(path), model, info)
        found = load_checkpoint(str(path)).fingerprint_fields()
        json.dumps(found)
        return found

    first = fields(INFO)
    other = fields(dataclasses.replace(INFO, name="other", thresholds=Thresholds()))
    assert {name for name in first if first[name] != other[name]} == {
        "checkpoint_sha256",
        "thresholds",
    }
    assert "name" not in first


# -------------------------------------------------------------------------------- what is refused


def _set(document: dict[str, Any], path: str, value: object) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        document = document[parent]
    document[name] = value


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("version", 2, "is of version 2, this effnet_batch reads up to 1"),
        ("version", None, "without a version"),
        ("labels", {"fake": 0, "real": 1}, "by its scores, not"),
        ("info", None, "is NoneType, expected an object"),
        ("info.treshold", 1, "unknown field 'treshold'; did you mean thresholds"),
        ("info.thresholds", {"fake": 0.2, "no_forgery_found": 0.5}, "no_forgery_found <= fake"),
        ("info.thresholds.fake", "high", "thresholds.fake is str 'high', expected a finite number"),
        ("info.calibration.scale", -1, "scale must be positive"),
        ("info.aggregation.steps", "vote", "steps must be one of"),
        ("info.preprocessing.interpolation", "area", "interpolation must be one of"),
        ("info.preprocessing.mean", [0.5], "mean is list, expected a list of"),
        ("info.sampling", "uniform", "sampling is str 'uniform', expected dict"),
        ("info.sequence.architecture", "efficientnet_lite1", "missing"),
        ("info.sequence.lstm_dim", 16, r"shape \[32, 8\], expected \[64, 8\]"),
        ("info.sequence.attention_block", 99, "attention_block of efficientnet_lite0 must be"),
        ("info.sequence.lstm_layers", 0, r"unexpected \['lstm"),
    ],
)
def test_a_wrong_description(file: Path, path: str, value: object, complaint: str) -> None:
    with_document(file, lambda document: _set(document, path, value))
    with pytest.raises(WeightsError, match=complaint):
        load_checkpoint(str(file))


def test_a_description_that_is_no_json(model: SequenceClassifier, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for text in ("{", "[" * 100_000):
        save_file({"w": torch.zeros(1)}, path, metadata={METADATA_KEY: text})
        with pytest.raises(WeightsError, match="damaged description"):
            load_checkpoint(str(path))


def test_wrong_tensors(file: Path, tmp_path: Path) -> None:
    good = file.read_bytes()
    for cut in (len(good) // 2, 20, 0):
        (tmp_path / "cut").write_bytes(good[:cut])
        with pytest.raises(WeightsError):
            load_checkpoint(str(tmp_path / "cut"))
    tensors = load_file(file)
    tensors["head.1.bias"] = torch.tensor([float("inf")])
    with_tensors = tmp_path / "inf.safetensors"
    with safe_open(file, framework="pt") as opened:
        save_file(tensors, with_tensors, metadata=opened.metadata())
    with pytest.raises(WeightsError, match=r"not finite in head\.1\.bias"):
        load_checkpoint(str(with_tensors))


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    file = {"state_dict": {"w": torch.zeros(1)}, "best": Payload(ran)}
    for path, save in (
        (tmp_path / "zip.pth", lambda path: torch.save(file, path)),
        (tmp_path / "old.tar", lambda path: path.write_bytes(pickle.dumps(file, protocol=2))),
    ):
        save(path)
        with pytest.raises(WeightsError, match="nothing in it was run"):
            load_checkpoint(str(path))
    assert not ran.exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_beside_the_tensors(module: str, tmp_path: Path) -> None:
    """Training scripts keep a best loss as numpy's float64, under either numpy's name."""
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "loss": np.float64(0.25), "epoch": np.int64(3)}, first
    )
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(second, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith("data.pkl"):
                data, count = re.subn(rb"numpy\._?core\.multiarray", module.encode(), data, count=1)
                assert count == 1
            target.writestr(member.filename, data)
    state = read_state_dict(second, "second")
    assert {key: value.tolist() for key, value in state.items()} == {"w": [1, 1]}


# --------------------------------------------------------------------------------- published names


def test_what_a_person_must_fetch() -> None:
    with pytest.raises(
        WeightsError,
        match=r"not fetched for you \(licence: research only\): get FFc23.tar from https://github",
    ):
        load_checkpoint("sbi:efficientnet_b4.c23")


def test_a_name_that_is_none() -> None:
    with pytest.raises(WeightsError, match=r"neither a file.*did you mean sbi:efficientnet_b4"):
        load_checkpoint("sbi:efficientnet_b4.c32")


def test_a_name_for_a_file(file: Path, tmp_path: Path) -> None:
    """``NAME=PATH`` runs a file by its publisher's protocol, if it can be what it is said to be."""
    with pytest.raises(WeightsError, match="one of effnet_batch's own, not sbi:"):
        load_checkpoint(f"sbi:efficientnet_b4.c23={file}")
    with pytest.raises(WeightsError, match="published is c9f3663e"):
        load_checkpoint(f"polimi:efficientnet_b4.dfdc={file}")
    state = _thesis_resnet()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    assert load_checkpoint(str(path)).info.sampling["num_frames"] == 20
    named = load_checkpoint(f"thesis:resnet50_lstm.dfdc={path}")
    assert (named.info.name, named.info.sampling["num_frames"]) == ("thesis:resnet50_lstm.dfdc", 5)
    with pytest.raises(WeightsError, match="is of layout thesis_resnet50_lstm, but"):
        load_checkpoint(f"thesis:efficientnet_b1_lstm.dfdc={path}")
    # The publisher's own file name says as much.
    path = path.rename(tmp_path / "resnet_lstm_dfdc.pth")
    assert load_checkpoint(str(path)).info.sampling["num_frames"] == 5


def _thesis_resnet() -> dict[str, torch.Tensor]:
    return {key: torch.zeros(shape) for key, shape in resnet_lstm_shapes().items() if shape}


def test_a_published_name_is_fetched_and_checked(
    s3_prefix: str,
    model: SequenceClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(_thesis_resnet(), tmp_path / "published.pth")
    data = (tmp_path / "published.pth").read_bytes()
    uri = f"{s3_prefix}published.pth"
    checkpoints.Storage().write(uri, data)
    entry = dataclasses.replace(
        FORGERY_REGISTRY["thesis:resnet50_lstm.celeb_df"],
        url=uri,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setitem(forgery_registry.FORGERY_REGISTRY, entry.name, entry)
    assert load_checkpoint(entry.name).info.name == entry.name
    changed = dataclasses.replace(entry, sha256="0" * 64)
    monkeypatch.setitem(forgery_registry.FORGERY_REGISTRY, entry.name, changed)
    with pytest.raises(WeightsError, match="damaged or the file was replaced"):
        load_checkpoint(entry.name)


@pytest.mark.parametrize("entry", FORGERY_REGISTRY.values(), ids=FORGERY_REGISTRY)
def test_registry_entries(entry: forgery_registry.PublishedCheckpoint) -> None:
    assert entry.layout in CHECKPOINT_LAYOUTS
    info = CheckpointInfo(
        name=entry.name,
        sequence=CHECKPOINT_LAYOUTS[entry.layout].sequence,
        preprocessing=entry.protocol.preprocessing,
        sampling=entry.protocol.sampling,
        faces=entry.protocol.faces,
        aggregation=entry.protocol.aggregation,
    )
    assert CheckpointInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert entry.page.startswith("https://")
    assert entry.url is None or entry.url.rpartition("/")[2] == entry.file
    # Only licences that let anyone use and pass on the file are fetched without a person.
    assert (entry.url is not None) == (entry.licence in ("MIT", "GPL-3.0-only"))
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert all(0.4 < result.auc <= 1 for result in entry.results)
    found = find_published(entry.sha256 or "0" * 64, entry.file, entry.layout)
    assert found == entry


def test_every_layout_has_a_protocol() -> None:
    assert set(CHECKPOINT_LAYOUTS) <= set(PROTOCOLS)
    assert find_published("0" * 64, "other.pth", "sbi_efficientnet_b4") is None


# ------------------------------------------------------------------------------ scores and verdicts


def test_verdicts() -> None:
    thresholds = Thresholds(fake=0.8, no_forgery_found=0.3)
    assert [thresholds.verdict(score) for score in (0.29, 0.3, 0.79, 0.8)] == [
        VERDICT_NO_FORGERY_FOUND,
        VERDICT_UNDECIDED,
        VERDICT_UNDECIDED,
        VERDICT_FAKE,
    ]
    # Without a band in between every video is decided.
    assert [Thresholds().verdict(score) for score in (0.49, 0.5)] == [
        VERDICT_NO_FORGERY_FOUND,
        VERDICT_FAKE,
    ]


def test_calibration() -> None:
    logit, score, verdict = INFO.calibrated(4.0)
    assert (logit, verdict) == (1.0, VERDICT_UNDECIDED)
    assert score == pytest.approx(0.7310585786300049)
    plain = dataclasses.replace(INFO, calibration=None)
    logit, score, verdict = plain.calibrated(4.0)
    assert (logit, verdict) == (4.0, VERDICT_FAKE)
    assert score == pytest.approx(0.9820137900379085)
    assert Calibration.from_temperature(4.0).apply(2.0) == 0.5
    with pytest.raises(ValueError, match="temperature must be positive"):
        Calibration.from_temperature(0.0)
