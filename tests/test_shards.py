import gzip
import random
import zipfile

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings, strategies as st
from s3_server import S3Server
from shard_files import (
    COMPRESSIONS,
    IMAGES,
    CountingStream,
    check_one_error,
    hf_table,
    make_parquet,
    make_tar,
    make_zip,
    read,
)

from effnet_batch.errors import FetchError, OutageError
from effnet_batch.shards import iter_members
from effnet_batch.storage import Storage


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_only_images_are_members_and_names_are_kept_as_labels(kind: str) -> None:
    names = ["a.JPG", "../../etc/b.png", "/abs/c.webp", "./d.TIFF", "ä/é.gif", "a.JPG", "e.bmp"]
    others = ["readme.md", "inner.zip", ".jpg", "jpg", "sub/._d.jpg", "x.jpg.txt"]
    files = [
        (name, name.encode()) for pair in zip(names, [*others, "z"], strict=True) for name in pair
    ]
    members = read(kind, (make_tar if kind == "tar" else make_zip)(files))
    assert [(m.name, m.occurrence) for m in members] == [
        (name, 1 if index == 5 else 0) for index, name in enumerate(names)
    ]
    assert members[-1].num_members == len(names)


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        ("tar", b"", "ends"),
        ("tar", b"\0" * 10240, "no images"),
        ("tar", make_tar([("readme.txt", b"x")]), "no images"),
        ("tar", b"GIF89a" * 200, "no tar header"),
        ("tar", gzip.compress(b""), "ends"),
        ("zip", b"", "directory"),
        ("zip", make_zip([]), "no images"),
        ("zip", make_zip(IMAGES)[:-40], "directory"),
        ("parquet", b"", "footer"),
        ("parquet", b"PAR1" * 10, "footer"),
        ("parquet", make_parquet(pa.table({"image": pa.array([], pa.binary())})), "no images"),
    ],
)
def test_a_shard_without_readable_images_is_one_record(kind: str, data: bytes, text: str) -> None:
    check_one_error(read(kind, data), "decode_error", text)
    assert read(kind, data, wants=lambda name, occurrence: name is not None) == []


def test_unwanted_members_are_counted_but_not_read() -> None:
    images = [(f"{i}.jpg", bytes([i]) * 100_000) for i in range(10)]
    for kind, data in (
        ("tar", make_tar(images)),
        ("zip", make_zip(images, zipfile.ZIP_STORED)),
        ("parquet", make_parquet(pa.table({"image": [b for _, b in images]}), 1)),
    ):
        stream = CountingStream(data)
        wanted = {"3.jpg", "9.jpg", "row-3", "row-9"}
        members = read(kind, stream, wants=lambda name, occurrence, w=wanted: name in w)
        assert [m.data for m in members] == [images[3][1], images[9][1]], kind
        assert [m.num_members for m in members] == [None, 10], kind
        assert stream.num_read < 300_000, kind
        # The last member carries the count; where it is done already, the count is too.
        assert [
            m.num_members
            for m in read(kind, data, wants=lambda name, _: name in ("3.jpg", "row-3"))
        ] == [None], kind


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_members_over_the_limit_are_too_large(kind: str) -> None:
    images = [("a.jpg", b"1" * 1000), ("b.jpg", b"2" * 1001), ("c.jpg", b"3")]
    data = {
        "tar": lambda: make_tar(images),
        "zip": lambda: make_zip(images),
        "parquet": lambda: make_parquet(pa.table({"image": [b for _, b in images]})),
    }[kind]()
    members = read(kind, data, max_bytes=1000)
    assert [m.error is None or m.error.status for m in members] == [True, "too_large", True]
    assert members[1].size_bytes == 1001
    assert members[1].data is None


@pytest.mark.parametrize("error", [FetchError("gone", error_type="Reset"), OutageError("403")])
@pytest.mark.parametrize(
    "kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip", "parquet"]
)
@pytest.mark.parametrize("fraction", [0, 0.6])
def test_a_stream_that_fails_is_never_taken_for_damage(
    kind: str, error: Exception, fraction: float
) -> None:
    noise = [(f"{i}.jpg", random.Random(i).randbytes(60_000)) for i in range(20)]
    if kind == "zip":
        data = make_zip(noise)
    elif kind == "parquet":
        data = make_parquet(hf_table([{"bytes": b, "path": n} for n, b in noise]), 4)
    else:
        data = COMPRESSIONS[kind[4:] or "plain"](make_tar(noise))

    class Failing(CountingStream):
        def read(self, size: int | None = -1, /) -> bytes:
            part = super().read(size)
            if self.num_read > fraction * len(data):
                raise error
            return part

    with pytest.raises(type(error)) as caught:
        read(kind.partition(".")[0], Failing(data))
    assert caught.value is error


def test_an_os_error_of_the_stream_is_a_fetch_error() -> None:
    stream = CountingStream(make_tar(IMAGES), fail_at=3000, error=OSError(5, "Input/output error"))
    with pytest.raises(FetchError, match="Input/output error") as caught:
        read("tar", stream)
    assert caught.value.error_type == "OSError"


SEEDS = {
    "tar": make_tar(IMAGES[:3]),
    "tar.gz": gzip.compress(make_tar(IMAGES[:3])),
    "tar.zst": zstandard.ZstdCompressor().compress(make_tar(IMAGES[:3])),
    "zip": make_zip(IMAGES[:3]),
    "parquet": make_parquet(hf_table([{"bytes": b, "path": n} for n, b in IMAGES[:3]]), 2),
}


@pytest.mark.parametrize("kind", SEEDS)
@settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.data())
def test_any_damage_gives_records_and_a_count(kind: str, data: st.DataObject) -> None:
    shard = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(shard) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "zero", "insert"]))
        if what == "flip":
            shard[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "zero":
            shard[at : at + 40] = b"\0" * len(shard[at : at + 40])
        elif what == "insert":
            shard[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        elif at:
            del shard[at:]
    members = read(kind.partition(".")[0], bytes(shard))
    assert [m.num_members for m in members] == [None] * (len(members) - 1) + [len(members)]
    assert all((m.data is None) != (m.error is None) for m in members)
    assert len({(m.name, m.occurrence) for m in members}) == len(members)
    again = read(kind.partition(".")[0], bytes(shard))
    assert [(m.name, m.data, str(m.error)) for m in again] == [
        (m.name, m.data, str(m.error)) for m in members
    ]
    for member in members:
        (member.name or "").encode()


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="image"):
        read("image", b"")


def test_shards_are_read_from_s3_in_few_requests(s3: S3Server, s3_prefix: str) -> None:
    noise = [(f"{i}.jpg", random.Random(i).randbytes(60_000)) for i in range(400)]
    rows = [{"bytes": data, "path": name} for name, data in noise]
    shards = {
        "tar": make_tar(noise),
        "zip": make_zip(noise, zipfile.ZIP_STORED),
        "parquet": make_parquet(hf_table(rows), 100),
    }
    storage = Storage()
    for kind, data in shards.items():
        uri = f"{s3_prefix}shard.{kind}"
        storage.write(uri, data)
        mark = s3.access_log.mark()
        with storage.open(uri) as stream:
            members = list(
                iter_members(kind, uri, stream, is_wanted=lambda *_: True, max_bytes=1 << 20)
            )
        assert [(m.name, m.data) for m in members] == noise, kind
        # 24 MB in blocks of 8 MiB; of each of four row groups the names, too.
        assert sum(s3.access_log.gets(since=mark).values()) <= 12, kind
