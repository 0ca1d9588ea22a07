"""Videos that are decoded in tasks: the same rows as in one process, whatever is killed."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from overflowing import PREPROCESSING, make_overflow
from shard_files import make_tar
from tiny_checkpoint import tiny_checkpoint
from video_files import CLIPS, encode

from effnet_batch import embedding_matrix, read_frames, read_scores, score
from effnet_batch.config import ClusterSettings
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.placement import Placement, num_decoding_lanes, resolve_placement
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify

GPU = EngineChoice("torch", "cuda", "bf16", 256)
NUM_PLAIN = 24
STATUSES = {"cut.mp4": "decode_error", "empty.mp4": "decode_error", "text.mp4": "unsupported"}

# Loaded by every Python process of the run: bytes that carry a marker make PyAV misbehave as a bug
# in a decoder would, in the workers as well as in the isolated children.
SABOTAGE = """
import os, signal, time

import av

original_open = av.open

def sabotaged_open(file, *args, **kwargs):
    data = file.read(1 << 20)
    file.seek(0)
    if b"POISON:SEGV" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"POISON:HANG" in data:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(100_000)
    if b"POISON:MEMORY" in data:
        raise MemoryError
    return original_open(file, *args, **kwargs)

av.open = sabotaged_open
"""


@pytest.mark.parametrize(
    ("placement", "sizes", "lanes"),
    [
        (Placement("split", 1, 0.25, 1), [(16, 1)], 18),
        (Placement("split", 8, 0.25, 1), [(96, 8)], 14),
        (Placement("split", 1, 1, 0), [(2, 0)], 3),
        (Placement("split", 2, 0.5, 1), [(2, 2)], 3),
        (Placement("split", 1, 0.25, 1), [(8, 1), (32, 0), (32, 0)], 64),
    ],
)
def test_videos_in_work_follow_the_cpus(
    placement: Placement, sizes: list[tuple[float, float]], lanes: int
) -> None:
    assert num_decoding_lanes(placement, sizes) == lanes


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two classifiers of one view and two recipes, and one of a view of its own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    small = {"image_size": 48, "resize_size": 48, "interpolation": "bilinear"}
    paths = []
    for seed, changes in enumerate(
        [
            {},
            {"preprocessing": type(tiny_checkpoint()[1].preprocessing)(**small)},
            {"sampling": {"strategy": "every_nth", "ratio": 7, "max_clip_frames": 4}},
        ]
    ):
        model, info = tiny_checkpoint(seed, **changes)
        paths.append(str(folder / f"{seed}.safetensors"))
        save_checkpoint(paths[-1], model, info)
    return paths


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    carphone = (CLIPS / "carphone_pristine.mp4").read_bytes()
    clips = [encode(num_frames=40 + 7 * number) for number in range(4)]
    for number in range(NUM_PLAIN):
        (folder / f"{number:02}.mp4").write_bytes(clips[number % 4])
    (folder / "carphone.mp4").write_bytes(carphone)
    (folder / "cut.mp4").write_bytes(carphone[:200_000])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"no video\n" * 99)
    members = [("a.mp4", clips[0]), ("b.mp4", b"broken"), ("c.mp4", clips[1])]
    (folder / "shard.tar").write_bytes(make_tar(members))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray with a GPU that it believes in, and workers whose decoder can be poisoned."""
    folder = tmp_path_factory.mktemp("sabotage")
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 3, "GPU": 1}')
        with ray_session(None):
            yield


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Placement]:
    """Places actors as beside a GPU; the model runs on the CPU all the same."""
    placed: list[Placement] = []

    def beside_gpu(
        settings: ClusterSettings, engine: EngineChoice, nodes: Any, *, decodes_on_gpu: bool
    ) -> Placement:
        placed.append(resolve_placement(settings, GPU, nodes, decodes_on_gpu=decodes_on_gpu))
        return placed[-1]

    monkeypatch.setattr("effnet_batch.pipelines.score.resolve_placement", beside_gpu)
    return placed


SETTINGS: dict[str, Any] = {"engine": "torch", "device": "cpu", "rows_per_part": 4}


def rows(output: Path) -> pa.Table:
    table = read_scores(str(output)).drop_columns(["run_id"])
    return table.sort_by([("uri", "ascending"), ("member", "ascending")])


