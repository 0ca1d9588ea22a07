"""What bad and hostile input gets: one record each, a finished job, and nothing read outside."""

import ctypes
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bad_files import (
    CANARY_SIZE,
    MAX_IMAGE_BYTES,
    NAME_NOT_UTF8,
    OK,
    write_bad_images,
    write_bad_places,
    write_bad_shards,
    write_hostile_shards,
)
from photographs import encode, photograph, small_jpegs

from effnet_batch.cli import main
from effnet_batch.manifest import build_manifest
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import Storage

MODEL = ("--model=efficientnet_lite0", "--weights=random", "--image-size=64", "--engine=torch")


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    """One Ray for all runs of this file; each of them uses the connection that there is."""
    with ray_session(None):
        yield


def run_command(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Runs the command in this process; returns (exit code, standard output, standard error)."""
    capfd.readouterr()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(list(args), prog_name="effnet-batch")
    signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    return int(caught.value.code or 0), out, err


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Returns every row of every part, as plain Parquet, in no order."""
    return [row for part in (output / "data").iterdir() for row in pq.read_table(part).to_pylist()]


class Watch:
    """Tells whether anybody on this machine opened a file (inotify)."""

    IN_ACCESS, IN_OPEN = 0x1, 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        mask = self.IN_ACCESS | self.IN_OPEN
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask) >= 0

    def was_opened(self) -> bool:
        """Returns whether it was opened since the last call."""
        try:
            return bool(os.read(self._descriptor, 65_536))
        except BlockingIOError:
            return False


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """An image outside of every input; a reader of it would find its size in the rows."""
    path = tmp_path / "outside" / "canary.jpg"
    path.parent.mkdir()
    width, height = CANARY_SIZE
    path.write_bytes(small_jpegs(1, seed=9, width=width, height=height)[0])
    return path


