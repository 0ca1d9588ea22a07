"""From sources to encoded items: what is fetched together, how far ahead, and who is told."""

import dataclasses
import os
from pathlib import Path

import pyarrow as pa
import pytest
from manifest_tables import build_manifest
from read_sources import MIB, Recorder, content_of, read, source
from s3_server import S3Server
from shard_files import CountingStream, make_parquet, make_tar, make_zip

from effnet_batch.errors import FetchError
from effnet_batch.manifest import source_version
from effnet_batch.schema import record_id
from effnet_batch.storage import Storage


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
    items = read(sources, Storage(), medium="video", max_bytes=1000, media_column="clip")
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
