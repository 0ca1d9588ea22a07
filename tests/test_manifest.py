"""What an input becomes: folders, globs, files, S3."""

import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_tables import (
    build_manifest,
    read_manifest,
    save_manifest,
    select_sources,
    summarize,
    write_manifest,
)

from effnet_batch.errors import InputError
from effnet_batch.manifest import (
    check_savable,
    has_manifest,
    kind_of,
    replace_manifest,
    source_version,
)
from effnet_batch.schema import MANIFEST_SCHEMA, source_id
from effnet_batch.storage import ObjectInfo, Storage, StorageOptions

NAMES = (
    "cat/a.jpg", "cat/b.PNG", "dog/c.tiff", "dog/e/d.webp", "x.tar", "y.tar.gz", "z.tgz",
    "w.tar.zst", "v.zip", "u.parquet",
)  # fmt: skip
OTHERS = ("notes.txt", "Makefile", "dog/._c.tiff", "labels.csv", "more.txt", ".hidden")


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in (*NAMES, *OTHERS):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    (root / "folder.jpg").mkdir()
    return root


def names(table: pa.Table, root: Path) -> set[str]:
    return {uri.removeprefix(f"{root}/") for uri in table["uri"].to_pylist()}


def test_a_folder_gives_images_and_shards_and_counts_the_rest(
    folder: Path, storage: Storage
) -> None:
    table = build_manifest(str(folder), storage)
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert names(table, folder) == set(NAMES)
    for row in table.to_pylist():
        status = Path(row["uri"]).stat()
        assert row["source_id"] == source_id(row["uri"])
        assert row["size_bytes"] == status.st_size
        assert row["mtime"] == datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC)
        assert (row["etag"], row["label"], row["is_signed"]) == (None, None, False)
    summary = summarize(table)
    assert summary.num_by_kind == {"image": 4, "tar": 4, "zip": 1, "parquet": 1}
    assert summary.num_skipped_by_extension == {
        "(none)": 2, ".csv": 1, ".tiff": 1, ".txt": 2
    }  # fmt: skip


def test_a_folder_can_be_flat_labelled_and_without_the_output(
    folder: Path, storage: Storage
) -> None:
    flat = build_manifest(str(folder), storage, recursive=False)
    assert names(flat, folder) == {name for name in NAMES if "/" not in name}
    labelled = build_manifest(
        str(folder), storage, label_from="parent", exclude=str(folder / "dog")
    )
    assert names(labelled, folder) == {name for name in NAMES if not name.startswith("dog/")}
    labels = dict(zip(labelled["uri"].to_pylist(), labelled["label"].to_pylist(), strict=True))
    assert labels[f"{folder}/cat/a.jpg"] == "cat"
    assert labels[f"{folder}/x.tar"] == "in"


def test_a_glob_gives_what_it_matches(folder: Path, storage: Storage) -> None:
    assert names(build_manifest(f"{folder}/*/*.[jp]*", storage), folder) == {
        "cat/a.jpg",
    }
    assert names(build_manifest(f"{folder}/**/*.{'webp'}", storage), folder) == {"dog/e/d.webp"}
    assert names(build_manifest(f"{folder}/*.t*", storage), folder) == {
        "x.tar", "y.tar.gz", "z.tgz", "w.tar.zst"
    }  # fmt: skip


def test_one_file_is_one_source_and_kind_says_what_its_name_does_not(
    folder: Path, storage: Storage
) -> None:
    assert build_manifest(str(folder / "v.zip"), storage)["kind"].to_pylist() == ["zip"]
    assert build_manifest(str(folder / "Makefile"), storage, kind="tar")["kind"].to_pylist() == [
        "tar"
    ]
    with_unknown = build_manifest(str(folder), storage, kind="image")
    assert with_unknown.num_rows == len(NAMES) + len(OTHERS)
    assert summarize(with_unknown).num_by_kind["tar"] == 4


def test_an_input_without_anything_to_read_says_what_was_skipped(
    tmp_path: Path, storage: Storage
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"no images or shards found; skipped: 1 \.mp4"):
        build_manifest(str(tmp_path), storage)
    with pytest.raises(InputError, match="nowhere"):
        build_manifest(str(tmp_path / "nowhere"), storage)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("s3://b/a.JPEG", "image"),
        ("https://h/a.jpg?width=3", "image"),
        ("https://h/get?name=a.jpg", None),
        ("s3://b/a.jpg?x", None),
        ("file:///d/%FF.bmp", "image"),
        ("/d/a.TAR.GZ", "tar"),
        ("/d/.zip", None),
        ("/d/a.gz", None),
    ],
)
def test_kind_of_a_name(uri: str, kind: str | None) -> None:
    assert kind_of(uri) == kind


