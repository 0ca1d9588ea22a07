import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from manifest_tables import build_manifest

from effnet_batch.errors import (
    ConfigError,
    FetchError,
    OutageError,
    RecordError,
    StorageError,
    TooLargeError,
)
from effnet_batch.manifest import source_version
from effnet_batch.storage import ReadRequest, Storage, StorageOptions, canonical_uri


@pytest.fixture
def storage() -> Storage:
    return Storage()


def _names(storage: Storage, uri: str, *, recursive: bool = True) -> list[str]:
    return [each.uri for page in storage.list(uri, recursive) for each in page]


def _as_nobody(function: Callable[[], None]) -> None:
    """Run in a process without root's permissions, and raise what it raises."""
    receiver, sender = multiprocessing.Pipe()

    def work() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            function()
            sender.send(None)
        except (RecordError, StorageError) as error:
            sender.send(error)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    error = receiver.recv()
    process.join()
    if error is not None:
        raise error


# Reading from the disk


def test_read_a_file_whole_in_part_and_bounded(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(1000)
    path = tmp_path / "a b#?%.jpg"
    path.write_bytes(data)
    os.utime(path, ns=(0, 1767323045_678901_999))
    uri = canonical_uri(str(path))
    assert storage.read(uri, max_bytes=1000) == data
    with pytest.raises(TooLargeError, match="over the limit of 999"):
        storage.read(uri, max_bytes=999)
    assert storage.read_tails([uri, uri], 10) == [data[-10:]] * 2
    assert storage.read_tails([uri], 5000) == [data]
    with storage.open(uri) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
    info = storage.info(uri)
    assert (info.size_bytes, info.etag) == (1000, None)
    assert info.mtime == datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


@pytest.mark.parametrize(
    ("mtime_ns", "microseconds"),
    [
        (1767323045_678901_999, 1767323045_678901),
        (0, 0),
        (-1, -1),
        (-86400_000000_001, -86400_000001),
    ],
)
def test_a_file_is_read_in_the_version_of_its_listing_only(
    storage: Storage, tmp_path: Path, mtime_ns: int, microseconds: int
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(0, mtime_ns))
    version = source_version(build_manifest(str(tmp_path), storage))[0].as_py()
    assert version == f"{microseconds}-10"
    request = ReadRequest(str(path), version=version)
    assert storage.read_many([request]) == [b"0123456789"]
    with storage.open(str(path), version=version) as file:
        assert file.read(3) + file.read() == b"0123456789"

    def check_refused(error: object) -> None:
        assert isinstance(error, FetchError)
        assert (error.error_type, error.is_transient) == ("SourceChanged", False)
        assert str(error).startswith(f"{path} was changed since it was listed; run with --update")

    for size, other_ns in ((10, mtime_ns + 1000), (10, mtime_ns - 1000), (9, mtime_ns)):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(0, other_ns))
        check_refused(storage.read_many([request])[0])
        with pytest.raises(FetchError) as caught:
            storage.open(str(path), version=version)
        check_refused(caught.value)
    assert storage.read_many([ReadRequest(str(path))]) == [bytes(9)]


@pytest.mark.parametrize("num_bytes", [4 << 20, -1])
def test_a_file_that_is_written_to_while_it_is_open_is_not_mixed(
    storage: Storage, tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(4 << 20))
    os.utime(path, ns=(0, 0))
    with storage.open(str(path), version=f"0-{4 << 20}") as file:
        assert file.read(10) == bytes(10)
        path.write_bytes(b"x" * (4 << 20))
        with pytest.raises(FetchError, match="was changed"):
            file.read(num_bytes)


def test_what_is_no_readable_file_is_a_record(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "good.jpg").write_bytes(b"good")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.jpg"))
    expected = {
        str(tmp_path / "folder.jpg"): "IsADirectoryError",
        str(tmp_path / "pipe.jpg"): "NotARegularFileError",
        "/dev/zero": "NotARegularFileError",
        str(tmp_path / "socket.jpg"): "OSError",
        str(tmp_path / "broken.jpg"): "FileNotFoundError",
        str(tmp_path / "loop.jpg"): "OSError",
        str(tmp_path / "missing.jpg"): "FileNotFoundError",
        str(tmp_path / "good.jpg" / "x"): "NotADirectoryError",
        str(tmp_path / ("long" * 100)): "OSError",
    }
    requests = [ReadRequest(uri) for uri in (*expected, str(tmp_path / "good.jpg"))]
    *errors, good = storage.read_many(requests)
    assert good == b"good"
    for (uri, error_type), error in zip(expected.items(), errors, strict=True):
        assert isinstance(error, FetchError)
        assert (error.error_type, error.is_transient) == (error_type, False), uri
        assert uri in str(error)
        with pytest.raises(FetchError) as caught:
            storage.open(uri)
        assert caught.value.error_type == error_type
    listener.close()


