import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effnet_batch.errors import FetchError, OutageError
from effnet_batch.shards import Member, iter_members

URI = "s3://bucket/shard"
IMAGES = [(f"{i:04}.jpg", random.Random(i).randbytes(300 + 700 * i)) for i in range(6)]


def make_tar(files: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def make_parquet(table: pa.Table, rows_per_group: int = 100) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return buffer.getvalue()


def read(
    kind: str,
    data: bytes | BinaryIO,
    *,
    wants: Callable[[str | None, int], bool] = lambda name, occurrence: True,
    max_bytes: int = 1 << 20,
    image_column: str | None = None,
) -> list[Member]:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    return list(
        iter_members(
            kind, URI, stream, is_wanted=wants, max_bytes=max_bytes, image_column=image_column
        )
    )


def whats(members: list[Member]) -> list[tuple[str | None, str]]:
    """Names with their statuses."""
    return [(m.name, "ok" if m.error is None else m.error.status) for m in members]


def check_one_error(members: list[Member], status: str, text: str) -> None:
    assert whats(members) == [(None, status)]
    assert members[0].num_members == 1
    assert members[0].data is None
    assert text in str(members[0].error)
    assert URI in str(members[0].error)


class CountingStream(io.BytesIO):
    """Counts the bytes read, and fails at the position it is told to."""

    def __init__(self, data: bytes, fail_at: int | None = None, error: Exception | None = None):
        super().__init__(data)
        self.num_read = 0
        self.largest_read = 0
        self._fail_at = fail_at
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self._error is not None and self._fail_at is not None and self.tell() > self._fail_at:
            raise self._error
        self.num_read += len(data)
        self.largest_read = max(self.largest_read, len(data))
        return data


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "gz in two members": lambda data: gzip.compress(data[:900]) + gzip.compress(data[900:]),
    "zst in two frames": lambda data: (
        zstandard.ZstdCompressor().compress(data[:900])
        + zstandard.ZstdCompressor().compress(data[900:])
    ),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_tar_gives_every_image_in_order(compression: str, tar_format: int) -> None:
    members = read("tar", COMPRESSIONS[compression](make_tar(IMAGES, tar_format)))
    assert [(m.name, m.data) for m in members] == IMAGES
    assert [m.size_bytes for m in members] == [len(data) for _, data in IMAGES]
    assert [m.num_members for m in members] == [None] * 5 + [6]
    assert {m.occurrence for m in members} == {0}
    assert all(m.error is None and m.label is None for m in members)


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


def test_tar_links_devices_and_directories_are_no_members() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for type_ in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
        ):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = type_, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert read("tar", buffer.getvalue()) == [
        Member("real.jpg", data=b"abc", size_bytes=3, num_members=1)
    ]


def test_zip_links_and_directories_are_no_members() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder.jpg/", b"")
        archive.writestr("real.jpg", b"abc")
    assert whats(read("zip", buffer.getvalue())) == [("real.jpg", "ok")]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_long_and_non_utf8_names_become_bounded_valid_utf8(tar_format: int) -> None:
    long = "d/" + "x" * 5000 + ".jpg"
    files = [(long, b"1"), ("é" * 100 + ".jpg", b"2"), ("\udcff\udc80.jpg", b"3")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format, errors="surrogateescape") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    members = read("tar", buffer.getvalue())
    assert [m.data for m in members] == [b"1", b"2", b"3"]
    names = [m.name or "" for m in members]
    assert len(names[0]) == 4096 + len("~.jpg") + 32
    assert names[0].endswith(".jpg")
    assert names[0].startswith("d/xxx")
    assert names[1] == files[1][0]
    assert names[2] == r"\xff\x80.jpg"
    other = read("tar", make_tar([("d/" + "x" * 5001 + ".jpg", b"1")]))
    assert other[0].name != names[0]


def test_tar_label_comes_from_the_cls_file_next_to_its_image() -> None:
    files = [
        ("a.cls", b"3\n"), ("a.jpg", b"a"), ("a.json", b"{}"),
        ("b.jpg", b"b"), ("b.cls", b"cat"),
        ("c.jpg", b"c"), ("c.txt", b"text"), ("c.cls", b"too far"),
        ("e.cls", b"not mine"), ("d.jpg", b"d"),
    ]  # fmt: skip
    labels = [(m.name, m.label) for m in read("tar", make_tar(files))]
    assert labels == [("a.jpg", "3"), ("b.jpg", "cat"), ("c.jpg", None), ("d.jpg", None)]
    # The label belongs to its image even when the image before it was not wanted.
    only_b = read("tar", make_tar(files), wants=lambda name, occurrence: name == "b.jpg")
    assert [(m.name, m.label) for m in only_b] == [("b.jpg", "cat")]
    only_a = read("tar", make_tar(files), wants=lambda name, occurrence: name == "a.jpg")
    assert [(m.name, m.label) for m in only_a] == [("a.jpg", "3")]


