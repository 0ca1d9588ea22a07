"""gs://, az:// and hf://, through their real packages, against servers of their own."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud_servers import (
    AZURE_KEY,
    AzureServer,
    GoogleServer,
    HubServer,
    RefusingServer,
    azure_connection,
)
from photographs import small_jpegs

import effnet_batch
from effnet_batch.errors import FetchError, OutageError, StorageError, TooLargeError
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import ReadRequest, Storage

KEYS = ("in/a b#?%.jpg", "in/x//3.jpg", "in/x/[1].jpg", "in/x/b.tar", "in/ü.jpg")
SERVERS = {"gs": GoogleServer, "az": AzureServer, "hf": HubServer}

Server = GoogleServer | AzureServer | HubServer


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    started: dict[str, Server] = {}
    yield started
    for server in started.values():
        server.stop()


def start(name: str, servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """Start a server once, with the same objects for all, and set the environment for it."""
    if name not in servers:
        server = SERVERS[name]()
        servers[name] = server
        for key in KEYS:
            server.put(key, 3 * key.encode())
        server.put("empty", b"")
    server = servers[name]
    for variable, value in server.env.items():
        monkeypatch.setenv(variable, value)
    if name == "hf":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    return server


@pytest.fixture(params=["gs", "az", "hf"])
def server(
    request: pytest.FixtureRequest, servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> Server:
    return start(request.param, servers, monkeypatch)


@pytest.fixture(params=["gs", "az"])
def writable(
    request: pytest.FixtureRequest, servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> Server:
    return start(request.param, servers, monkeypatch)


def names(uri: str, *, recursive: bool = True) -> list[str]:
    return sorted(each.uri for page in Storage().list(uri, recursive) for each in page)


def test_list(server: Server) -> None:
    root = server.root
    under = [f"{root}/{key}" for key in KEYS]
    assert names(f"{root}/in") == names(f"{root}/in/") == under
    assert names(root) == [f"{root}/empty", *under]
    assert names(f"{root}/in", recursive=False) == [under[0], under[-1]]
    assert names(f"{root}/in/**/*.jpg") == [uri for uri in under if uri.endswith("jpg")]
    assert names(f"{root}/in/x/b.t*") == [f"{root}/in/x/b.tar"]
    assert names(f"{root}/in/x/b.tar") == [f"{root}/in/x/b.tar"]
    assert names(f"{root}/none") == names(f"{root}/in/x/b.ta") == []
    storage = Storage()
    for uri in (root, f"{root}/in", f"{root}/in/x", f"{root}/in/x/b.tar", f"{root}/in/*.jpg"):
        storage.check_readable(uri)
    with pytest.raises(StorageError, match="none does not exist, and nothing below it"):
        storage.check_readable(f"{root}/none")


def test_read(server: Server) -> None:
    storage = Storage()
    listed = {each.uri: each for page in storage.list(f"{server.root}/in") for each in page}
    assert len(listed) == len(KEYS)
    for key in KEYS:
        uri, data = f"{server.root}/{key}", 3 * key.encode()
        info = listed[uri]
        assert info.size_bytes == len(data)
        assert info.etag
        assert (info.mtime is None) == isinstance(server, HubServer)
        found = storage.info(uri)
        assert (found.size_bytes, found.etag) == (info.size_bytes, info.etag)
        assert storage.read(uri, etag=info.etag, max_bytes=len(data)) == data
        with pytest.raises(TooLargeError):
            storage.read(uri, max_bytes=len(data) - 1)
        with pytest.raises(FetchError) as caught:
            storage.read(uri, etag="123", max_bytes=100)
        assert caught.value.error_type == "SourceChanged"
        assert storage.read_tails([uri], 5) == [data[-5:]]
        assert storage.read_tails([uri], 5000) == [data]
        with storage.open(uri, etag=info.etag) as file:
            file.seek(-4, os.SEEK_END)
            assert file.read() == data[-4:]
        with pytest.raises(FetchError, match="was changed"):
            storage.open(uri, etag="123")
    assert storage.read(f"{server.root}/empty", max_bytes=9) == b""
    assert storage.read_tails([f"{server.root}/empty"], 5) == [b""]
    assert storage.exists(f"{server.root}/{KEYS[0]}")
    assert not storage.exists(f"{server.root}/in")
    error, good = storage.read_many(
        [ReadRequest(f"{server.root}/none.jpg"), ReadRequest(f"{server.root}/{KEYS[0]}")]
    )
    assert good == 3 * KEYS[0].encode()
    assert isinstance(error, FetchError)
    assert (error.error_type, error.is_transient) == ("FileNotFoundError", False)


def test_an_object_that_is_replaced_is_not_read_as_the_listed_one(server: Server) -> None:
    storage = Storage()
    uri = f"{server.root}/changing.jpg"
    server.put("changing.jpg", b"old")
    etag = storage.info(uri).etag
    assert storage.read(uri, etag=etag) == b"old"
    server.put("changing.jpg", b"new")
    with pytest.raises(FetchError, match="was changed since it was listed"):
        storage.read(uri, etag=etag)
    assert storage.read(uri, etag=storage.info(uri).etag) == b"new"


def test_a_missing_bucket_is_an_outage(server: Server) -> None:
    missing = server.root[:-1] + "x"
    storage = Storage()
    what = r"(bucket|container) does not exist; create it|repository does not exist, or it is"
    with pytest.raises(OutageError, match=what):
        storage.read(f"{missing}/a.jpg")
    with pytest.raises(StorageError, match=what):
        storage.check_readable(f"{missing}/in")
    with pytest.raises(StorageError, match=what):
        names(f"{missing}/in")
    if not isinstance(server, HubServer):
        for refused in (storage.write, storage.create):
            with pytest.raises(OutageError, match=what):
                refused(f"{missing}/out", b"x")
        with pytest.raises(OutageError, match=what):
            storage.delete_many([f"{missing}/out"])
        with pytest.raises(StorageError, match=what):
            storage.check_writable(missing)


def test_write(writable: Server) -> None:
    storage = Storage()
    storage.check_writable(f"{writable.root}/out")
    assert names(f"{writable.root}/out") == []
    uri = f"{writable.root}/out/part é#1.parquet"
    for data in (b"one", b"", b"two"):
        storage.write(uri, data)
        assert writable.get("out/part é#1.parquet") == data
    large = os.urandom(55 << 20)  # more than either package puts in one request
    storage.write(f"{writable.root}/out/large", large)
    assert writable.get("out/large") == large
    storage.delete_many([uri, uri, f"{writable.root}/out/large"])
    assert names(f"{writable.root}/out") == []


def test_one_of_many_creates_and_replaces(writable: Server) -> None:
    storage = Storage()
    uri = f"{writable.root}/lock/_lock.json"

    def winners(write: object) -> list[str]:
        def attempt(index: int) -> str | None:
            try:
                return write(index)  # type: ignore[operator]
            except FileExistsError:
                return None

        with ThreadPoolExecutor(8) as pool:
            return [version for version in pool.map(attempt, range(8)) if version]

    (version,) = winners(lambda index: storage.create(uri, b"owner %d" % index))
    data, found = storage.read_with_version(uri)
    assert found == version
    assert writable.get("lock/_lock.json") == data
    # The answer to the first request may be lost and the request sent again.
    assert storage.create(uri, data) == version
    with pytest.raises(FileExistsError):
        storage.create(uri, b"somebody else")
    (newer,) = winners(lambda index: storage.replace(uri, b"heir %d" % index, version))
    data, found = storage.read_with_version(uri)
    assert found == newer
    assert data.startswith(b"heir")
    storage.delete_many([uri])
    with pytest.raises(FileExistsError):
        storage.replace(uri, b"too late", newer)


def test_the_hub_is_read_in_one_request_and_only_it_sees_the_token(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start("hf", servers, monkeypatch)
    assert isinstance(hub, HubServer)
    storage = Storage()
    hub.requests.clear()
    storage.read(f"{hub.root}/in/ü.jpg", max_bytes=100)
    storage.read(f"{hub.root}/in/x/b.tar", max_bytes=100)
    token = "Bearer hf_test-token-41d7"
    assert hub.requests == [
        ("GET", "/datasets/me/cats/resolve/main/in/ü.jpg", token),
        ("GET", "/datasets/me/cats/resolve/main/in/x/b.tar", token),
        ("GET", "/in/x/b.tar", None),
    ]
    for refused in (
        lambda: storage.check_writable(hub.root),
        lambda: storage.write(f"{hub.root}/x", b""),
        lambda: storage.delete_many([f"{hub.root}/x"]),
    ):
        with pytest.raises(StorageError, match="cannot be written to; write to a folder"):
            refused()
    with pytest.raises(StorageError, match=r"must have the form hf://\[datasets/\]owner/name"):
        storage.check_readable("hf://cats")


@pytest.mark.parametrize(
    ("status", "message", "what"),
    [
        (401, "Anonymous caller has no access.", "gcloud auth application-default login"),
        (403, "caller lacks storage.objects.get", "storage.objects.list and get"),
    ],
)
def test_google_refuses(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str, what: str
) -> None:
    pytest.importorskip("gcsfs", reason="needs the package gcsfs")
    server = RefusingServer(status, message)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    storage = Storage()
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(StorageError, match=f"{what}.*{message}"):
            check("gs://bucket/a.jpg")
    for refused in (storage.read, storage.info, lambda uri: storage.write(uri, b"x")):
        with pytest.raises(OutageError, match=f"{what}.*{message}"):
            refused("gs://bucket/a.jpg")
    server.stop()
    with pytest.raises(StorageError, match=r"does not answer.*STORAGE_EMULATOR_HOST"):
        storage.check_writable("gs://bucket/out")


def test_azure_refuses(servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    azure = start("az", servers, monkeypatch)
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    monkeypatch.setenv(variable, azure_connection(azure.url, f"AAAA{AZURE_KEY[4:]}"))
    storage = Storage()
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(StorageError, match="does not accept the credentials"):
            check(f"{azure.root}/in")
    with pytest.raises(OutageError, match="does not accept the credentials"):
        storage.read(f"{azure.root}/{KEYS[0]}")
    monkeypatch.setenv(variable, azure_connection("http://127.0.0.1:9", AZURE_KEY))
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9 does not answer"):
        Storage().check_readable(f"{azure.root}/in")
    monkeypatch.delenv(variable)
    with pytest.raises(StorageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Storage().check_readable(f"{azure.root}/in")


def test_a_job_from_the_hub_over_google_to_azure(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of them as what a whole run reads from, locks, commits to and resumes on."""
    hub, google, azure = (start(name, servers, monkeypatch) for name in ("hf", "gs", "az"))
    images = small_jpegs(6)
    for index, image in enumerate(images):
        hub.put(f"photos/{index}.jpg", image)
        google.put(f"photos/{index}.jpg", image)
    settings = {"model": "mobilenet_v2", "weights": "random", "image_size": 96, "engine": "torch"}
    with ray_session(None):
        for source, target in ((hub, google), (google, azure)):
            output = f"{target.root}/embeddings"
            summary = effnet_batch.embed(f"{source.root}/photos", output, **settings)
            assert summary.report.is_proven
            assert summary.num_new_records == len(images)
            again = effnet_batch.embed(f"{source.root}/photos", output, **settings)
            assert (again.report.is_proven, again.num_new_records) == (True, 0)
            table = effnet_batch.read_embeddings(output)
            assert sorted(table["uri"].to_pylist()) == names(f"{source.root}/photos")
            assert not Storage().exists(f"{output}/_lock.json")
