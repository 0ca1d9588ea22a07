"""How far reading runs ahead of the decoder, and what of it lies in memory or on disk."""

import dataclasses
import io
import itertools
import os
import resource
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from manifest_tables import build_manifest
from read_sources import MIB, Made, content_of, num_spooled, read, source
from s3_server import S3Server
from shard_files import make_tar

from effnet_batch.errors import FetchError, OutageError, RecordError, TooLargeError
from effnet_batch.manifest import source_version
from effnet_batch.stages.read import OutageGuard, read_items
from effnet_batch.storage import ReadRequest, Storage


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
            media_column=None,
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
            media_column=None,
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
        media_column=None,
        on_incomplete=lambda source, error: None,
        medium="video",
    )
    next(items)
    items.close()
    assert threading.active_count() == before
