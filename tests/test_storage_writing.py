import hashlib
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from effnet_batch.errors import (
    OutageError,
    StorageError,
)
from effnet_batch.storage import Storage, StorageOptions
from effnet_batch.storage.pacing import RateLimiter


@pytest.fixture
def storage() -> Storage:
    return Storage()


# Writing to the disk


def test_write_replaces_whole_files(storage: Storage, tmp_path: Path) -> None:
    uri = f"{tmp_path}/out/run.json"
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert storage.read(uri) == b"two"
    storage.write(f"{tmp_path}/out/data/part-1.parquet", b"part")
    # Readers of `data` see nothing but parts, and the user's folder above nothing at all.
    assert os.listdir(tmp_path / "out" / "data") == ["part-1.parquet"]
    assert sorted(os.listdir(tmp_path / "out")) == ["data", "run.json"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_being_written_lies_where_the_output_can_take_it(
    storage: Storage, tmp_path: Path
) -> None:
    """A folder called ``_tmp`` above an output is another's: on another disk, or not to be used."""
    output = tmp_path / "mount" / "out"
    (tmp_path / "mount").mkdir()
    foreign = tmp_path / "mount" / "_tmp"
    foreign.write_text("a file, so that nobody can write into it")
    storage.create(f"{output}/_lock.json", b"held")
    storage.write(f"{output}/data/part-1.parquet", b"part")
    # In an output that is held the parts lie in its own folder until they are whole.
    assert os.listdir(output / "data") == ["part-1.parquet"]
    assert sorted(os.listdir(output)) == ["_lock.json", "_tmp", "data"]
    foreign.unlink()
    foreign.symlink_to("/proc")
    storage.write(f"{output}/run.json", b"{}")
    assert storage.read(f"{output}/run.json") == b"{}"


def test_writers_at_once_leave_their_files_and_nothing_else(
    storage: Storage, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: storage.write(f"{tmp_path}/{n % 50}", b"x"), range(400)))
    assert sorted(os.listdir(tmp_path), key=int) == [str(n) for n in range(50)]


def test_a_write_that_fails_is_an_outage_and_leaves_nothing(
    storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(OutageError, match="cannot write"):
        storage.write(f"{tmp_path}/target", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutageError, match="part of the path is a file"):
        storage.write(f"{tmp_path}/file/x/y", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "target"]


def test_one_of_many_creates(storage: Storage, tmp_path: Path) -> None:
    uri = f"{tmp_path}/_lock.json"
    barrier = threading.Barrier(8)

    def create(index: int) -> str | None:
        barrier.wait()
        try:
            return storage.create(uri, f"owner {index}".encode())
        except FileExistsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(create, range(8)))
    winners = [index for index, version in enumerate(versions) if version is not None]
    assert len(winners) == 1
    assert storage.read_with_version(uri) == (
        f"owner {winners[0]}".encode(),
        versions[winners[0]],
    )


def test_replace_loses_no_update(storage: Storage, tmp_path: Path) -> None:
    uri = f"{tmp_path}/counter"
    storage.create(uri, b"0")

    def increment(_: int) -> None:
        while True:
            data, version = storage.read_with_version(uri)
            try:
                storage.replace(uri, str(int(data) + 1).encode(), version)
            except FileExistsError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(40)))
    assert storage.read(uri) == b"40"
    storage.delete_many([uri, f"{tmp_path}/never-there"])
    assert not storage.exists(uri)
    with pytest.raises(FileExistsError):
        storage.replace(uri, b"x", hashlib.sha256(b"40").hexdigest())


def test_checks_of_folders(storage: Storage, tmp_path: Path) -> None:
    storage.check_writable(f"{tmp_path}/new/folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    storage.check_readable(f"{tmp_path}/new")
    storage.check_readable(f"{tmp_path}/new/*.jpg")
    with pytest.raises(StorageError, match="does not exist"):
        storage.check_readable(f"{tmp_path}/missing")
    with pytest.raises(StorageError, match="does not exist"):
        storage.check_readable(f"{tmp_path}/missing/*.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file"):
        storage.check_writable(f"{tmp_path}/file")
    with pytest.raises(StorageError, match="cannot write into /proc"):
        storage.check_writable("/proc/nothing")


# What all storage shares


def test_storage_pickles_as_its_options(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel-secret")
    storage = Storage(StorageOptions(requester_pays=True, num_attempts=1))
    with pytest.raises(OutageError):
        storage.read("s3://bucket/key")
    pickled = pickle.dumps(storage)
    assert b"sentinel" not in pickled
    assert pickle.loads(pickled).options == storage.options


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="num_attempts must be 1 or more, got 0"):
        StorageOptions(num_attempts=0)
    with pytest.raises(ValueError, match="max_requests_per_second must be above 0"):
        StorageOptions(max_requests_per_second=0)


def test_rate_limiter_spreads_what_is_over_the_rate() -> None:
    now = 0.0
    waits: list[float] = []
    limiter = RateLimiter(4, clock=lambda: now, sleep=waits.append)
    for _ in range(4):
        limiter.wait()
    assert waits == []
    for _ in range(3):  # all at the same moment: each waits a quarter of a second more
        limiter.wait()
    assert waits == [0.25, 0.5, 0.75]
    now = 100.0  # a long pause saves up one second's worth, no more
    waits.clear()
    for _ in range(5):
        limiter.wait()
    assert waits == [0.25]


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure"), ("hf", "huggingface_hub", "hub")],
)
def test_a_missing_package_names_its_extra(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=rf"effnet-batch\[{extra}\]"):
        storage.read(f"{scheme}://owner/name/key")
