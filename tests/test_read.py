"""From sources to encoded items: what is fetched together, how far ahead, and who is told."""

import contextlib
import dataclasses
import io
import itertools
import os
import resource
import tempfile
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pytest
from s3_server import S3Server
from shard_files import CountingStream, make_parquet, make_tar, make_zip

from effnet_batch.errors import FetchError, OutageError, RecordError, TooLargeError
from effnet_batch.manifest import build_manifest, source_version
from effnet_batch.schema import record_id, source_id
from effnet_batch.stages.read import Item, OutageGuard, Source, read_items
from effnet_batch.storage import ReadRequest, Storage, StorageOptions

MIB = 1 << 20


class Recorder(Storage):
    """Counts the objects of every call."""

    def __init__(self) -> None:
        super().__init__(StorageOptions())
        self.groups: list[list[str]] = []

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        self.groups.append([request.uri.rpartition("/")[2] for request in requests])
        return super().read_many(requests, max_bytes=max_bytes)

    def open_whole(self, request: ReadRequest, *, max_bytes: int) -> tuple[BinaryIO, int]:
        self.groups.append([request.uri.rpartition("/")[2]])
        return super().open_whole(request, max_bytes=max_bytes)


class Made(Recorder):
    """Gives every object the size that its name ends in, in MiB, without storage."""

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        self.groups.append([request.uri for request in requests])
        return [bytes(int(request.uri.rpartition("-")[2]) * MIB) for request in requests]

    def open(self, uri: str, **options: object) -> BinaryIO:
        return cast("BinaryIO", Zeros(int(uri.rpartition("-")[2]) * MIB))


class Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._num_bytes if whence == io.SEEK_END else 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = bytes(min(size, self._num_bytes - self._position))
        self._position += len(data)
        return data


def source(
    uri: str, kind: str, size_bytes: int | None = None, skip: frozenset[str] = frozenset()
) -> Source:
    return Source(
        uri=uri,
        source_id=source_id(uri),
        kind=kind,
        size_bytes=size_bytes,
        etag=None,
        label=None,
        group=None,
        split=None,
        source_version=None,
        attempt=1,
        skip=skip,
        fetch_uri=None,
    )


def read(
    sources: list[Source],
    storage: Storage,
    *,
    medium: str = "image",
    max_bytes: int = 1 << 30,
    image_column: str | None = None,
    incomplete: list[str] | None = None,
) -> list[Item]:
    told: list[str] = [] if incomplete is None else incomplete
    return list(
        read_items(
            sources,
            storage,
            OutageGuard(),
            max_bytes=max_bytes,
            image_column=image_column,
            on_incomplete=lambda source, error: told.append(source.uri),
            medium=medium,
        )
    )


def content_of(item: Item) -> bytes | None:
    """Returns what the item holds, and closes it."""
    with contextlib.closing(item):
        return item.data if item.file is None else item.file.read()


def num_spooled() -> int:
    """Returns how many files without a name this process has open below the temporary folder."""
    targets, folder = [], tempfile.gettempdir()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(name.startswith(folder) and name.endswith("(deleted)") for name in targets)


@pytest.mark.parametrize(
    ("kind", "sizes", "groups"),
    [
        ("image", [1000] * 70, [32, 32, 6]),
        ("image", [None] * 40, [32, 8]),
        ("image", [20 * MIB, 12 * MIB, 1, 40 * MIB, 1], [2, 1, 1, 1]),
        ("video", [1000] * 20, [8, 8, 4]),
        ("video", [None] * 3, [1, 1, 1]),
        ("video", [20 * MIB, 12 * MIB, 1, 40 * MIB, 1, 1, None, 1], [2, 1, 1, 2, 1, 1]),
    ],
)
def test_small_sources_are_fetched_together_and_large_videos_alone(
    kind: str, sizes: list[int | None], groups: list[int], tmp_path: Path
) -> None:
    sources = []
    for index, size in enumerate(sizes):
        (tmp_path / str(index)).write_bytes(b"%d" % index)
        sources.append(source(str(tmp_path / str(index)), kind, size))
    storage = Recorder()
    items = read(sources, storage, medium=kind)
    assert [content_of(item) for item in items] == [b"%d" % i for i in range(len(sizes))]
    assert [item.source for item in items] == sources
    assert {item.num_source_records for item in items} == {1}
    assert [len(group) for group in storage.groups] == groups