def test_no_permission_to_read(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    with pytest.raises(FetchError) as caught:
        _as_nobody(lambda: storage.read(str(path)) and None)
    assert (caught.value.error_type, caught.value.is_transient) == ("PermissionError", False)
    with pytest.raises(StorageError, match="no permission"):
        _as_nobody(lambda: storage.check_readable(str(path)))
    with pytest.raises(StorageError, match="no permission"):
        _as_nobody(lambda: storage.check_writable(str(tmp_path)))


def test_read_many_keeps_the_order(storage: Storage, tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / str(index)).write_bytes(str(index).encode())
    requests = [ReadRequest(str(tmp_path / str(index))) for index in reversed(range(301))]
    results = storage.read_many(requests)
    assert isinstance(results[0], FetchError)
    assert results[1:] == [str(index).encode() for index in reversed(range(300))]
    assert storage.read_many([]) == []


def test_the_first_outage_ends_a_read_of_many(tmp_path: Path) -> None:
    with pytest.raises(OutageError, match="no AWS credentials"):
        Storage().read_many([ReadRequest(f"s3://bucket/{index}") for index in range(50)])


def test_connections_are_known_by_the_credentials_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    early = Storage()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(FetchError):  # opened only now, as somebody
            Storage(StorageOptions(num_attempts=1)).read("s3://bucket/key")
        early.exists("/")
        early._backend("s3://bucket/key")
    with pytest.raises(OutageError, match="no AWS credentials"):
        Storage().read("s3://bucket/key")


# Listing the disk


def test_list_a_folder(storage: Storage, tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a.jpg", "b/c/d.jpg", "é.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "outside").symlink_to("/etc")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "broken.jpg").symlink_to("gone")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"")
    top = str(tmp_path)
    odd = canonical_uri(top + os.fsdecode(b"/\xff.jpg"))
    expected = ["a.jpg", "b/10.jpg", "b/2.jpg", "b/c/d.jpg", "broken.jpg", "link.jpg", "é.jpg"]
    assert _names(storage, top) == [*(f"{top}/{name}" for name in expected), odd]
    assert odd.startswith("file:///")
    assert storage.read(odd) == b""
    assert _names(storage, top, recursive=False) == [
        *(f"{top}/{name}" for name in ("a.jpg", "broken.jpg", "link.jpg", "é.jpg")),
        odd,
    ]
    assert _names(storage, f"{top}/a.jpg") == [f"{top}/a.jpg"]
    assert _names(storage, f"{top}/nothing") == []
    infos = {each.uri: each for page in storage.list(top) for each in page}
    assert infos[f"{top}/link.jpg"].size_bytes == 5
    assert infos[f"{top}/broken.jpg"].size_bytes is None
    assert infos[f"{top}/a.jpg"] == storage.info(f"{top}/a.jpg")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "x/a.jpg", "x/y/a.jpg", "x[1]/a.jpg"]),
        ("**", ["a.jpg", "b.jpg", "x/a.jpg", "x/a.png", "x/y/a.jpg", "x[1]/a.jpg"]),
        ("x/**/a.jpg", ["x/a.jpg", "x/y/a.jpg"]),
        ("*/a.*", ["x/a.jpg", "x/a.png", "x[1]/a.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!a].jpg", ["b.jpg"]),
        ("[a-b].jpg", ["a.jpg", "b.jpg"]),
        ("x[1]", ["x[1]/a.jpg"]),
        ("x/*", ["x/a.jpg", "x/a.png"]),
        ("*.gif", []),
    ],
)
def test_globs(storage: Storage, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a.jpg", "b.jpg", "x/a.jpg", "x/a.png", "x/y/a.jpg", "x[1]/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = _names(storage, f"{tmp_path}/{pattern}")
    assert sorted(names) == [f"{tmp_path}/{name}" for name in expected]


def test_a_glob_that_is_none(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a glob"):
        _names(storage, f"{tmp_path}/[z-a].jpg")


def test_pages_are_bounded(storage: Storage, tmp_path: Path) -> None:
    for index in range(2001):
        (tmp_path / str(index)).touch()
    assert [len(page) for page in storage.list(str(tmp_path))] == [1000, 1000, 1]
