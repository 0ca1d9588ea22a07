import gzip
import io
import tarfile

import pytest
from shard_files import (
    COMPRESSIONS,
    IMAGES,
    CountingStream,
    check_one_error,
    make_tar,
    read,
    whats,
)

from effnet_batch.shards import Member


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