def test_media_and_shards_keep_their_order_and_their_own_groups(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(make_tar([("a.mp4", b"3"), ("a.jpg", b"x"), ("b.mp4", b"4")]))
    for name in ("0", "1", "2", "5"):
        (tmp_path / name).write_bytes(name.encode())
    kinds = {"0": "image", "1": "video", "2": "video", "s.tar": "tar", "5": "video"}
    storage = Recorder()
    sources = [source(str(tmp_path / name), kind, 1) for name, kind in kinds.items()]
    items = read(sources, storage, medium="video")
    assert [item.data for item in items] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert [item.member for item in items] == [None, None, None, "a.mp4", "b.mp4", None]
    assert [item.num_source_records for item in items] == [1, 1, 1, None, 2, 1]
    assert storage.groups == [["0"], ["1", "2"], ["5"]]


def test_plain_videos_and_members_over_the_limit_are_too_large(tmp_path: Path) -> None:
    files = [("a.mp4", b"1" * 1000), ("b.mp4", b"2" * 1001)]
    (tmp_path / "s.tar").write_bytes(make_tar(files))
    (tmp_path / "s.zip").write_bytes(make_zip(files))
    (tmp_path / "s.parquet").write_bytes(make_parquet(pa.table({"clip": [b for _, b in files]})))
    sources = [source(str(tmp_path / f"s.{kind}"), kind) for kind in ("tar", "zip", "parquet")]
    for name, data in files:
        (tmp_path / name).write_bytes(data)
        sources.append(source(str(tmp_path / name), "video", len(data)))
    sources.append(source(str(tmp_path / "missing.mp4"), "video"))
    items = read(sources, Storage(), medium="video", max_bytes=1000, image_column="clip")
    statuses = ["ok" if item.error is None else item.error.status for item in items]
    assert statuses == ["ok", "too_large"] * 4 + ["fetch_error"]
    assert [item.data for item in items[::2]] == [b"1" * 1000] * 4 + [None]


def test_a_listing_of_videos_is_read_from_s3_with_one_request_each(
    s3: S3Server, s3_prefix: str
) -> None:
    storage = Storage()
    for name in ("a.mp4", "b.mkv", "c.jpg", "d.webm"):
        storage.write(s3_prefix + name, name.encode())
    storage.write(f"{s3_prefix}e.zip", make_zip([("f.mov", b"f.mov"), ("g.jpg", b"g")]))
    table = build_manifest(s3_prefix, storage, medium="video")
    sources = [source(r["uri"], r["kind"], r["size_bytes"]) for r in table.to_pylist()]
    mark = s3.access_log.mark()
    items = read(sources, storage, medium="video")
    assert [item.data for item in items] == [b"a.mp4", b"b.mkv", b"d.webm", b"f.mov"]
    gets = s3.access_log.gets(since=mark)
    assert len(gets) == 4
    assert all(count == 1 for key, count in gets.items() if not key.endswith("e.zip"))


def test_members_that_are_committed_already_are_not_read_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "s.tar")
    Path(uri).write_bytes(make_tar([("a.mp4", b"a"), ("b.mp4", b"b"), ("a.mp4", b"c")]))
    done = frozenset({record_id(uri, "a.mp4", 0), record_id(uri, "b.mp4", 0)})
    (item,) = read([source(uri, "tar", skip=done)], Storage(), medium="video")
    assert (item.member, item.occurrence, item.data) == ("a.mp4", 1, b"c")
    assert item.num_source_records == 3


