"""What bad and hostile input gets: one record each, a finished job, and nothing read outside."""

import http.server
import os
import random
import signal
import socket
import threading
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
    Watch,
    write_bad_images,
    write_bad_places,
    write_bad_shards,
    write_hostile_shards,
)
from manifest_tables import build_manifest
from photographs import encode, photograph, small_jpegs
from s3_server import S3Server

from effnet_batch.cli import main
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import Storage
from effnet_batch.storage.hosts import is_public

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


REFUSED = {
    "file:///{canary}": "local file",
    "{canary}": "local file",
    "../../outside/canary.jpg": "leaves",
    "simplecache::s3://effnet-test/a.jpg": "::",
    "zip://canary.jpg::file:///{canary}": "::",
    "http://169.254.169.254/latest/meta-data/iam/": "private",
    "http://[fd00:ec2::254]/latest/meta-data/": "private",
    "http://metadata.google.internal/computeMetadata/v1/": "private",
    "http://localhost:{port}/inside.jpg": "private",
    "http://127.0.0.1:{port}/inside.jpg": "private",
    "http://0x7f000001:{port}/inside.jpg": "private",
    "http://user:SENTINELpassword@127.0.0.1:{port}/inside.jpg": "user information",
    "https://h.example/a.jpg?sig=SENTINELsignature::file:///etc/passwd": "::",
}


class Web(http.server.ThreadingHTTPServer):
    """A web server on every address of this machine that notes what it is asked for."""

    def __init__(self, pages: dict[str, bytes | str]) -> None:
        super().__init__(("", 0), WebHandler)
        self.pages = pages
        self.asked: list[str] = []


class WebHandler(http.server.BaseHTTPRequestHandler):
    """Answers with a page's bytes, or sends on to the URL that stands there instead."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Web)
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif isinstance(page, str):
            self.send_response(302)
            self.send_header("Location", page)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(canary: Path) -> Iterator[Web]:
    """A server of one image and of ways that lead somewhere else."""
    with Web({"/inside.jpg": small_jpegs(1)[0]}) as server:
        top = f"http://127.0.0.1:{server.server_port}"
        server.pages |= {
            "/moved.jpg": "/inside.jpg",
            "/far.jpg": f"{top}/moved.jpg",
            "/round.jpg": f"{top}/round.jpg",
            "/to-file.jpg": f"file://{canary}",
            "/to-user.jpg": f"http://user:SENTINELpassword@127.0.0.1:{server.server_port}/",
        }
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_hostile_list_in_a_bucket_is_refused_before_anything_is_read(
    tmp_path: Path,
    canary: Path,
    web: Web,
    s3: S3Server,
    s3_prefix: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    watch = Watch(canary)
    key = s3_prefix.removeprefix(f"s3://{s3.bucket}/")
    lines = [line.format(canary=canary, port=web.server_port) for line in REFUSED]
    for start in range(0, len(lines), 10):  # a message has room for ten
        some = lines[start : start + 10]
        uri = s3.put(f"{key}list.txt", "\n".join(["good.jpg", *some]).encode())
        code, out, err = run_command(capfd, "embed", uri, str(tmp_path / "out"), *MODEL)
        assert code == 2
        assert f"{len(some)} entries are refused" in err
        said = [line for line in err.splitlines() if line.startswith("  line ")]
        for number, (line, reason) in enumerate(
            zip(said, list(REFUSED.values())[start:], strict=False)
        ):
            assert line.startswith(f"  line {number + 2}: ")
            assert reason in line
        assert len(said) == len(some)
        assert "SENTINEL" not in out + err
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert not watch.was_opened()
    assert web.asked == []


def test_web_sources_and_where_they_lead(
    tmp_path: Path, canary: Path, web: Web, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(canary)
    top = f"http://127.0.0.1:{web.server_port}"
    expected = {
        "inside.jpg": OK,
        "moved.jpg": OK,
        "far.jpg": OK,
        "round.jpg": ("fetch_error", "TooManyRedirectsError"),
        "to-file.jpg": ("fetch_error", "RefusedHostError"),
        "to-user.jpg": ("fetch_error", "RefusedHostError"),
        "missing.jpg": ("fetch_error", "FileNotFoundError"),
    }
    # A port without a server behind it: one dead host among others does not stop the job.
    dead = "http://127.0.0.1:9/dead.jpg"
    (tmp_path / "list.txt").write_text("\n".join([dead, *(f"{top}/{name}" for name in expected)]))
    arguments = ("embed", str(tmp_path / "list.txt"), str(tmp_path / "out"), *MODEL)
    code, _, err = run_command(capfd, *arguments, "--allow-private-hosts", "--max-failures=1")
    assert code == 0, err
    rows = rows_of(tmp_path / "out")
    found = {row["uri"]: (row["status"], row["error_type"]) for row in rows}
    assert found == {
        **{f"{top}/{name}": outcome for name, outcome in expected.items()},
        dead: ("fetch_error", "ConnectionError"),
    }
    assert "SENTINEL" not in repr(rows)
    assert not watch.was_opened()

    # What a name leads to is only known when it is looked up, and then decides in the same way.
    name = socket.gethostname()
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        pytest.skip(f"this machine's own name {name!r} cannot be looked up")
    if any(is_public(address) for address in addresses):
        pytest.skip(f"this machine's own name {name!r} leads to a public address")
    web.asked.clear()
    (tmp_path / "names.txt").write_text(f"http://{name}:{web.server_port}/inside.jpg\n")
    arguments = ("embed", str(tmp_path / "names.txt"), str(tmp_path / "out-names"), *MODEL)
    code, _, err = run_command(capfd, *arguments, "--max-failures=1")
    assert code == 0, err
    (row,) = rows_of(tmp_path / "out-names")
    assert (row["status"], row["error_type"]) == ("fetch_error", "RefusedHostError")
    assert web.asked == []

    # The flag can be given afterwards.
    arguments = ("retry", str(tmp_path / "out-names"), "--status=fetch_error")
    code, _, err = run_command(capfd, *arguments, "--allow-private-hosts")
    assert code == 0, err
    rows = rows_of(tmp_path / "out-names")
    assert [(r["attempt"], r["status"]) for r in sorted(rows, key=lambda r: r["attempt"])] == [
        (1, "fetch_error"),
        (2, "ok"),
    ]
    assert set(web.asked) == {"/inside.jpg"}