def test_every_bad_file_is_one_record_and_the_job_finishes(
    tmp_path: Path, canary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    images = write_bad_images(folder)
    places = write_bad_places(folder)
    members = write_bad_shards(folder) | write_hostile_shards(folder, canary)
    names = [*images, *places, *dict.fromkeys(name for name, _ in members)]
    good = ["good.jpg", "./good.jpg", "x/../good.jpg", f"{folder}/good.jpg"]
    text = "".join(f"{name}\n" for name in [*names, *good, f"file://{folder}/good.jpg"])
    (folder / "list.txt").write_bytes(text.encode() + NAME_NOT_UTF8 + b"\n")
    watch = Watch(canary)
    arguments = ("embed", str(folder / "list.txt"), str(output), *MODEL)
    arguments += (f"--max-image-bytes={MAX_IMAGE_BYTES}",)

    code, out, err = run_command(capfd, *arguments)
    assert code == 3
    assert "more than --max-failures 5.0%" in err
    expected = {
        **{(name, None): outcome for name, outcome in {**images, **places}.items()},
        **members,
        (f"file://{folder}/%FF%FE.jpg", None): OK,
    }
    rows = rows_of(output)
    found = {
        (row["uri"].removeprefix(f"{folder}/"), row["member"]): (row["status"], row["error_type"])
        for row in rows
    }
    assert found == expected
    assert len(rows) == len(expected)
    for row in rows:
        is_ok = row["status"] == "ok"
        assert (row["embedding"] is not None) == (row["width"] is not None) == is_ok
        assert (row["error_message"] is None) == is_ok
    # All links to it were passed over, and its vector is nowhere.
    assert CANARY_SIZE not in {(row["width"], row["height"]) for row in rows}
    assert not watch.was_opened()
    canary.read_bytes()
    assert watch.was_opened()

    assert run_command(capfd, "verify", str(output), "--deep")[0] == 0
    counts = Counter(status for status, _ in expected.values())
    code, out, _ = run_command(capfd, "status", str(output), "--failures=100")
    assert code == 0, err
    shown = {words[0]: words[1] for line in out.splitlines() if len(words := line.split()) == 2}
    assert {status: shown[status] for status in counts} == {k: str(n) for k, n in counts.items()}
    listed = Counter(line.split()[0] for line in out.partition("\nstatus ")[2].splitlines()[1:])
    assert listed == Counter({k: n for k, n in counts.items() if k != "ok"})

    # The next run tries again what could not be fetched, and nothing else.
    (folder / "missing.jpg").write_bytes(small_jpegs(1)[0])
    code, out, err = run_command(capfd, *arguments, "--max-failures=1")
    assert code == 0, err
    again = [row for row in rows_of(output) if row["attempt"] == 2]
    assert Counter(row["uri"] for row in again) == Counter(f"{folder}/{name}" for name in places)
    assert [row["uri"] for row in again if row["status"] == "ok"] == [f"{folder}/missing.jpg"]
    assert run_command(capfd, "verify", str(output))[0] == 0


def test_a_folder_full_of_traps_is_listed_without_falling_into_one(
    tmp_path: Path, canary: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    images = write_bad_images(folder)
    write_bad_places(folder)
    (folder / "out-of-here").symlink_to(canary.parent, target_is_directory=True)
    (folder / "folder.jpg" / "inner.jpg").write_bytes(b"")
    watch = Watch(canary)
    listed = build_manifest(str(folder), Storage())["uri"].to_pylist()
    # Neither pipes and sockets nor linked folders; broken links become records.
    links = ["loop.jpg", "loop-a.jpg", "loop-b.jpg"]
    names = [*images, *links, "folder.jpg/inner.jpg", *(["closed.jpg"] if os.geteuid() else [])]
    assert sorted(listed) == sorted(
        [*(f"{folder}/{name}" for name in names), f"file://{folder}/%FF%FE.jpg"]
    )
    assert not watch.was_opened()


def mutations(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields damaged photographs: flipped bytes, cuts, exchanged blocks, bytes put in."""
    generator = random.Random(seed)
    photo = photograph("cat").crop((100, 60, 196, 140))
    formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    for index in range(count):
        image_format = formats[index % len(formats)]
        data = bytearray(encode(photo, image_format))
        start, end = sorted(generator.sample(range(len(data)), 2))
        match index // len(formats) % 4:
            case 0:
                for _ in range(generator.randint(1, 20)):
                    data[generator.randrange(len(data))] ^= generator.randint(1, 255)
            case 1:
                del data[start:]
            case 2:
                half = (end - start) // 2
                data[start : start + half], data[end - half : end] = (
                    data[end - half : end],
                    data[start : start + half],
                )
            case 3:
                data[start:start] = generator.randbytes(generator.randint(1, 300))
        yield f"{index:04}.{image_format.lower()}", bytes(data)


def test_mutated_photographs_are_one_record_each(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = []
    for name, data in mutations(seed=7, count=360):
        (folder / name).write_bytes(data)
        names.append(name)
    arguments = ("embed", str(folder), str(output), *MODEL, "--max-failures=1")
    assert run_command(capfd, *arguments)[0] == 0
    rows = rows_of(output)
    assert Counter(row["uri"] for row in rows) == Counter(f"{folder}/{name}" for name in names)
    allowed = {"ok", "decode_error", "unsupported", "too_large"}
    assert {row["status"] for row in rows} <= allowed
    by_format: dict[str, set[bool]] = {}
    for row in rows:
        is_ok = row["status"] == "ok"
        by_format.setdefault(row["uri"].rpartition(".")[2], set()).add(is_ok)
        assert row["num_source_records"] == 1
        if is_ok:
            assert len(row["embedding"]) == 1280
            assert np.isfinite(row["embedding"]).all()
            assert row["error_type"] is None
        else:
            assert row["embedding"] is None
            assert row["error_type"]
            assert row["error_message"].isprintable()
    # Some of every format fail, and of those without checksums some do not.
    assert all(False in found for found in by_format.values())
    assert {name for name, found in by_format.items() if True in found} >= {"jpeg", "gif", "bmp"}
    assert run_command(capfd, "verify", str(output), "--deep")[0] == 0