def test_files_that_were_replaced_since_the_listing_are_not_read(tmp_path: Path) -> None:
    files = [("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]
    for name, data in files:
        (tmp_path / name).write_bytes(data)
    (tmp_path / "half.tar").write_bytes(make_tar(files))
    (tmp_path / "new.tar").write_bytes(make_tar(files))
    storage = Storage()
    table = build_manifest(str(tmp_path), storage)
    versions = source_version(table).to_pylist()
    names = ["a.jpg", "b.jpg", "c.jpg", "half.tar", "new.tar"]
    sources = {
        name: dataclasses.replace(source(row["uri"], row["kind"]), source_version=version)
        for name, row, version in zip(names, table.to_pylist(), versions, strict=True)
    }
    half = sources["half.tar"]
    done = frozenset({record_id(half.uri, "a.jpg", 0)})
    sources["half.tar"] = dataclasses.replace(half, skip=done)
    told: list[str] = []
    items = read(list(sources.values()), storage, incomplete=told)
    assert [item.data for item in items] == [b"a", b"b", b"c", b"b", b"c", b"a", b"b", b"c"]
    assert not told

    (tmp_path / "replacement").write_bytes(b"another")
    (tmp_path / "replacement").rename(tmp_path / "b.jpg")
    foreign = make_tar([(name, data * 2) for name, data in files])
    for name in ("half.tar", "new.tar"):
        (tmp_path / name).write_bytes(foreign)
        os.utime(tmp_path / name, ns=(0, 0))  # however coarse the clock of the disk is
    items = read(list(sources.values()), storage, incomplete=told)
    assert [item.data for item in items] == [b"a", None, b"c", None]
    assert [item.source for item in items] == [sources[n] for n in names if n != "half.tar"]
    for item in (items[1], items[3]):
        assert isinstance(item.error, FetchError)
        assert (item.error.status, item.error.error_type) == ("fetch_error", "SourceChanged")
        assert item.num_source_records == 1
    assert told == [half.uri], "its other members are left to a run that knows the new one"


def test_a_shard_of_videos_that_breaks_off_is_told_and_not_a_record(tmp_path: Path) -> None:
    uri = str(tmp_path / "s.tar")
    videos = [(f"{i}.mp4", bytes([i]) * 50_000) for i in range(4)]
    Path(uri).write_bytes(make_tar(videos))

    class Breaking(Storage):
        def open(self, uri: str, **options: object) -> CountingStream:
            return CountingStream(Path(uri).read_bytes(), 160_000, FetchError("broke off"))

    told: list[str] = []
    items = read([source(uri, "tar")], Breaking(), medium="video", incomplete=told)
    assert told == [uri]
    # The third one came whole too, but whether it is the last nobody knows.
    assert [item.data for item in items] == [videos[0][1], videos[1][1]]
    assert [item.num_source_records for item in items] == [None, None]


@pytest.mark.parametrize(
    ("kind", "sizes", "most"),
    [
        ("video", [60] * 5, 0),
        ("video", [30] * 6, 4),
        ("image", [20] * 6, 4),
        ("tar", [5] * 5, 3),
        ("tar", [60] * 4, 0),
    ],
    ids=["large videos", "videos", "images", "members", "large members"],
)
def test_memory_ahead_of_the_decoder_is_bounded(
    kind: str, sizes: list[int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Made()
    sources = [source(f"s3://b/{i}-{size}", kind, size * MIB) for i, size in enumerate(sizes)]
    num_before = num_spooled()
    if kind == "tar":
        if sizes[0] < 32:  # As far over smaller bounds, so that the shard is quickly made.
            monkeypatch.setattr("effnet_batch.stages.read._CHUNK_BYTES", 2 * MIB)
            monkeypatch.setattr("effnet_batch.stages.read._BYTES_AHEAD", 4 * MIB)
        shard = make_tar([(f"{i}.mp4", bytes(size * MIB)) for i, size in enumerate(sizes)])
        storage.open = lambda *_, **options: io.BytesIO(shard)  # type: ignore[assignment]
        sources = [source("s3://b/s.tar", kind)]
    tracemalloc.start()
    try:
        items = read_items(
            sources,
            storage,
            OutageGuard(),
            max_bytes=1 << 30,
            image_column=None,
            on_incomplete=lambda source, error: None,
            medium="image" if kind == "image" else "video",
        )
        num_read = most_spooled = 0
        for item in items:
            assert item.size_bytes == sizes[num_read] * MIB
            assert (item.file is not None) == (sizes[num_read] > 32)
            num_read += 1
            # Time for the thread to go as far as it may; the bound holds however long it is.
            threading.Event().wait(0.05)
            most_spooled = max(most_spooled, num_spooled() - num_before)
            item.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_read == len(sizes)
    assert peak < (most + 0.5) * sizes[0] * MIB
    assert bool(most_spooled) == (sizes[0] > 32)
    assert most_spooled <= (5 if kind == "tar" else 3)
    assert num_spooled() == num_before


def test_large_videos_are_files_and_a_local_one_stays_where_it_is(
    s3: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    data = bytes(range(256)) * (33 << 12)
    path = tmp_path / "large.mp4"
    path.write_bytes(data)
    storage = Storage()
    storage.write(f"{s3_prefix}large.mp4", data)
    uris = [str(path), f"{s3_prefix}large.mp4"]
    for uri, size in itertools.product(uris, (None, len(data))):
        (item,) = read([source(uri, "video", size)], storage, medium="video")
        assert item.file is not None
        assert (item.data, item.size_bytes, item.num_source_records) == (None, len(data), 1)
        is_in_place = os.path.samestat(os.fstat(item.file.fileno()), path.stat())
        assert is_in_place == (uri == str(path))
        assert content_of(item) == data
        (refused,) = read([source(uri, "video", size)], storage, max_bytes=len(data) - 1)
        assert isinstance(refused.error, TooLargeError)
    # A file that is written to while it is worked on gives no bytes of two versions.
    (version,) = source_version(build_manifest(str(path), storage, medium="video")).to_pylist()
    one = dataclasses.replace(source(str(path), "video", len(data)), source_version=version)
    (item,) = read([one], storage)
    assert item.file is not None
    item.file.read(1000)
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))
    item.file.seek(20 * MIB)
    with pytest.raises(FetchError, match="was changed since it was listed"):
        item.file.read(1000)
    item.close()


@pytest.mark.parametrize("kind", ["video", "tar"])
def test_a_full_disk_is_said_and_the_video_is_tried_again_later(
    kind: str, s3: S3Server, s3_prefix: str
) -> None:
    data = bytes(33 * MIB)
    if kind == "tar":
        data = make_tar([("a.mp4", b"a"), ("b.mp4", b"b"), ("c.mp4", data)])
    Storage().write(f"{s3_prefix}v", data)
    told: list[str] = []
    num_before, before = num_spooled(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel then refuses to let any file grow further, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * MIB, before[1]))
    try:
        items = read(
            [source(f"{s3_prefix}v", kind, len(data))], Storage(), medium="video", incomplete=told
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert num_spooled() == num_before
    if kind == "tar":
        # What came before it counts; the shard is not done.
        assert told == [f"{s3_prefix}v"]
        assert [(item.data, item.num_source_records) for item in items] == [(b"a", None)]
        return
    (error,) = [item.error for item in items]
    assert isinstance(error, FetchError)
    assert (error.error_type, error.is_transient) == ("NoSpaceError", True)
    assert "no space is left; free some space there, point TMPDIR" in str(error)


class Bounded(Made):
    """Keeps to the limit, and notes how many bytes each call gave."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: list[int] = []

    def read_many(
        self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
    ) -> list[bytes | RecordError]:
        assert max_bytes is not None
        results: list[bytes | RecordError] = [
            data if len(data) <= max_bytes else TooLargeError("too large")
            for data in super().read_many(requests)
            if isinstance(data, bytes)
        ]
        self.num_bytes.append(sum(len(data) for data in results if isinstance(data, bytes)))
        return results


def test_images_whose_size_no_list_says_are_not_fetched_by_the_gigabyte() -> None:
    sizes = [6] * 64 + [40, 200] + [6] * 8
    storage = Bounded()
    sources = [source(f"s3://b/{index}-{size}", "image") for index, size in enumerate(sizes)]
    items = list(
        read_items(
            sources,
            storage,
            OutageGuard(),
            max_bytes=100 * MIB,
            image_column=None,
            on_incomplete=lambda source, error: None,
        )
    )
    assert [item.source for item in items] == sources
    found = [len(item.data) // MIB if item.data is not None else None for item in items]
    assert found == [size if size <= 100 else None for size in sizes]
    first, *others = storage.num_bytes
    assert first == 32 * 6 * MIB
    assert max(others) == 40 * MIB  # one of it alone, or a few of the others
    assert len(storage.groups) < 24


def test_what_the_thread_raises_is_raised_here_and_leaving_ends_it() -> None:
    class Away(Made):
        def read_many(
            self, requests: Sequence[ReadRequest], *, max_bytes: int | None = None
        ) -> list[bytes | RecordError]:
            if len(self.groups) == 2:
                raise OutageError("403")
            return super().read_many(requests, max_bytes=max_bytes)

    sources = [source(f"s3://b/{i}-1", "video") for i in range(5)]
    storage = Away()
    with pytest.raises(OutageError, match="403"):
        read(sources, storage, medium="video")
    before = threading.active_count()
    items = read_items(
        [source(f"s3://b/{i}-40", "video") for i in range(9)],
        Made(),
        OutageGuard(),
        max_bytes=1 << 30,
        image_column=None,
        on_incomplete=lambda source, error: None,
        medium="video",
    )
    next(items)
    items.close()
    assert threading.active_count() == before
