"""How far a precision moves numbers: measured, kept in run.json, and held to a limit."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from photographs import small_jpegs
from tiny_checkpoint import tiny_checkpoint
from video_files import encoded

import effnet_batch
from effnet_batch.config import EmbedConfig
from effnet_batch.errors import JobError
from effnet_batch.models.architectures import build_model
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.engine_base import Frames
from effnet_batch.pipelines.drift import (
    Judged,
    Scores,
    Vectors,
    check_drift,
    class_scores,
    known_drift,
    measure_drift,
    wants_drift,
)
from effnet_batch.pipelines.drift_videos import EncoderKeeper
from effnet_batch.pipelines.session import ray_session
from effnet_batch.stages.lanes import StageClock

BF16 = {"engine": "torch", "device": "cpu", "precision": "bf16"}
BF16_CHOICE = EngineChoice("torch", "cpu", "bf16", 16)


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with ray_session(None):
        yield


def run_json(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


class Messages:
    """Reporter that remembers."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def warning(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, **counts: float | None) -> None:
        pass


def test_the_largest_differences_are_found() -> None:
    plain = np.array([[3, 4], [1, 0], [0, 2]], np.float32)
    moved = np.array([[6, 8], [1, 1], [0, 2]], np.float32)  # longer, turned by 45 degrees, the same
    choices: list[EngineChoice] = []

    def judge(choice: EngineChoice) -> Judged:
        choices.append(choice)
        if choice.precision == "fp32":
            return {"all": (plain, np.array([[0.5, 0.5], [0.25, 0.75]]))}
        return {"all": (moved, np.array([[0.5, 0.5], [0.3, 0.7]]))}

    drift = measure_drift(EngineChoice("torch", "cuda", "bf16", 512, compiled=True), judge)
    assert drift.min_cosine == pytest.approx(np.sqrt(0.5))
    assert drift.median_cosine == pytest.approx(1)
    assert drift.max_score_change == pytest.approx(0.05)
    assert (drift.precision, drift.num_vectors) == ("bf16", 3)
    assert choices[0] == EngineChoice("torch", "cuda", "fp32", 16)
    assert str(drift) == (
        "bf16 against fp32 over 3 frames: cosine at least 0.70711, median 1.00000, score 0.05"
    )


def test_nothing_to_compare_is_said() -> None:
    nothing = {"images": (np.empty((0, 4), np.float32), np.empty((0, 3)))}
    for judged in (nothing, {}):
        drift = measure_drift(BF16_CHOICE, lambda _, judged=judged: judged)
        assert (drift.min_cosine, drift.median_cosine, drift.max_score_change) == (None,) * 3
        assert drift.num_vectors == 0
        assert "no record could be read" in str(drift)


def test_records_that_one_of_both_could_not_read_are_left_out() -> None:
    def video(*vectors: list[int], score: float) -> tuple[Vectors, Scores]:
        return np.array(vectors, np.float32), np.array([score])

    def judge(choice: EngineChoice) -> Judged:
        if choice.precision == "fp32":
            return {
                "a": video([1, 0], score=0.9),
                "b": video([1, 0], [0, 1], score=0.5),
                "broken off": video([1, 0], [0, 1], score=0.9),
            }
        return {
            "b": video([1, 0], [0, 1], score=0.25),
            "c": video([0, 1], score=0.1),
            "broken off": video([0, 1], score=0.1),
        }

    drift = measure_drift(BF16_CHOICE, judge)
    assert (drift.num_vectors, drift.min_cosine, drift.max_score_change) == (2, 1.0, 0.25)


@pytest.mark.parametrize(
    ("broken", "message"),
    [("bf16", "^bf16 gives .* choose --precision fp32"), ("fp32", "^the model gives .* in fp32")],
)
@pytest.mark.parametrize("vector", [[0.0, np.nan], [0.0, np.inf], [0.0, 1.0]])
def test_what_is_no_number_ends_the_run(broken: str, message: str, vector: list[float]) -> None:
    def judge(choice: EngineChoice) -> Judged:
        if choice.precision != broken:
            return {"images": (np.ones((1, 2), np.float32), np.array([0.5]))}
        score = np.nan if vector[1] == 1 else 0.5
        return {"images": (np.array([vector], np.float32), np.array([score]))}

    with pytest.raises(JobError, match=message):
        measure_drift(BF16_CHOICE, judge)


def test_frames_without_numbers_are_not_judged_at_all() -> None:
    class Broken:
        embedding_dim, batch_size = 2, 4

        def encode(self, frames: Frames, clock: StageClock) -> "Future[np.ndarray]":
            future: Future[np.ndarray] = Future()
            future.set_result(np.full((len(frames), 2), np.nan, np.float32))
            return future

    keeper = EncoderKeeper(Broken(), "fp16")
    with pytest.raises(JobError, match="fp16 gives vectors that are no numbers"):
        keeper.encode(np.zeros((1, 8, 8, 3), np.uint8), StageClock())


def test_a_change_that_is_no_number_is_too_much() -> None:
    run = SimpleNamespace(config=EmbedConfig.from_flat({"max_score_drift": 1.0}))
    found = {"precision": "bf16", "num_vectors": 1, "max_score_change": 1.0, "golden": None}
    check_drift(run, found)
    with pytest.raises(JobError, match="moves a score by nan"):
        check_drift(run, {**found, "max_score_change": float("nan")})