def kill(name: str) -> None:
    """Kills one worker process that runs what is called so, as soon as there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if title.startswith("ray::") and name in title:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.01)
    raise AssertionError(f"no process runs {name}")


@contextlib.contextmanager
def killing(output: Path, names: list[str]) -> Iterator[list[int]]:
    """Kills after the first part a process of the first name, and so on; tells the parts by then.

    A thread of its own watches for the parts.
    """
    struck: list[int] = []

    def watch() -> None:
        for number, name in enumerate(names):
            while (num_parts := len(list(output.glob("data/*.parquet")))) <= number:
                time.sleep(0.01)
            kill(name)
            struck.append(num_parts)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield struck
    thread.join(timeout=60)


@pytest.mark.slow
def test_rows_are_those_of_one_process_whatever_is_killed(
    tmp_path: Path,
    cluster: None,
    checkpoints: list[str],
    videos: Path,
    pretended_gpu: list[Placement],
) -> None:
    arguments = {**SETTINGS, "checkpoint": checkpoints, "embeddings": True, "store_crops": 1}
    here = score(str(videos), str(tmp_path / "here"), placement="fused", **arguments)
    assert set(here.stage_seconds) == {"read", "decode", "model", "write"}
    names = ["ray::decode_video", "ScoreWorker", "ray::decode_video"]
    with killing(tmp_path / "apart", names) as struck:
        apart = score(str(videos), str(tmp_path / "apart"), **arguments)
    assert len(struck) == 3
    num_parts = len(list((tmp_path / "apart" / "data").glob("*.parquet")))
    assert max(struck) < num_parts, "the last kill came when nothing was left to do"
    assert set(apart.stage_seconds) == {"model", "write"}
    assert pretended_gpu == [Placement("fused", 1, 3, 1), Placement("split", 1, 0.25, 1)]
    assert verify(str(tmp_path / "apart"), is_deep=True).is_proven
    expected, found = rows(tmp_path / "here"), rows(tmp_path / "apart")
    assert found.num_rows == NUM_PLAIN + 4 + 3
    for row in found.to_pylist():
        name = Path(row["uri"]).name
        wanted = "unsupported" if row["member"] == "b.mp4" else STATUSES.get(name, "ok")
        assert row["status"] == wanted, row
    assert_same(found.to_pylist(), expected.to_pylist())
    assert found["crops"].null_count < found.num_rows
    frames = [read_frames(str(tmp_path / name)) for name in ("here", "apart")]
    keys = [(name, "ascending") for name in ("record_id", "fingerprint", "frame_index")]
    here_frames, apart_frames = (table.sort_by(keys) for table in frames)
    assert here_frames.num_rows > 400
    np.testing.assert_allclose(
        embedding_matrix(apart_frames), embedding_matrix(here_frames), atol=1e-5
    )
    names = set(here_frames.column_names) - {"run_id", "embedding"}
    assert apart_frames.select(names).equals(here_frames.select(names))


def assert_same(found: Any, expected: Any) -> None:
    """Numbers of the model may differ in the last digits, nothing else."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name in ("score", "logit"):
                assert found[name] == (value and pytest.approx(value, abs=1e-5)), name
            else:
                assert_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def test_a_video_that_the_model_gives_no_numbers_for_fails_alone(
    tmp_path: Path, cluster: None, pretended_gpu: list[Placement]
) -> None:
    model, info = tiny_checkpoint(0, preprocessing=PREPROCESSING)
    make_overflow(model.encoder.backbone)
    save_checkpoint(str(tmp_path / "overflow.safetensors"), model, info)
    (tmp_path / "in").mkdir()
    dark = encode(num_frames=8, show=lambda _, width, height: np.zeros((height, width, 3), "u1"))
    for name, video in (("bright", encode(num_frames=40)), ("dark", dark)):
        (tmp_path / "in" / f"{name}.mp4").write_bytes(video)
    checkpoint, output = [str(tmp_path / "overflow.safetensors")], str(tmp_path / "out")
    arguments = {**SETTINGS, "checkpoint": checkpoint, "embeddings": True, "max_failures": 1}
    score(str(tmp_path / "in"), output, **arguments)
    bright, dark_row = rows(tmp_path / "out").to_pylist()
    assert (bright["status"], bright["score"], dark_row["status"]) == ("model_error", None, "ok")
    assert bright["error_message"] == "the model's output is not finite in fp32"
    assert pretended_gpu[0].mode == "split"
    assert verify(output, is_deep=True).is_proven
    assert score(str(tmp_path / "in"), output, **arguments).num_new_records == 0


@pytest.mark.slow
def test_poison_costs_its_own_record_and_no_actor(
    tmp_path: Path,
    cluster: None,
    checkpoints: list[str],
    pretended_gpu: list[Placement],
) -> None:
    marks = {2: b"POISON:SEGV", 4: b"POISON:HANG", 5: b"POISON:MEMORY"}
    (tmp_path / "in").mkdir()
    video = encode(num_frames=8)
    for number in range(7):
        (tmp_path / "in" / f"{number}.mp4").write_bytes(video + marks.get(number, b""))
    score(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        checkpoint=checkpoints[:1],
        timeout_seconds=3,
        max_failures=1,
        **SETTINGS,
    )
    table = rows(tmp_path / "out")
    statuses = dict.fromkeys(range(7), "ok")
    statuses.update({2: "crashed", 4: "timeout", 5: "out_of_memory"})
    assert table["status"].to_pylist() == list(statuses.values())
    assert "SIGSEGV" in table["error_message"][2].as_py()
    assert verify(str(tmp_path / "out"), is_deep=True).is_proven
