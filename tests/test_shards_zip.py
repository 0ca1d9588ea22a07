import io
import struct
import zipfile
import zlib

from shard_files import (
    IMAGES,
    edit_zip,
    make_zip,
    read,
    whats,
)


def test_zip_links_and_directories_are_no_members() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder.jpg/", b"")
        archive.writestr("real.jpg", b"abc")
    assert whats(read("zip", buffer.getvalue())) == [("real.jpg", "ok")]


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


def test_zip_crc_is_checked() -> None:
    data = make_zip(IMAGES, zipfile.ZIP_STORED)
    at = data.index(IMAGES[2][1])
    members = read("zip", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert whats(members)[2] == ("0002.jpg", "decode_error")
    assert zlib.crc32(members[3].data or b"") == zlib.crc32(IMAGES[3][1])


def test_zip_entries_without_a_name_are_no_members() -> None:
    data = make_zip([("aaaa.jpg", b"1"), ("bbbb.jpg", b"2")])
    entry = data.rindex(b"aaaa.jpg") - 46
    # The name becomes a comment, so that the next entry stays where it is.
    nameless = data[: entry + 28] + struct.pack("<HHH", 0, 0, 8) + data[entry + 34 :]
    assert whats(read("zip", nameless)) == [("bbbb.jpg", "ok")]