@pytest.mark.parametrize("compression", ["plain", "gz", "bz2", "xz", "zst"])
def test_a_cut_tar_gives_its_whole_members_and_one_error(compression: str) -> None:
    # Random bytes do not compress, so a cut at half the bytes strikes in a member's data.
    data = COMPRESSIONS[compression](make_tar(IMAGES))
    members = read("tar", data[: len(data) // 2])
    num_whole = sum(m.error is None for m in members)
    assert [(m.name, m.data) for m in members[:num_whole]] == IMAGES[:num_whole]
    assert len(members) == num_whole + 1
    assert members[-1].num_members == len(members)
    assert members[-1].error is not None
    assert members[-1].error.status == "decode_error"
    if compression == "plain":
        assert members[-1].name == IMAGES[num_whole][0]


def test_a_tar_cut_anywhere_counts_the_same_wanted_or_not() -> None:
    data = make_tar(IMAGES[:3])
    for cut in range(0, len(data), 97):
        members = read("tar", data[:cut])
        assert members[-1].num_members == len(members), cut
        assert [m.data for m in members if m.error is None] == [
            image for _, image in IMAGES[: sum(m.error is None for m in members)]
        ]
        last = members[-1]
        only_last = read("tar", data[:cut], wants=lambda name, _, last=last: name == last.name)
        assert only_last[-1].num_members == len(members), cut
        assert whats(only_last[-1:]) == whats(members[-1:])
        assert read("tar", data[:cut], wants=lambda name, _: False) == []


def test_a_tar_cut_between_two_members_is_not_taken_for_whole() -> None:
    data = make_tar(IMAGES[:3])
    end = data.index(b"0002.jpg")
    members = read("tar", data[:end])
    assert whats(members) == [("0000.jpg", "ok"), ("0001.jpg", "ok"), (None, "decode_error")]


def test_garbage_in_mid_tar_is_one_last_error() -> None:
    data = make_tar(IMAGES)
    at = data.index(b"0003.jpg")
    members = read("tar", data[:at] + b"\x5a" * 700 + data[at:])
    assert whats(members) == [(name, "ok") for name, _ in IMAGES[:3]] + [(None, "decode_error")]
    assert members[-1].num_members == 4
    assert [m.num_members for m in members[:-1]] == [None] * 3


def test_damage_in_a_compressed_tar_names_the_member_and_ends_the_shard() -> None:
    data = bytearray(gzip.compress(make_tar(IMAGES)))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    members = read("tar", bytes(data))
    assert members[-1].name is None
    assert members[-1].num_members == len(members)
    assert 1 <= sum(m.error is None for m in members) < len(IMAGES)


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


def test_the_same_bytes_give_the_same_members_whichever_are_wanted() -> None:
    tar = make_tar([*IMAGES, *IMAGES[:2], ("big.jpg", b"0" * 5000)])
    everything = read("tar", tar, max_bytes=4500)
    assert everything[6].occurrence == 1
    for member in everything:
        only = read(
            "tar", tar, max_bytes=4500, wants=lambda *key, m=member: key == (m.name, m.occurrence)
        )
        assert [(m.name, m.occurrence, m.data, m.num_members) for m in only] == [
            (member.name, member.occurrence, member.data, member.num_members)
        ]


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


def test_a_member_over_the_limit_is_passed_over_without_being_read() -> None:
    stream = CountingStream(make_tar([("a.jpg", b"1" * 3_000_000), ("b.jpg", b"2")]))
    assert whats(read("tar", stream, max_bytes=1000)) == [("a.jpg", "too_large"), ("b.jpg", "ok")]
    assert stream.num_read < 20_000


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_tar_that_unpacks_without_end_is_stopped(compression: str) -> None:
    bomb = COMPRESSIONS[compression](make_tar([("a.jpg", b"1"), ("bomb.jpg", b"\0" * 60_000_000)]))
    members = read("tar", bomb, max_bytes=1000)
    assert len(bomb) * 100 < 60_000_000
    assert whats(members) == [("a.jpg", "ok"), ("bomb.jpg", "too_large"), (None, "too_large")]
    assert members[-1].num_members == 3


def test_a_tar_header_that_declares_a_giant_extended_header_is_damage() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    data = info.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096
    check_one_error(read("tar", data), "decode_error", "1099511627776")


def test_a_sparse_tar_member_is_unsupported_and_the_next_is_read() -> None:
    info = tarfile.TarInfo("s.jpg")
    info.size = 3
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "real.jpg"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info, io.BytesIO(b"abc"))
        archive.addfile(tarfile.TarInfo("b.jpg"))
    assert whats(read("tar", buffer.getvalue())) == [("real.jpg", "unsupported"), ("b.jpg", "ok")]


def edit_zip(data: bytes, name: str, offset: int, value: bytes) -> bytes:
    """Overwrites a field of a member's central directory entry."""
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    return data[: entry + offset] + value + data[entry + offset + len(value) :]


def test_zip_encrypted_unknown_method_crc_and_lying_sizes_are_records_of_their_own() -> None:
    data = make_zip(IMAGES)
    data = edit_zip(data, "0000.jpg", 8, struct.pack("<H", 1))
    data = edit_zip(data, "0001.jpg", 10, struct.pack("<H", 12))
    data = edit_zip(data, "0002.jpg", 16, struct.pack("<I", 1))
    data = edit_zip(data, "0003.jpg", 24, struct.pack("<I", 5))
    data = edit_zip(data, "0004.jpg", 24, struct.pack("<I", 0x7FFFFFFF))
    assert whats(read("zip", data)) == [
        ("0000.jpg", "unsupported"),
        ("0001.jpg", "unsupported"),
        ("0002.jpg", "decode_error"),
        ("0003.jpg", "decode_error"),
        ("0004.jpg", "too_large"),
        ("0005.jpg", "ok"),
    ]


def test_a_zip_member_that_inflates_beyond_its_declared_size_is_not_inflated() -> None:
    bomb = make_zip([("bomb.jpg", b"\0" * 50_000_000), ("b.jpg", b"2")])
    lying = edit_zip(bomb, "bomb.jpg", 24, struct.pack("<I", 100))
    members = read("zip", lying, max_bytes=1000)
    assert whats(members) == [("bomb.jpg", "decode_error"), ("b.jpg", "ok")]
    assert whats(read("zip", bomb, max_bytes=1000)) == [("bomb.jpg", "too_large"), ("b.jpg", "ok")]


def test_zip_entries_that_together_inflate_without_end_are_stopped() -> None:
    data = make_zip([(f"{i:03}.jpg", b"\0" * 100_000) for i in range(300)])
    members = read("zip", data, max_bytes=100_000)
    num_whole = (4 * 100_000 + 100 * len(data)) // 100_000
    assert whats(members) == [(f"{i:03}.jpg", "ok") for i in range(num_whole)] + [
        (None, "too_large")
    ]
    last = read("zip", data, max_bytes=100_000, wants=lambda name, occurrence: name is None)
    assert [m.num_members for m in last] == [num_whole + 1]


def test_zip_names_without_the_utf8_flag() -> None:
    data = make_zip([("aaaa.jpg", b"1"), ("bbbb.jpg", b"2")])
    data = data.replace(b"aaaa.jpg", "éé.jpg".encode()).replace(b"bbbb.jpg", b"\xff\xfebb.jpg")
    assert [m.name for m in read("zip", data)] == ["éé.jpg", r"\xff\xfebb.jpg"]


def hf_table(rows: list[dict[str, Any] | None], **columns: Any) -> pa.Table:
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({"image": image, **columns})


def test_parquet_hugging_face_layout_gives_paths_occurrences_and_labels() -> None:
    table = hf_table(
        [
            {"bytes": b"1", "path": "a.jpg"},
            {"bytes": b"2", "path": None},
            {"bytes": None, "path": "/etc/passwd"},
            None,
            {"bytes": b"5", "path": "a.jpg"},
        ],
        label=pa.array([3, 4, None, 0, 1]),
    )
    for rows_per_group in (1, 2, 100):
        members = read("parquet", make_parquet(table, rows_per_group))
        assert [(m.name, m.occurrence, m.data, m.label) for m in members] == [
            ("a.jpg", 0, b"1", "3"),
            ("row-1", 0, b"2", "4"),
            ("/etc/passwd", 0, None, None),
            ("row-3", 0, None, "0"),
            ("a.jpg", 1, b"5", "1"),
        ]
        assert whats(members)[2:4] == [("/etc/passwd", "decode_error"), ("row-3", "decode_error")]
        assert [m.num_members for m in members] == [None] * 4 + [5]


@pytest.mark.parametrize("name", ["image", "img", "bytes", "jpg", "png", "content"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_plain_binary_columns_are_recognised(name: str, kind: pa.DataType) -> None:
    table = pa.table({"id": [1, 2], name: pa.array([b"x", b"y"], kind), "label": ["cat", "dog"]})
    assert [(m.name, m.data, m.label) for m in read("parquet", make_parquet(table))] == [
        ("row-0", b"x", "cat"),
        ("row-1", b"y", "dog"),
    ]


def test_parquet_without_one_image_column_names_the_columns_it_has() -> None:
    table = pa.table({"thumb": [b"1"], "url": ["u"]})
    check_one_error(read("parquet", make_parquet(table)), "unsupported", "thumb, url")
    both = pa.table({"jpg": [b"1"], "png": [b"2"]})
    check_one_error(read("parquet", make_parquet(both)), "unsupported", "jpg, png")
    assert read("parquet", make_parquet(both), image_column="png")[0].data == b"2"
    assert read("parquet", make_parquet(table), image_column="thumb")[0].data == b"1"
    check_one_error(
        read("parquet", make_parquet(table), image_column="nope"), "unsupported", "nope"
    )


class UnpicklingType(pa.ExtensionType):  # type: ignore[misc]
    """Stands for types such as Ray's pickled objects, whose values run code when read."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "effnet_batch.test.unpickling")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "UnpicklingType":
        return cls()


def test_parquet_extension_columns_are_not_images() -> None:
    storage = pa.array([b"cos\nsystem\n"], pa.binary())
    table = pa.table({"image": pa.ExtensionArray.from_storage(UnpicklingType(), storage)})
    data = make_parquet(table)
    pa.register_extension_type(UnpicklingType())
    try:
        check_one_error(read("parquet", data), "unsupported", "image")
    finally:
        pa.unregister_extension_type("effnet_batch.test.unpickling")


def test_a_damaged_row_group_is_records_and_the_next_one_is_read() -> None:
    images = [random.Random(i).randbytes(2000) for i in range(6)]
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"image": images}), buffer, row_group_size=2, compression="gzip",
        use_dictionary=False,
    )  # fmt: skip
    column = pq.ParquetFile(buffer).metadata.row_group(1).column(0)
    data = bytearray(buffer.getvalue())
    start = column.data_page_offset
    data[start : start + 400] = b"\xff" * 400
    members = read("parquet", bytes(data))
    assert whats(members) == [
        ("row-0", "ok"), ("row-1", "ok"), ("row-2", "decode_error"), ("row-3", "decode_error"),
        ("row-4", "ok"), ("row-5", "ok"),
    ]  # fmt: skip
    assert members[-1].num_members == 6


def test_a_parquet_file_of_more_rows_than_bytes_is_too_large() -> None:
    table = pa.table({"image": pa.nulls(1_000_000, pa.binary())})
    check_one_error(read("parquet", make_parquet(table, 1_000_000)), "too_large", "1000000 rows")


@pytest.mark.parametrize("error", [FetchError("gone", error_type="Reset"), OutageError("403")])
@pytest.mark.parametrize(
    "kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip", "parquet"]
)
@pytest.mark.parametrize("fraction", [0, 0.6])
def test_a_stream_that_fails_is_never_taken_for_damage(
    kind: str, error: Exception, fraction: float
) -> None:
    noise = [(f"{i}.jpg", random.Random(i).randbytes(200_000)) for i in range(20)]
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


def test_a_huge_row_group_is_read_in_small_steps() -> None:
    rows = [{"bytes": random.Random(i).randbytes(100_000), "path": f"{i}.jpg"} for i in range(300)]
    buffer = io.BytesIO()
    # pyarrow looks at the page's size only every write_batch_size rows.
    pq.write_table(hf_table(rows), buffer, write_batch_size=4, use_dictionary=False)
    stream = CountingStream(buffer.getvalue())
    assert len(read("parquet", io.BufferedReader(stream, 8 << 20))) == 300
    assert stream.largest_read <= 8 << 20
    assert stream.num_read < 1.05 * len(buffer.getvalue())


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


def test_crc_of_whole_members_is_checked() -> None:
    data = make_zip(IMAGES, zipfile.ZIP_STORED)
    at = data.index(IMAGES[2][1])
    members = read("zip", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert whats(members)[2] == ("0002.jpg", "decode_error")
    assert zlib.crc32(members[3].data or b"") == zlib.crc32(IMAGES[3][1])


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="image"):
        read("image", b"")