def test_what_was_found_on_nothing_is_not_known() -> None:
    found = {"precision": "bf16", "num_vectors": 1, "golden": None}
    run = SimpleNamespace(config=EmbedConfig.from_flat({}), previous={"drift": found})
    assert known_drift(run) == found
    run.previous = {"drift": {**found, "num_vectors": 0}}
    assert known_drift(run) is None


def test_class_scores_are_those_of_the_classifier() -> None:
    model = build_model("mobilenet_v2", num_classes=5).eval()
    embeddings = torch.rand(3, model.embedding_dim)
    with torch.inference_mode():
        wanted = model.fc(embeddings).softmax(1).numpy()
    np.testing.assert_allclose(class_scores(model, embeddings.numpy()), wanted, rtol=1e-5)
    assert class_scores(build_model("mobilenet_v2", num_classes=0), embeddings.numpy()).size == 0


@pytest.mark.parametrize(
    ("precision", "settings", "num_pending", "wanted"),
    [
        ("bf16", {}, 5, True),
        ("fp32", {"max_score_drift": 0.1}, 5, False),
        ("bf16", {"max_score_drift": 0.1}, 0, False),
        ("bf16", {"precision": "bf16"}, 5, False),
        ("bf16", {"precision": "bf16", "max_score_drift": 0.0}, 5, True),
        ("bf16", {"precision": "bf16", "golden": "photos/"}, 5, True),
    ],
)
def test_a_precision_is_looked_at_if_nobody_chose_it_or_somebody_asks(
    precision: str, settings: dict[str, Any], num_pending: int, wanted: bool
) -> None:
    pending = SimpleNamespace(num_rows=num_pending)
    run = SimpleNamespace(config=EmbedConfig.from_flat(settings), pending=pending)
    assert wants_drift(run, precision) is wanted


def test_embed_keeps_what_it_found_and_stops_where_it_is_too_much(
    ray_running: None, tmp_path: Path
) -> None:
    folder, golden = tmp_path / "images", tmp_path / "golden"
    for place, seed in ((folder, 0), (golden, 1)):
        place.mkdir()
        for number, data in enumerate(small_jpegs(3, seed=seed)):
            (place / f"{number}.jpg").write_bytes(data)
    (folder / "broken.jpg").write_bytes(b"no image")
    output, settings = tmp_path / "out", {"model": "efficientnet_lite0", **BF16}
    with pytest.raises(JobError, match=r"bf16 moves a score by 0\.\d+ .* --max-score-drift 1e-09"):
        effnet_batch.embed(str(folder), str(output), max_score_drift=1e-9, **settings)
    failed = run_json(output)
    assert (failed["state"], failed["drift"]["num_vectors"]) == ("failed", 3)
    assert not list((output / "data").glob("*"))

    heard = Messages()
    effnet_batch.embed(
        str(folder), str(output), max_score_drift=0.5, max_failures=1.0, reporter=heard, **settings
    )
    done = run_json(output)
    # It was known already, and is not measured again.
    assert (done["state"], done["drift"]) == ("complete", failed["drift"])
    assert not any("against fp32" in text for text in heard.texts)
    assert 0.99 < done["drift"]["min_cosine"] <= done["drift"]["median_cosine"] < 1
    assert 0 < done["drift"]["max_score_change"] < 0.1

    heard = Messages()
    other = tmp_path / "other"
    effnet_batch.embed(str(folder), str(other), golden=str(golden), reporter=heard, **settings)
    found = run_json(other)["drift"]
    assert found["golden"] == str(golden)
    assert found["max_score_change"] != done["drift"]["max_score_change"]
    assert sum("bf16 against fp32 over 3 frames" in text for text in heard.texts) == 1

    plain = tmp_path / "plain"
    effnet_batch.embed(str(folder), str(plain), max_failures=1.0, **settings)
    assert run_json(plain)["drift"] is None


def test_videos_are_held_against_fp32_too(ray_running: None, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(encoded("MPEG-4 in mp4"))
    (folder / "b.mp4").write_bytes(b"no video")
    model, info = tiny_checkpoint()
    assert model.lstm is not None
    with torch.no_grad():
        model.lstm.weight_ih_l0 *= 1e9  # random features are of the order of 1e-10
    checkpoint = str(tmp_path / "tiny.safetensors")
    save_checkpoint(checkpoint, model, info)
    output = tmp_path / "scores"
    with pytest.raises(JobError, match="more than --max-score-drift 1e-12"):
        effnet_batch.score(
            str(folder), str(output), checkpoint=[checkpoint], max_score_drift=1e-12, **BF16
        )
    drift = run_json(output)["drift"]
    assert drift["num_vectors"] == 8  # of one video
    assert 0.9 < drift["min_cosine"] < 1
    effnet_batch.score(str(folder), str(output), checkpoint=[checkpoint], **BF16)
    assert run_json(output)["drift"] == drift

    vectors = tmp_path / "vectors"
    effnet_batch.embed(
        str(folder),
        str(vectors),
        model="efficientnet_lite0",
        num_frames=4,
        image_size=64,
        max_score_drift=0.2,
        **BF16,
    )
    drift = run_json(vectors)["drift"]
    assert drift["num_vectors"] == 4
    assert 0 < drift["max_score_change"] < 0.2
