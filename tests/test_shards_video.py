"""Shards of videos: which members count; the walk itself is tested with images."""

import random
import zipfile

import pyarrow as pa
import pytest
from shard_files import (
    COMPRESSIONS,
    CountingStream,
    check_one_error,
    make_parquet,
    make_tar,
    make_zip,
    read,
    whats,
)

from effnet_batch.shards import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, medium_of

VIDEOS = (
    "a.mp4", "b/B.M4V", "../c.mov", "/d.mkv", "e.webm", "f.avi", "g.TS", "h.m2ts", "i.mts",
    "j.mpg", "k.mpeg", "a.mp4",
)  # fmt: skip
IMAGES = ("a.jpg", "thumb.PNG")
OTHERS = ("a.json", "l.flv", "m.wmv", "n.3gp", "o.m3u8", "p.ffconcat", "._a.mp4", ".mp4", "mp4")
MIXED = [(name, name.encode()) for name in (*VIDEOS[:6], *IMAGES, *OTHERS, *VIDEOS[6:])]


def test_a_name_is_of_one_medium_or_none() -> None:
    assert not IMAGE_EXTENSIONS & VIDEO_EXTENSIONS
    assert {medium_of(name) for name in VIDEOS} == {"video"}
    assert {medium_of(name) for name in IMAGES} == {"image"}
    assert {medium_of(name) for name in OTHERS} == {None}


