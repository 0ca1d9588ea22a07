import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import (
    CountingStream,
    check_one_error,
    hf_table,
    make_parquet,
    read,
    whats,
)


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


def test_parquet_without_one_media_column_names_the_columns_it_has() -> None:
    table = pa.table({"thumb": [b"1"], "url": ["u"]})
    check_one_error(read("parquet", make_parquet(table)), "unsupported", "thumb, url")
    both = pa.table({"jpg": [b"1"], "png": [b"2"]})
    check_one_error(read("parquet", make_parquet(both)), "unsupported", "jpg, png")
    assert read("parquet", make_parquet(both), media_column="png")[0].data == b"2"
    assert read("parquet", make_parquet(table), media_column="thumb")[0].data == b"1"
    check_one_error(
        read("parquet", make_parquet(table), media_column="nope"), "unsupported", "nope"
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


def test_a_huge_row_group_is_read_in_small_steps() -> None:
    rows = [{"bytes": random.Random(i).randbytes(100_000), "path": f"{i}.jpg"} for i in range(300)]
    buffer = io.BytesIO()
    # pyarrow looks at the page's size only every write_batch_size rows.
    pq.write_table(hf_table(rows), buffer, write_batch_size=4, use_dictionary=False)
    stream = CountingStream(buffer.getvalue())
    assert len(read("parquet", io.BufferedReader(stream, 8 << 20))) == 300
    assert stream.largest_read <= 8 << 20
    assert stream.num_read < 1.05 * len(buffer.getvalue())