def test_s3_folder_glob_file_and_versions(s3: object, s3_prefix: str) -> None:
    storage = Storage()
    for name in ("a/1.jpg", "a/2.png", "a/b#c?.jpg", "b/x.tar", "b/readme"):
        storage.write(s3_prefix + name, name.encode())
    storage.write(f"{s3_prefix}a/", b"")
    table = build_manifest(s3_prefix, storage, label_from="parent")
    assert {uri.removeprefix(s3_prefix) for uri in table["uri"].to_pylist()} == {
        "a/1.jpg", "a/2.png", "a/b#c?.jpg", "b/x.tar"
    }  # fmt: skip
    assert set(table["label"].to_pylist()) == {"a", "b"}
    assert table["etag"].null_count == 0
    assert source_version(table).to_pylist() == table["etag"].to_pylist()
    assert build_manifest(f"{s3_prefix}a/", storage).num_rows == 3
    assert build_manifest(f"{s3_prefix}a", storage).num_rows == 3
    one = build_manifest(f"{s3_prefix}a/1.jpg", storage)
    assert one["uri"].to_pylist() == [f"{s3_prefix}a/1.jpg"]
    assert one["etag"].to_pylist() == table["etag"].to_pylist()[:1]
    assert build_manifest(f"{s3_prefix}*/*.jpg", storage).num_rows == 2
    with pytest.raises(InputError, match="no images"):
        build_manifest(f"{s3_prefix}nothing/", storage)


