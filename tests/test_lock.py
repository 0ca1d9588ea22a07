"""One run at a time, on a disk and on the real S3 server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from embed_process import FAST_MODEL, EmbedProcess, read_rows
from photographs import small_jpegs
from s3_server import S3Server

from effnet_batch import lock as lock_module
from effnet_batch.errors import LockedError
from effnet_batch.lock import STALE_SECONDS, OutputLock
from effnet_batch.pipelines.verify import verify
from effnet_batch.storage import Storage, StorageOptions, join

HOLD = """
import sys, time
from effnet_batch.lock import OutputLock
from effnet_batch.storage import Storage, StorageOptions
with OutputLock(Storage(StorageOptions()), sys.argv[1], "run-of-another"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["disk", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_prefix")
    return join(root.rstrip("/"), "_lock.json")


@pytest.fixture
def storage(uri: str) -> Storage:
    """Made once the server's environment is there, by which its connections are known."""
    return Storage(StorageOptions())


@pytest.fixture
def other(uri: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, uri]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def holder(**changes: object) -> bytes:
    """Return the lock file of a run on another host that lives at this moment."""
    values = {
        "run_id": "run-far-away",
        "host": "far-away",
        "pid": 1,
        "process_started": 0.0,
        "heartbeat": time.time(),
    }
    return json.dumps({**values, **changes}).encode()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_by_name_until_the_first_ends(
    storage: Storage, uri: str, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(LockedError) as caught, OutputLock(storage, uri, "mine"):
        pass
    for fact in (uri, "run-of-another", socket.gethostname(), str(other.pid)):
        assert fact in str(caught.value)
    assert json.loads(storage.read(uri))["run_id"] == "run-of-another"

    assert other.stdin is not None
    other.stdin.close()
    assert other.wait() == 0
    assert not storage.exists(uri)
    with OutputLock(storage, uri, "mine") as mine:
        held = json.loads(storage.read(uri))
        assert (held["run_id"], held["pid"]) == ("mine", os.getpid())
    assert not mine.was_lost
    assert not storage.exists(uri)


def test_the_lock_of_a_killed_run_on_this_host_is_taken_over_at_once(
    storage: Storage, uri: str, other: subprocess.Popen[str]
) -> None:
    other.kill()
    # Nobody waits for it: it stays as a zombie.
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with OutputLock(storage, uri, "mine"):
        assert json.loads(storage.read(uri))["run_id"] == "mine"
    assert not storage.exists(uri)


@pytest.mark.parametrize(
    ("content", "is_stale"),
    [
        ({}, False),
        ({"heartbeat": time.time() - STALE_SECONDS - 5}, True),
        ({"host": socket.gethostname(), "pid": dead_pid()}, True),
        # A process of this number lives, but it was started at another time.
        ({"host": socket.gethostname(), "pid": os.getppid()}, True),
        (
            {
                "host": socket.gethostname(),
                "pid": os.getppid(),
                "process_started": psutil.Process(os.getppid()).create_time(),
            },
            False,
        ),
        # Neither is an earlier process of our own number, as in a container that was restarted.
        ({"host": socket.gethostname(), "pid": os.getpid()}, True),
        (
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process_started": psutil.Process().create_time(),
            },
            False,
        ),
        (b"", True),
        (b'{"run_id": "cut sh', True),
        (b'{"something": "else"}', True),
        (b"[1, 2]", True),
        (b'{"pid": "x", "heartbeat": null, "host": 3}', True),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_lock_is_stale_when_its_process_or_its_heartbeat_is_gone(
    tmp_path: Path, content: bytes | dict[str, object], is_stale: bool
) -> None:
    storage, uri = Storage(), str(tmp_path / "_lock.json")
    if isinstance(content, dict):  # made now, so that a live run's heartbeat is fresh
        content = holder(**content)
    storage.write(uri, content)
    with ExitStack() as stack:
        if is_stale:
            stack.enter_context(OutputLock(storage, uri, "mine"))
            assert json.loads(storage.read(uri))["run_id"] == "mine"
        else:
            with pytest.raises(LockedError):
                stack.enter_context(OutputLock(storage, uri, "mine"))
            assert storage.read(uri) == content


@pytest.mark.parametrize("is_renewed", [False, True], ids=["dead", "alive"])
def test_a_heartbeat_in_the_future_is_watched(
    storage: Storage, uri: str, monkeypatch: pytest.MonkeyPatch, is_renewed: bool
) -> None:
    """By its age alone it would be fresh for a day, or its live run be robbed."""
    monkeypatch.setattr(lock_module, "STALE_SECONDS", 3.0)
    monkeypatch.setattr(lock_module, "WATCH_SECONDS", 0.1)
    far = time.time() + 86_400
    storage.write(uri, holder(heartbeat=far))
    is_over = threading.Event()

    def renew() -> None:
        while is_renewed and not is_over.wait(0.05):
            storage.write(uri, holder(heartbeat=far + time.monotonic()))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        if is_renewed:
            with pytest.raises(LockedError, match="run-far-away"), OutputLock(storage, uri, "mine"):
                pass
        else:
            with OutputLock(storage, uri, "mine"):
                assert json.loads(storage.read(uri))["run_id"] == "mine"
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("content", [None, holder(heartbeat=0.0)], ids=["free", "stale"])
def test_of_many_that_race_for_a_lock_one_gets_it(
    storage: Storage, uri: str, content: bytes | None
) -> None:
    if content is not None:
        storage.write(uri, content)
    num_runs = 12
    at_once, at_end = threading.Barrier(num_runs), threading.Barrier(num_runs)
    winners, losers, broken = [], [], []

    def try_it(run_id: str) -> None:
        at_once.wait()
        try:
            with OutputLock(storage, uri, run_id):
                winners.append(run_id)
                at_end.wait()
        except LockedError:
            losers.append(run_id)
            at_end.wait()
        except Exception as error:  # noqa: BLE001  shown below
            broken.append(error)
            at_end.abort()

    threads = [threading.Thread(target=try_it, args=(f"run-{i}",)) for i in range(num_runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    assert (len(winners), len(losers)) == (1, num_runs - 1)
    assert not storage.exists(uri)


def test_the_heartbeat_goes_on_and_notices_a_takeover(
    storage: Storage, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.05)
    with OutputLock(storage, uri, "mine") as mine:
        beats = {json.loads(storage.read(uri))["heartbeat"]}
        while len(beats) < 4:
            beats.add(json.loads(storage.read(uri))["heartbeat"])
        assert not mine.was_lost
        taken = holder()
        storage.write(uri, taken)
        while not mine.was_lost:
            time.sleep(0.01)
    assert storage.read(uri) == taken, "the lock of another run must stay"


class Forgetful(Storage):
    """Loses the answers to its first two replacements, which are then refused when sent again."""

    num_lost = 0

    def replace(self, uri: str, data: bytes, version: str) -> str:
        version = super().replace(uri, data, version)
        if self.num_lost < 2:
            self.num_lost += 1
            raise FileExistsError(uri)
        return version


def test_a_lost_answer_is_no_takeover(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.05)
    storage = Forgetful()
    storage.write(uri, holder(heartbeat=0.0))
    with OutputLock(storage, uri, "mine") as mine:
        beats = {json.loads(storage.read(uri))["heartbeat"]}
        while len(beats) < 4 and not mine.was_lost:
            beats.add(json.loads(storage.read(uri))["heartbeat"])
        assert storage.num_lost == 2
        assert not mine.was_lost
    assert not storage.exists(uri)


@pytest.mark.slow
def test_of_two_embed_commands_into_one_output_the_second_is_told_and_the_first_ends(
    s3: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    prefix = s3_prefix.split("/", 3)[3]
    images = small_jpegs(12)
    for index, data in enumerate(images):
        s3.put(f"{prefix}in/{index:02}.jpg", data)
    command = ("embed", f"{s3_prefix}in", f"{s3_prefix}out", *FAST_MODEL)
    with EmbedProcess(s3, tmp_path, *command) as first:
        first.wait_until(lambda: f"{prefix}out/_lock.json" in s3.keys(f"{prefix}out/"))
        run_id = json.loads(s3.get(f"{prefix}out/_lock.json"))["run_id"]
        with EmbedProcess(s3, tmp_path, *command) as second:
            assert second.wait_alone() == 2, second.output
            # Rich breaks lines where it likes.
            assert f"is held by run {run_id}" in " ".join(second.output.split())
        assert first.wait() == 0, first.output
    report = verify(f"{s3_prefix}out", is_deep=True)
    assert report.is_proven, report
    assert (report.num_records, report.num_superseded) == (len(images), 0)
    assert set(read_rows(s3, f"{prefix}out", ["run_id"])["run_id"].to_pylist()) == {run_id}
    assert json.loads(s3.get(f"{prefix}out/run.json"))["state"] == "complete"
    assert f"{prefix}out/_lock.json" not in s3.keys(f"{prefix}out/")


def test_the_lock_goes_when_the_run_fails(storage: Storage, uri: str) -> None:
    with pytest.raises(ZeroDivisionError), OutputLock(storage, uri, "mine"):
        raise ZeroDivisionError
    assert not storage.exists(uri)
