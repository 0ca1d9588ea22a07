import os
import pickle
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from s3_server import READER_ACCESS_KEY, READER_SECRET_KEY, S3Server

from effnet_batch.errors import FetchError, OutageError, RecordError, StorageError, TooLargeError
from effnet_batch.storage import ReadRequest, Storage, StorageOptions, join
from effnet_batch.storage.objects import ObjectInfo


@pytest.fixture
def storage(s3_prefix: str) -> Storage:
    return Storage(StorageOptions(num_attempts=2))


def _key(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[2]


def _objects(storage: Storage, uri: str, *, recursive: bool = True) -> list[ObjectInfo]:
    return [each for page in storage.list(uri, recursive) for each in page]


def _error(result: bytes | RecordError) -> tuple[str, bool]:
    assert isinstance(result, FetchError)
    return result.error_type, result.is_transient


# Reading


def test_a_read_is_one_get(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    data = os.urandom(20_000)
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", data)
    etag = storage.info(uri).etag
    assert etag is not None
    mark = s3.access_log.mark()
    assert storage.read(uri, etag=etag, max_bytes=20_000) == data
    assert [(each.method, each.key) for each in s3.access_log.since(mark)] == [("GET", _key(uri))]
    with pytest.raises(TooLargeError, match="20000 bytes, over the limit of 19999"):
        storage.read(uri, max_bytes=19_999)
    s3.put(_key(uri), b"changed")
    with pytest.raises(FetchError) as caught:
        storage.read(uri, etag=etag)
    assert (caught.value.error_type, caught.value.is_transient) == ("SourceChanged", False)
    assert str(caught.value).startswith(f"{uri} was changed since it was listed (")
    assert str(caught.value).endswith("; run with --update to take in the new one")


@pytest.mark.parametrize(
    "name",
    [
        "a b+c.jpg",
        "a#b?c%25&d=e.jpg",
        "日本é.jpg",
        "a::b.jpg",
        "a@b.jpg",
        "nl\nx.jpg",
        "~'()*!.jpg",
    ],
)
def test_keys_are_taken_literally(
    s3: S3Server, s3_prefix: str, storage: Storage, name: str
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}{name}", name.encode())
    assert storage.read(uri) == name.encode()
    assert [each.uri for each in _objects(storage, s3_prefix)] == [uri]
    storage.write(f"{uri}2", b"two")
    assert s3.get(f"{_key(uri)}2") == b"two"
    storage.delete_many([uri, f"{uri}2"])
    assert s3.keys(_key(s3_prefix)) == []


def test_read_many_asks_once_for_each(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    uris = [s3.put(f"{_key(s3_prefix)}{index}", str(index).encode() * 9) for index in range(60)]
    requests = [ReadRequest(uri) for uri in reversed(uris)]
    requests.insert(30, ReadRequest(f"{s3_prefix}missing"))
    requests.insert(40, ReadRequest(uris[0], etag="0123"))
    mark = s3.access_log.mark()
    results = storage.read_many(requests, max_bytes=17)
    seen = s3.access_log.since(mark)
    assert {each.method for each in seen} == {"GET"}
    assert len(seen) == len({each.key for each in seen}) + 1 == 62
    assert _error(results.pop(40)) == ("SourceChanged", False)
    assert _error(results.pop(30)) == ("FileNotFoundError", False)
    assert results[50:] == [str(index).encode() * 9 for index in range(9, -1, -1)]
    assert all(isinstance(each, TooLargeError) for each in results[:50])


def test_tails_are_one_ranged_get_each(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    data = os.urandom(5000)
    uris = [s3.put(f"{_key(s3_prefix)}{size}", data[:size]) for size in (5000, 100, 0)]
    mark = s3.access_log.mark()
    *tails, missing = storage.read_tails([*uris, f"{s3_prefix}missing"], 1000)
    assert tails == [data[-1000:], data[:100], b""]
    assert isinstance(missing, FetchError)
    seen = s3.access_log.since(mark)
    assert sorted((each.method, each.status) for each in seen) == [
        ("GET", 206),
        ("GET", 206),
        ("GET", 404),
        ("GET", 416),
    ]


def test_open_reads_in_big_blocks(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    data = os.urandom(20 << 20)
    uri = s3.put(f"{_key(s3_prefix)}shard.tar", data)
    mark = s3.access_log.mark()
    with storage.open(uri) as file:
        pieces = [file.read(100_000) for _ in range(250)]
        assert b"".join(pieces) == data
        assert len(s3.access_log.since(mark)) == 3
        file.seek(-100, os.SEEK_END)
        assert file.read() == data[-100:]
        file.seek(9 << 20)
        assert file.read(10) == data[9 << 20 :][:10]
        assert file.read(17 << 20) == data[(9 << 20) + 10 :]
    assert {each.method for each in s3.access_log.since(mark)} == {"GET"}
    with storage.open(s3.put(f"{_key(s3_prefix)}empty", b"")) as file:
        assert file.read() == b""


def test_an_open_file_never_mixes_two_versions(
    s3: S3Server, s3_prefix: str, storage: Storage
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}shard.tar", bytes(17 << 20))
    etag = storage.info(uri).etag
    with storage.open(uri) as file:
        file.read(100)
        s3.put(_key(uri), bytes(18 << 20))
        file.seek(16 << 20)
        with pytest.raises(FetchError) as caught:
            file.read(100)
        assert caught.value.error_type == "SourceChanged"
    with pytest.raises(FetchError) as caught:
        storage.open(uri, etag=etag)
    assert caught.value.error_type == "SourceChanged"


def test_a_presigned_url_is_read_in_place_of_the_object(
    s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"signed")
    url = s3.client().generate_presigned_url(
        "get_object", Params={"Bucket": s3.bucket, "Key": _key(uri)}
    )
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage = Storage(StorageOptions(allow_private_hosts=True))
    shown = url.partition("?")[0]
    assert storage.read_many([ReadRequest(shown, url)]) == [b"signed"]
    with storage.open(shown, fetch_uri=url) as file:
        assert file.read() == b"signed"


# Listing


def test_a_listing_needs_no_other_request(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = [f"{_key(s3_prefix)}d/{index:04}.jpg" for index in range(1005)]
        list(pool.map(lambda key: s3.put(key, key.encode()), keys))
    s3.put(f"{_key(s3_prefix)}d2/other.jpg", b"")
    mark = s3.access_log.mark()
    pages = list(storage.list(f"{s3_prefix}d"))
    assert [(each.method, each.key) for each in s3.access_log.since(mark)] == [("GET", "")] * 2
    assert [len(page) for page in pages] == [1000, 5]
    found = [each for page in pages for each in page]
    assert [_key(each.uri) for each in found] == keys
    head = s3.client().head_object(Bucket=s3.bucket, Key=keys[7])
    assert found[7].etag == head["ETag"].strip('"')
    assert found[7].size_bytes == head["ContentLength"]
    assert found[7].mtime is not None
    assert found[7].mtime.replace(microsecond=0) == head["LastModified"]
    assert storage.info(found[7].uri) == ObjectInfo(
        found[7].uri, found[7].size_bytes, found[7].etag, head["LastModified"]
    )


def test_what_a_listing_names(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    for name in ("a.jpg", "ab.jpg", "x/b.jpg", "x/y/c.png", "x2/d.jpg"):
        s3.put(f"{_key(s3_prefix)}{name}", b"1")
    s3.client().put_object(Bucket=s3.bucket, Key=f"{_key(s3_prefix)}folder/", Body=b"")

    def names(uri: str, *, recursive: bool = True) -> list[str]:
        found = _objects(storage, uri, recursive=recursive)
        return [each.uri.removeprefix(s3_prefix) for each in found]

    assert names(s3_prefix) == ["a.jpg", "ab.jpg", "x/b.jpg", "x/y/c.png", "x2/d.jpg"]
    assert names(s3_prefix.rstrip("/"), recursive=False) == ["a.jpg", "ab.jpg"]
    assert names(f"{s3_prefix}x") == ["x/b.jpg", "x/y/c.png"]
    assert names(f"{s3_prefix}a.jpg") == ["a.jpg"]
    assert names(f"{s3_prefix}**/*.jpg") == ["a.jpg", "ab.jpg", "x/b.jpg", "x2/d.jpg"]
    assert names(f"{s3_prefix}x*/?.jpg") == ["x/b.jpg", "x2/d.jpg"]
    assert names(f"{s3_prefix}nothing") == []
    assert storage.exists(f"{s3_prefix}a.jpg")
    assert not storage.exists(f"{s3_prefix}x")


# Writing


def test_writes(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    uri = join(s3_prefix, "data", "part-1.parquet")
    mark = s3.access_log.mark()
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert [each.method for each in s3.access_log.since(mark)] == ["PUT", "PUT"]
    assert s3.get(_key(uri)) == b"two"
    lock = join(s3_prefix, "_lock.json")
    version = storage.create(lock, b"me")
    with pytest.raises(FileExistsError):
        storage.create(lock, b"you")
    assert storage.read_with_version(lock) == (b"me", version)
    assert version is not None
    second = storage.replace(lock, b"me again", version)
    with pytest.raises(FileExistsError):
        storage.replace(lock, b"you", version)
    assert storage.read_with_version(lock) == (b"me again", second)
    storage.delete_many([lock, uri, f"{s3_prefix}never-there"])
    assert s3.keys(_key(s3_prefix)) == []
    with pytest.raises(FileExistsError):
        storage.replace(lock, b"back", second)


def test_one_of_many_creates(s3_prefix: str, storage: Storage) -> None:
    barrier = threading.Barrier(6)

    def create(index: int) -> str | None:
        barrier.wait()
        try:
            return storage.create(f"{s3_prefix}_lock.json", f"owner {index}".encode())
        except FileExistsError:
            return None

    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(create, range(6)))
    assert sum(version is not None for version in versions) == 1


# Wrong credentials, buckets and endpoints


WRONG = [
    ({"AWS_ACCESS_KEY_ID": "nobody"}, "access key id; check AWS_ACCESS_KEY_ID"),
    ({"AWS_SECRET_ACCESS_KEY": "sentinel-wrong"}, "check AWS_SECRET_ACCESS_KEY"),
    ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no AWS credentials found"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_credentials(
    s3: S3Server,
    s3_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    message: str,
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    s3.client_env(monkeypatch, **changes)
    storage = Storage()
    attempts: list[Callable[[], object]] = [
        lambda: storage.read(uri),
        lambda: storage.read_many([ReadRequest(uri)] * 3),
        lambda: storage.read_tails([uri], 5),
        lambda: storage.open(uri),
        lambda: storage.info(uri),
        lambda: storage.write(uri, b"y"),
        lambda: storage.create(f"{uri}2", b"y"),
        lambda: storage.delete_many([uri]),
    ]
    for attempt in attempts:
        with pytest.raises(OutageError, match=message) as outage:
            attempt()
        assert "sentinel" not in str(outage.value)
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(StorageError, match=message):
            check(s3_prefix)
    assert s3.get(_key(uri)) == b"x"


def test_a_bucket_that_is_missing_is_not_created(s3: S3Server, storage: Storage) -> None:
    uri = "s3://effnet-missing/a.jpg"
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(StorageError, match="the bucket does not exist"):
            check(uri)
    with pytest.raises(OutageError, match="the bucket does not exist"):
        storage.read_many([ReadRequest(uri), ReadRequest(uri)])
    with pytest.raises(OutageError, match="the bucket does not exist"):
        storage.info(uri)
    with pytest.raises(StorageError, match="the bucket does not exist"):
        list(storage.list("s3://effnet-missing"))
    buckets = [each["Name"] for each in s3.client().list_buckets()["Buckets"]]
    assert "effnet-missing" not in buckets


def test_checks_leave_nothing(s3: S3Server, s3_prefix: str, storage: Storage) -> None:
    storage.check_writable(s3_prefix)
    storage.check_writable(f"{s3_prefix}out")
    assert s3.keys(_key(s3_prefix)) == []
    with pytest.raises(StorageError, match="does not exist"):
        storage.check_readable(s3_prefix)
    uri = s3.put(f"{_key(s3_prefix)}x/a.jpg", b"")
    for readable in (s3_prefix, f"{s3_prefix}x", f"{s3_prefix}x/*.jpg", uri):
        storage.check_readable(readable)


def test_a_reader_may_not_write(
    s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    s3.client_env(
        monkeypatch, AWS_ACCESS_KEY_ID=READER_ACCESS_KEY, AWS_SECRET_ACCESS_KEY=READER_SECRET_KEY
    )
    storage = Storage()
    assert storage.read(uri) == b"x"
    storage.check_readable(s3_prefix)
    with pytest.raises(StorageError, match="no permission; the credentials need s3:PutObject"):
        storage.check_writable(s3_prefix)
    with pytest.raises(OutageError, match="no permission"):
        storage.write(uri, b"y")


def test_endpoints_that_do_not_answer(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    refused = Storage(StorageOptions(num_attempts=1))
    for check in (refused.check_readable, refused.check_writable):
        with pytest.raises(StorageError, match=r"cannot connect to .*refused.*AWS_ENDPOINT_URL"):
            check(s3_prefix)
    (error,) = refused.read_many([ReadRequest(f"{s3_prefix}a.jpg")])
    assert _error(error) == ("ConnectionError", True)
    with pytest.raises(OutageError, match="cannot write"):
        refused.write(f"{s3_prefix}a.jpg", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:80")
    with pytest.raises(StorageError, match="cannot be resolved"):
        Storage().check_writable(s3_prefix)
    with pytest.raises(StorageError, match="profile"):
        Storage(StorageOptions(profile="nobody")).check_readable(s3_prefix)


# Processes


def _read_in_child(storage: Storage, uri: str) -> bytes:
    return storage.read(uri)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_connections_of_their_own(
    s3: S3Server, s3_prefix: str, storage: Storage, method: Any
) -> None:
    uri = s3.put(f"{_key(s3_prefix)}a.jpg", b"x")
    assert storage.read_many([ReadRequest(uri)] * 2) == [b"x", b"x"]
    storage.write(uri, b"y")
    assert s3.secret_key.encode() not in pickle.dumps(storage)
    with get_context(method).Pool(1) as pool:
        assert pool.apply(_read_in_child, (storage, uri)) == b"y"
        assert pool.apply(storage.read_many, ([ReadRequest(uri)] * 3,)) == [b"y"] * 3
