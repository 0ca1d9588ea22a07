"""What bad and hostile videos get from the whole scoring job: one row each, nothing made up."""

import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bad_files import Watch
from click.testing import CliRunner
from manifest_tables import build_manifest
from PIL import Image
from shard_files import edit_zip, make_parquet, make_tar, make_zip
from skimage import data as photographs
from tiny_checkpoint import tiny_checkpoint
from video_files import PLAYLISTS, encode, first_frames, sound_only, with_size

import effnet_batch
from effnet_batch.cli import main
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify
from effnet_batch.storage import Storage

SMALL: dict[str, Any] = {"num_frames": 24, "size": (64, 48)}
CODECS: dict[str, Callable[[], bytes]] = {
    "h264.mp4": lambda: encode(options={"g": "12", "bf": "2"}, **SMALL),
    "h264.ts": lambda: encode(container="mpegts", options={"g": "12", "bf": "2"}, **SMALL),
    "hevc.mkv": lambda: encode(
        "libx265", "matroska", options={"x265-params": "keyint=12:log-level=none"}, **SMALL
    ),
    "vp9.webm": lambda: encode(
        "libvpx-vp9", "webm", options={"g": "12", "deadline": "realtime"}, **SMALL
    ),
    "av1.mp4": lambda: encode("libsvtav1", options={"g": "12", "preset": "12"}, **SMALL),
    "mpeg4.avi": lambda: encode("mpeg4", "avi", options={"g": "12", "bf": "2"}, **SMALL),
    "mjpeg.mov": lambda: encode("mjpeg", "mov", pixel_format="yuvj420p", **SMALL),
}
MUTATIONS_PER_CODEC = 44
POSSIBLE = {
    "ok",
    "decode_error",
    "unsupported",
    "too_large",
    "out_of_memory",
    "crashed",
    "timeout",
}
"""What a damaged video may become."""


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, info = tiny_checkpoint(0)
    path = str(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")
    save_checkpoint(path, model, info)
    return path


def score(folder: Path, output: Path, checkpoint: str, **settings: Any) -> list[dict[str, Any]]:
    """Runs the job and returns its rows, each of which says what happened, and no more."""
    summary = effnet_batch.score(
        str(folder), str(output), checkpoint=[checkpoint], engine="torch", **settings
    )
    assert summary.state == "complete"
    report = verify(str(output), is_deep=True)
    assert report.is_proven, report
    rows = effnet_batch.read_scores(str(output)).to_pylist()
    for row in rows:
        is_ok = row["status"] == "ok"
        for column in ("score", "logit", "verdict", "tracks"):
            assert (row[column] is not None) == is_ok, row
        assert (row["error_message"] is None) == is_ok
        assert is_ok or row["error_message"].isprintable()
        assert not is_ok or (0 <= row["score"] <= 1 and math.isfinite(row["logit"]))
    return rows


def name_of(row: dict[str, Any]) -> str:
    """Returns the name of a row's file, and of the member in it."""
    return "/".join(filter(None, (row["uri"].rpartition("/")[2], row["member"])))


def mutations(name: str) -> Iterator[bytes]:
    """Yields a clip with bytes flipped, cut off, exchanged, put in or taken out."""
    whole = CODECS[name]()
    for seed in range(MUTATIONS_PER_CODEC):
        rng = np.random.default_rng([seed, *name.encode()])
        data = bytearray(whole)
        start, stop = sorted(rng.integers(0, len(data), 2).tolist())
        half = (stop - start) // 2
        match seed % 5:
            case 0:
                for position in rng.integers(0, len(data), rng.integers(1, 40)):
                    data[position] ^= int(rng.integers(1, 256))
            case 1:
                del data[start:]
            case 2:
                data[start : start + half], data[stop - half : stop] = (
                    data[stop - half : stop],
                    data[start : start + half],
                )
            case 3:
                data[start:start] = rng.bytes(int(rng.integers(1, 400)))
            case 4:
                del data[start : start + int(rng.integers(1, 400))]
        yield bytes(data)


def test_mutated_clips_of_every_codec_are_one_row_each(checkpoint: str, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in CODECS:
        for number, data in enumerate(mutations(name)):
            (folder / f"{number:03}.{name}").write_bytes(data)
    names = [path.name for path in folder.iterdir()]
    assert len(names) >= 300
    rows = score(folder, output, checkpoint, max_failures=1.0, timeout_seconds=60.0)
    assert Counter(row["uri"] for row in rows) == Counter(f"{folder}/{name}" for name in names)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        assert row["status"] in POSSIBLE
        assert row["num_source_records"] == 1
        outcomes[row["uri"].partition(".")[2]][row["status"]] += 1
    # Some of every codec can still be judged, and of each some damage is seen.
    for name in CODECS:
        some = [row for row in rows if row["uri"].endswith(name)]
        assert outcomes[name]["ok"] > 0, outcomes
        assert any(row["status"] != "ok" or row["is_partial"] for row in some), name
    failed = [row for row in rows if row["status"] != "ok"]
    assert failed
    done = CliRunner().invoke(main, ["status", str(output), "--failures=400"])
    assert done.exit_code == 0, done.output
    assert all(Path(row["uri"]).name in done.output for row in failed)


def broken_times() -> bytes:
    """A mp4 file whose frames all last no time."""
    data = bytearray(encode(num_frames=12))
    table = data.index(b"stts")
    count = int.from_bytes(data[table + 8 : table + 12], "big")
    for entry in range(count):
        start = table + 12 + 8 * entry + 4
        data[start : start + 4] = bytes(4)
    return bytes(data)


def no_frames() -> bytes:
    """A mp4 file with a video stream that has no pictures."""
    return first_frames(encode(num_frames=1), 0)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(photographs.astronaut()).save(file, "JPEG")
    return file.getvalue()


FRONT = {"moov_size": "20000"}
"""The index stands before the pictures, so that a cut file still has it."""
MAX_BYTES = 20 << 20
NAME_NOT_UTF8 = b"\xff\xfe.mp4"
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "good.mp4": (lambda: encode(num_frames=24), "ok"),
    "truncated.mp4": (lambda: encode(num_frames=99, muxer_options=FRONT)[:30_000], "ok"),
    "without_index.mp4": (lambda: encode(num_frames=99)[:30_000], "decode_error"),
    "empty.mp4": (lambda: b"", "decode_error"),
    "sound.mp4": (sound_only, "decode_error"),
    "picture.mp4": (picture, "unsupported"),
    "no_frames.mp4": (no_frames, "decode_error"),
    "one_frame.mkv": (lambda: encode(container="matroska", num_frames=1), "ok"),
    "broken_times.mp4": (broken_times, "ok"),
    "wrong_size.mov": (lambda: with_size(16000, 8000), "too_large"),
    "hostile_size.mov": (lambda: with_size(65535, 65535), "decode_error"),
    "hostile_boxes.mp4": (
        lambda: b"\0\0\0\x18ftypisom" + b"\x7f\xff\xff\xffmoov" * 999,
        "decode_error",
    ),
    "hostile.mkv": (
        lambda: b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe" * 99,
        "decode_error",
    ),
    "hostile.avi": (
        lambda: b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl" * 99,
        "decode_error",
    ),
    "large_8k.avi": (
        lambda: encode("mjpeg", "avi", size=(7680, 4320), num_frames=2, pixel_format="yuvj420p"),
        "ok",
    ),
    "larger_than_8k.avi": (
        lambda: encode("mjpeg", "avi", size=(8192, 4352), num_frames=1, pixel_format="yuvj420p"),
        "too_large",
    ),
    "many_bytes.mp4": (lambda: encode(num_frames=5) + bytes(MAX_BYTES), "too_large"),
}


def test_every_bad_video_is_one_row_and_nothing_else_is_opened(
    checkpoint: str, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    canary = tmp_path / "canary.mp4"
    good = encode(num_frames=24)
    canary.write_bytes(good)
    expected = {}
    for name, (make, status) in BAD.items():
        (folder / name).write_bytes(make())
        expected[name] = status
    for number, text in enumerate(PLAYLISTS.values()):
        for way, target in (("path", canary), ("url", f"file:{canary}"), ("near", "good.mp4")):
            name = f"playlist{number}_{way}.mp4"
            (folder / name).write_text(text.format(target))
            expected[name] = "unsupported"
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    expected |= dict.fromkeys(["folder.mp4", "loop.mp4", "pipe.mp4", "gone.mp4"], "fetch_error")
    locked = edit_zip(make_zip([("a.mp4", good), ("b.mp4", good)]), "a.mp4", 8, b"\1\0")
    (folder / "locked.zip").write_bytes(locked)
    playlist = PLAYLISTS["ffconcat"].format(canary).encode()
    members = [("../up.mp4", good), ("list.mp4", playlist), ("cut.mp4", good[:900])]
    (folder / "shard.tar").write_bytes(make_tar(members)[:-4000])
    expected |= {
        "locked.zip/a.mp4": "unsupported",
        "locked.zip/b.mp4": "ok",
        "shard.tar/../up.mp4": "ok",
        "shard.tar/list.mp4": "unsupported",
        "shard.tar/cut.mp4": "decode_error",
    }
    (folder / "list.txt").write_bytes(
        "".join(f"{name.partition('/')[0]}\n" for name in expected).encode() + NAME_NOT_UTF8 + b"\n"
    )
    Path(os.fsdecode(os.fsencode(folder) + b"/" + NAME_NOT_UTF8)).write_bytes(good)
    expected["%FF%FE.mp4"] = "ok"
    watch = Watch(canary)
    rows = score(
        folder / "list.txt", output, checkpoint, max_failures=1.0, max_video_bytes=MAX_BYTES
    )
    assert not watch.was_opened()
    found = {name_of(row): row for row in rows}
    assert {name: row["status"] for name, row in found.items()} == expected
    assert len(rows) == len(expected)
    partial = {name for name, row in found.items() if row["is_partial"]}
    assert partial == {"truncated.mp4"}
    assert found["one_frame.mkv"]["num_frames_used"] == 1
    assert found["broken_times.mp4"]["num_frames_used"] == 8
    assert (found["large_8k.avi"]["width"], found["large_8k.avi"]["height"]) == (7680, 4320)
    # All good clips are the same one, wherever they came from.
    same = ["good.mp4", "locked.zip/b.mp4", "shard.tar/../up.mp4", "%FF%FE.mp4"]
    assert len({found[name]["score"] for name in same}) == 1
    # Of a folder neither the folders in it nor the pipes are videos.
    listed = build_manifest(str(folder), Storage(), medium="video")["uri"].to_pylist()
    assert not {f"{folder}/folder.mp4", f"{folder}/pipe.mp4"} & set(listed)
    assert {f"{folder}/good.mp4", f"{folder}/loop.mp4", f"file://{folder}/%FF%FE.mp4"} < set(listed)


def test_a_face_in_a_clip_is_found_by_the_real_detector_and_judged(
    checkpoint: str, face_model: bytes, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(face_model)
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    astronaut = photographs.astronaut()
    # The face moves to the right by four pixels a frame.
    face = encode(
        num_frames=16,
        size=(512, 512),
        show=lambda number, *_: np.roll(astronaut, 4 * number, axis=1),
    )
    (folder / "face.mp4").write_bytes(face)
    videos = pa.table({"video": [face, encode(num_frames=16, size=(320, 240))]})
    (folder / "shard.parquet").write_bytes(make_parquet(videos))
    rows = score(folder, output, checkpoint, faces="yunet", face_model=str(model), max_failures=1.0)
    found = {row["member"] or "face.mp4": row for row in rows}
    assert {name: row["status"] for name, row in found.items()} == {
        "face.mp4": "ok",
        "row-0": "ok",
        "row-1": "no_face",
    }
    for name in ("face.mp4", "row-0"):
        row = found[name]
        assert (row["num_tracks"], row["num_faces"], row["num_frames_used"]) == (1, 8, 8)
        (track,) = row["tracks"]
        for number, frame in enumerate(track["frames"]):
            middle = (frame["left"] + frame["right"]) / 2
            # The middle of the face in the photograph, measured by eye; every second frame.
            assert middle == pytest.approx(222 + 4 * 2 * number, abs=15)
            assert frame["top"] < 120 < frame["bottom"]
    assert found["face.mp4"]["score"] == found["row-0"]["score"]