class ManyKeys(Storage):
    """A bucket of many objects, listed in pages."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(StorageOptions())
        self.num_pages = num_pages
        self.num_listed = 0

    def info(self, uri: str) -> ObjectInfo:
        raise AssertionError("a folder is not asked for")

    def list(self, uri: str, *, recursive: bool = True) -> Iterator[list[ObjectInfo]]:
        for page in range(self.num_pages):
            self.num_listed += 1000
            yield [
                ObjectInfo(
                    f"{uri}some/long/prefix/of/keys/{page:05}/{i:05}.jpg",
                    size_bytes=1000 + i,
                    etag=f"{page * 1000 + i:032x}",
                    mtime=datetime(2026, 1, 1, tzinfo=UTC),
                )
                for i in range(1000)
            ]


def test_memory_grows_with_the_arrow_table_only() -> None:
    peaks = {}
    for num_pages in (20, 100):
        arrow_before = pa.total_allocated_bytes()
        tracemalloc.start()
        table = build_manifest("s3://bucket/", ManyKeys(num_pages))
        peaks[num_pages] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert table.num_rows == num_pages * 1000
        assert pa.total_allocated_bytes() - arrow_before < 1.5 * table.nbytes + (1 << 20)
    # One page of rows is Python at a time, whatever the number of keys.
    assert peaks[100] < 1.1 * peaks[20]
    assert peaks[100] < 40 << 20


def test_a_limit_stops_the_listing_and_a_sample_does_not() -> None:
    storage = ManyKeys(20)
    assert build_manifest("s3://bucket/", storage, limit=10).num_rows == 10
    assert storage.num_listed == 1000
    storage = ManyKeys(20)
    assert build_manifest("s3://bucket/", storage, sample=10, limit=5).num_rows == 5
    assert storage.num_listed == 20_000


def test_samples_nest_keep_order_and_do_not_depend_on_the_listing() -> None:
    table = build_manifest("s3://bucket/", ManyKeys(3))
    small = select_sources(table, sample=50, seed=1)["uri"].to_pylist()
    large = select_sources(table, sample=500, seed=1)["uri"].to_pylist()
    assert len(set(small)) == 50
    assert set(small) < set(large)
    assert large == sorted(large)
    backwards = table.take(np.arange(3000)[::-1])
    assert set(select_sources(backwards, sample=50, seed=1)["uri"].to_pylist()) == set(small)
    assert set(select_sources(table, sample=50, seed=2)["uri"].to_pylist()) != set(small)
    assert select_sources(table, sample=5000).equals(table)


def test_source_version_is_the_etag_else_mtime_and_size_else_null() -> None:
    mtime = datetime(2026, 1, 1, 0, 0, 0, 7, tzinfo=UTC)
    rows = [("e", 1, mtime), (None, 1, mtime), (None, None, mtime), (None, 1, None)]
    table = pa.Table.from_pylist(
        [
            {"uri": "/a", "source_id": "i", "kind": "image", "etag": e, "size_bytes": s, "mtime": m}
            for e, s, m in rows
        ],
        MANIFEST_SCHEMA,
    )
    assert source_version(table).to_pylist() == ["e", "1767225600000007-1", None, None]
    assert source_version(table.slice(0, 0)).to_pylist() == []


def test_the_manifest_of_an_output_is_whole_or_not_there(folder: Path, storage: Storage) -> None:
    output = str(folder.parent / "out")
    assert not has_manifest(storage, output)
    with pytest.raises(InputError, match="no complete manifest"):
        read_manifest(storage, output)
    table = build_manifest(str(folder), storage)

    class Dying(Storage):
        def write(self, uri: str, data: bytes) -> None:
            if uri.endswith("_complete.json"):
                raise KeyboardInterrupt
            super().write(uri, data)

    with pytest.raises(KeyboardInterrupt):
        write_manifest(Dying(), output, table)
    assert not has_manifest(storage, output)
    write_manifest(storage, output, table)
    assert read_manifest(storage, output).equals(table)
    assert summarize(read_manifest(storage, output)) == summarize(table)
    with pytest.raises(KeyboardInterrupt):
        replace_manifest(Dying(), output, [table.slice(0, 2)])
    assert read_manifest(storage, output).equals(table)
    replace_manifest(storage, output, [table.slice(0, 2)])
    assert read_manifest(storage, output).equals(table.slice(0, 2))
    # Users' readers find the same rows: what a stopped write left behind was never complete.
    marker = json.loads(Path(output, "manifest/_complete.json").read_text())
    assert [pq.read_table(Path(output, "manifest", name)).num_rows for name in marker["parts"]] == [
        2
    ]


def test_large_manifests_have_several_parts(
    folder: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effnet_batch.manifest.store._ROWS_PER_PART", 3)
    table = build_manifest(str(folder), storage)
    output = str(folder.parent / "out")
    write_manifest(storage, output, table)
    assert len(list(Path(output, "manifest").glob("part-*.parquet"))) == 4
    assert read_manifest(storage, output).equals(table)
    write_manifest(storage, output, table.slice(0, 3))
    assert len(list(Path(output, "manifest").glob("part-*.parquet"))) == 1


def test_a_damaged_manifest_is_named(folder: Path, storage: Storage) -> None:
    output = str(folder.parent / "out")
    write_manifest(storage, output, build_manifest(str(folder), storage))
    next(Path(output, "manifest").glob("part-*")).write_bytes(b"PAR1 not any more")
    with pytest.raises(InputError, match="damaged"):
        read_manifest(storage, output)


def test_an_update_adds_replaces_keeps_and_counts(folder: Path, storage: Storage) -> None:
    output = str(folder.parent / "out")
    first = build_manifest(str(folder), storage)
    write_manifest(storage, output, first)
    (folder / "cat/a.jpg").write_bytes(b"another size")
    (folder / "v.zip").unlink()
    (folder / "cat/new.jpg").write_bytes(b"new")
    second = build_manifest(str(folder), storage)
    change = write_manifest(storage, output, second, update=True)
    assert (change.num_added, change.num_changed, change.num_vanished) == (1, 1, 1)
    assert change.vanished == (f"{folder}/v.zip",)
    after = read_manifest(storage, output)
    assert after["uri"].to_pylist() == [*first["uri"].to_pylist(), f"{folder}/cat/new.jpg"]
    sizes = dict(zip(after["uri"].to_pylist(), after["size_bytes"].to_pylist(), strict=True))
    assert sizes[f"{folder}/cat/a.jpg"] == len("another size")
    again = write_manifest(storage, output, second, update=True)
    assert (again.num_added, again.num_changed) == (0, 0)
    assert read_manifest(storage, output).equals(after)


def test_a_manifest_file_is_an_input_and_its_rows_are_used_as_they_are(
    folder: Path, storage: Storage
) -> None:
    table = build_manifest(str(folder), storage, label_from="parent")
    path = str(folder.parent / "m.parquet")
    save_manifest(storage, path, table)
    assert build_manifest(path, storage).equals(table)
    assert build_manifest(path, storage, limit=3).equals(table.slice(0, 3))
    assert build_manifest(path, storage, kind="parquet")["uri"].to_pylist() == [path]
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        check_savable(storage, str(folder.parent / "m.manifest"))


def test_a_tar_of_the_wrong_name_is_what_kind_says(tmp_path: Path, storage: Storage) -> None:
    with tarfile.open(tmp_path / "shard", "w"):
        pass
    table = build_manifest(str(tmp_path / "shard"), storage, kind="tar")
    assert table["kind"].to_pylist() == ["tar"]
    assert build_manifest(str(tmp_path / "shard"), storage)["kind"].to_pylist() == ["image"]