@pytest.mark.parametrize("kind", ["tar", *(f"tar {name}" for name in COMPRESSIONS), "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_are_of_the_jobs_medium(kind: str) -> None:
    kind, _, compression = kind.partition(" ")
    data = make_zip(MIXED) if kind == "zip" else make_tar(MIXED)
    data = COMPRESSIONS[compression or "plain"](data)
    videos = read(kind, data, medium="video")
    assert [(m.name, m.occurrence, m.data) for m in videos] == [
        (name, 1 if index == 11 else 0, name.encode()) for index, name in enumerate(VIDEOS)
    ]
    assert [m.num_members for m in videos] == [None] * 11 + [12]
    images = read(kind, data)
    assert [(m.name, m.data) for m in images] == [(name, name.encode()) for name in IMAGES]
    assert images[-1].num_members == 2


def test_a_tars_label_goes_to_the_video_of_its_key() -> None:
    data = make_tar([("1.cls", b"fake"), ("1.mp4", b"v"), ("1.jpg", b"i"), ("2.mp4", b"w")])
    assert [(m.name, m.label) for m in read("tar", data, medium="video")] == [
        ("1.mp4", "fake"), ("2.mp4", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("medium", "other"), [("video", "a.jpg"), ("image", "a.mp4")], ids=["video", "image"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_shard_of_the_other_medium_is_one_record(kind: str, medium: str, other: str) -> None:
    data = (make_tar if kind == "tar" else make_zip)([(other, b"1")])
    members = read(kind, data, medium=medium)
    check_one_error(members, "decode_error", f"no {medium}s in shard")


@pytest.mark.parametrize("name", ["video", "bytes", "mp4", "mov", "mkv", "webm", "avi", "content"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_columns_of_videos_are_recognised(name: str, kind: pa.DataType) -> None:
    table = pa.table({"id": [1, 2], name: pa.array([b"x", b"y"], kind), "label": [0, 1]})
    members = read("parquet", make_parquet(table), medium="video")
    assert [(m.name, m.data, m.label) for m in members] == [
        ("row-0", b"x", "0"), ("row-1", b"y", "1")
    ]  # fmt: skip


def test_a_parquet_file_may_hold_both_media() -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"i", "path": "a.jpg"}], struct),
            "video": pa.array([{"bytes": b"v", "path": "a.mp4"}], struct),
            "mp4": [b"other"],
        }
    )
    data = make_parquet(table)
    assert [(m.name, m.data) for m in read("parquet", data)] == [("a.jpg", b"i")]
    assert [(m.name, m.data) for m in read("parquet", data, medium="video")] == [("a.mp4", b"v")]
    (chosen,) = read("parquet", data, medium="video", media_column="mp4")
    assert (chosen.name, chosen.data) == ("row-0", b"other")


@pytest.mark.parametrize(
    "table",
    [
        {"image": [b"1"]},
        {"jpg": [b"1"], "caption": ["x"]},
        {"mp4": [b"1"], "webm": [b"2"]},
        {"video": ["a.mp4"]},
    ],
)
def test_a_parquet_file_without_one_video_column_names_what_it_has(table: dict[str, list]) -> None:
    members = read("parquet", make_parquet(pa.table(table)), medium="video")
    check_one_error(members, "unsupported", "no single column of video bytes")
    check_one_error(members, "unsupported", ", ".join(table))


def test_videos_over_the_limit_are_too_large_and_those_not_wanted_are_not_read() -> None:
    videos = [(f"{i}.mp4", random.Random(i).randbytes(100_000)) for i in range(9)]
    videos.append(("9.mp4", bytes(100_001)))
    for kind, data in (
        ("tar", make_tar(videos)),
        ("zip", make_zip(videos, zipfile.ZIP_STORED)),
        ("parquet", make_parquet(pa.table({"video": [b for _, b in videos]}), 1)),
    ):
        stream = CountingStream(data)
        wanted = {"3.mp4", "9.mp4", "row-3", "row-9"}
        members = read(
            kind,
            stream,
            medium="video",
            wants=lambda name, occurrence, w=wanted: name in w,
            max_bytes=100_000,
        )
        assert [status for _, status in whats(members)] == ["ok", "too_large"], kind
        assert members[0].data == videos[3][1]
        assert (members[1].size_bytes, members[1].num_members) == (100_001, 10), kind
        assert stream.num_read < 400_000, kind


def test_unknown_media_are_refused() -> None:
    with pytest.raises(ValueError, match="audio"):
        read("tar", make_tar(MIXED), medium="audio")


@pytest.mark.parametrize("kind", ["tar", "tar gz", "zip", "parquet"])
def test_large_videos_are_files_of_this_machine_and_images_never(kind: str) -> None:
    large = bytes(range(256)) * (33 << 12)
    files = [("a.mp4", b"a"), ("b.mp4", large), ("c.mp4", b"c"), ("b.jpg", large)]
    if kind == "parquet":
        data = make_parquet(
            pa.table({"video": [b for _, b in files[:3]], "image": [b"i", large, b"j"]}), 1
        )
    else:
        data = make_zip(files) if kind == "zip" else make_tar(files)
        data = COMPRESSIONS["gz"](data) if kind == "tar gz" else data
    kind = kind.partition(" ")[0]
    small, middle, last = read(kind, data, medium="video", max_bytes=1 << 30)
    assert [(m.data, m.file, m.error) for m in (small, last)] == [
        (b"a", None, None),
        (b"c", None, None),
    ]
    assert (middle.data, middle.size_bytes, middle.error) == (None, len(large), None)
    assert middle.file is not None
    with middle.file as file:
        assert file.read() == large
    images = read(kind, data, max_bytes=1 << 30)
    assert large in [image.data for image in images]
    assert {image.file for image in images} == {None}


def test_a_large_member_that_is_cut_or_lies_about_its_size_is_damage() -> None:
    data = make_tar([("a.mp4", b"a"), ("b.mp4", bytes(40 << 20))])
    assert whats(read("tar", data[: 30 << 20], medium="video", max_bytes=1 << 30)) == [
        ("a.mp4", "ok"),
        ("b.mp4", "decode_error"),
    ]
    whole = make_zip([("b.mp4", bytes(40 << 20))])
    position = whole.rindex(b"PK\1\2") + 24
    assert int.from_bytes(whole[position : position + 4], "little") == 40 << 20
    lying = whole[:position] + (41 << 20).to_bytes(4, "little") + whole[position + 4 :]
    assert whats(read("zip", lying, medium="video", max_bytes=1 << 30)) == [
        ("b.mp4", "decode_error")
    ]
