"""What an input becomes for a job that reads videos."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_tables import build_manifest, read_manifest, save_manifest, summarize, write_manifest

from effnet_batch.errors import ConfigError, InputError
from effnet_batch.manifest import fetch_uris, kind_of
from effnet_batch.pipelines.listing import list_input
from effnet_batch.storage import Storage, StorageOptions

VIDEOS = ("a.mp4", "real/b.MOV", "fake/c.mkv", "fake/d.m2ts")
IMAGES = ("e.jpg", "fake/f.png")
SHARDS = ("g.tar", "h.zip", "i.parquet", "j.tar.gz")
OTHERS = ("k.flv", "notes.txt", "l.m3u8")


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in (*VIDEOS, *IMAGES, *SHARDS, *OTHERS):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


def kinds(table: pa.Table, root: Path) -> dict[str, str]:
    names = [uri.removeprefix(f"{root}/") for uri in table["uri"].to_pylist()]
    return dict(zip(names, table["kind"].to_pylist(), strict=True))


SHARD_KINDS = {"g.tar": "tar", "h.zip": "zip", "i.parquet": "parquet", "j.tar.gz": "tar"}


@pytest.mark.parametrize("medium", ["image", "video"])
def test_a_folder_gives_one_medium_and_counts_the_other(
    medium: str, folder: Path, storage: Storage
) -> None:
    table = build_manifest(str(folder), storage, medium=medium)
    wanted = {"image": IMAGES, "video": VIDEOS}[medium]
    assert kinds(table, folder) == dict.fromkeys(wanted, medium) | SHARD_KINDS
    summary = summarize(table)
    assert summary.num_by_kind == {medium: len(wanted), "tar": 2, "zip": 1, "parquet": 1}
    assert summary.num_skipped_by_extension == {".flv": 1, ".m3u8": 1, ".txt": 1} | (
        {".jpg": 1, ".png": 1} if medium == "video" else
        {".m2ts": 1, ".mkv": 1, ".mov": 1, ".mp4": 1}
    )  # fmt: skip
    if medium == "image":
        assert build_manifest(str(folder), storage).equals(table)


def test_kind_says_what_unknown_files_are_but_not_what_images_are(
    folder: Path, storage: Storage
) -> None:
    table = build_manifest(str(folder), storage, medium="video", kind="video")
    assert kinds(table, folder) == dict.fromkeys((*VIDEOS, *OTHERS), "video") | SHARD_KINDS
    assert summarize(table).num_skipped_by_extension == {".jpg": 1, ".png": 1}
    table = build_manifest(str(folder), storage, kind="image")
    assert kinds(table, folder) == dict.fromkeys((*IMAGES, *OTHERS), "image") | SHARD_KINDS


@pytest.mark.parametrize(
    ("medium", "kind"), [("image", "video"), ("video", "image"), ("video", "gif")]
)
def test_a_kind_of_the_other_medium_is_refused(
    medium: str, kind: str, folder: Path, storage: Storage
) -> None:
    allowed = f"allowed for {medium}s: {medium}, tar, zip, parquet"
    with pytest.raises(InputError, match=f"kind: got '{kind}', {allowed}"):
        build_manifest(str(folder), storage, medium=medium, kind=kind)
    with pytest.raises(ValueError, match="medium: got 'audio', allowed: image, video"):
        build_manifest(str(folder), storage, medium="audio")


@pytest.mark.parametrize("medium", ["image", "video"])
def test_in_a_list_every_entry_is_a_source_of_the_medium(
    medium: str, tmp_path: Path, storage: Storage
) -> None:
    names = ["a.mp4", "b.jpg", "c", "d.flv", "e.tar", "https://h.example/v?id=1"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    table = build_manifest(str(tmp_path / "list.txt"), storage, medium=medium)
    assert table["kind"].to_pylist() == [medium] * 4 + ["tar", medium]
    (tmp_path / "c").write_bytes(b"x")
    one = build_manifest(str(tmp_path / "c"), storage, medium=medium)
    assert one["kind"].to_pylist() == [medium]


@pytest.mark.parametrize(
    ("names", "medium"),
    [
        (("a.jpg", "b.tar", "c.txt"), "image"),
        (("a.mp4", "b.tar", "c.txt"), "video"),
        (("a.tar", "b.zip"), "image"),
    ],
)
def test_a_folder_says_its_medium(
    names: tuple[str, ...], medium: str, tmp_path: Path, storage: Storage
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    table = build_manifest(str(tmp_path), storage, medium=None)
    assert table.equals(build_manifest(str(tmp_path), storage, medium=medium))
    assert summarize(table).medium == medium
    assert summarize(table).num_skipped_by_extension.get(".txt", 0) == ("c.txt" in names)


def test_of_both_media_neither_is_taken_unasked(
    folder: Path, tmp_path: Path, storage: Storage
) -> None:
    with pytest.raises(InputError, match="2 images and 4 videos; --medium says which"):
        build_manifest(str(folder), storage, medium=None)
    (tmp_path / "list.txt").write_text("a.mp4\nb.jpg\n")
    with pytest.raises(InputError, match="1 images and 1 videos; --medium says which"):
        build_manifest(str(tmp_path / "list.txt"), storage, medium=None)
    # A kind that is a medium says it as well.
    table = build_manifest(str(folder), storage, medium=None, kind="video")
    assert table.equals(build_manifest(str(folder), storage, medium="video", kind="video"))


def test_names_that_say_nothing_are_of_the_medium_of_the_others(
    tmp_path: Path, storage: Storage
) -> None:
    path = tmp_path / "list.txt"
    for others, medium in (("a.mov", "video"), ("a.png", "image"), ("", "image")):
        path.write_text(f"{others}\nhttps://h.example/1\nb.tar\n")
        table = build_manifest(str(path), storage, medium=None)
        assert table.equals(build_manifest(str(path), storage, medium=medium))
        assert summarize(table).medium == medium


def test_a_manifest_knows_what_it_was_listed_for(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(b"x")
    manifest = str(tmp_path / "m.parquet")
    for medium in ("image", "video"):
        save_manifest(
            storage, manifest, build_manifest(str(tmp_path / "in"), storage, medium=medium)
        )
        table = build_manifest(manifest, storage, medium=None)
        assert (summarize(table).medium, table["kind"].to_pylist()) == (medium, ["tar"])


def test_an_input_of_the_other_medium_only_says_what_was_skipped(
    tmp_path: Path, storage: Storage
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"no videos or shards found; skipped: 1 \.jpg"):
        build_manifest(str(tmp_path), storage, medium="video")


@pytest.mark.parametrize(
    ("uri", "as_image", "as_video"),
    [
        ("s3://b/a.MP4", None, "video"),
        ("https://h/a.webm?width=3", None, "video"),
        ("https://h/get?name=a.mp4", None, None),
        ("file:///d/%FF.avi", None, "video"),
        ("/d/a.ts", None, "video"),
        ("/d/a.jpg", "image", None),
        ("/d/a.mp4.zip", "zip", "zip"),
        ("/d/._a.mp4", None, None),
        ("/d/a.wmv", None, None),
    ],
)
def test_kind_of_a_name(uri: str, as_image: str | None, as_video: str | None) -> None:
    assert (kind_of(uri), kind_of(uri, "image")) == (as_image, as_image)
    assert kind_of(uri, "video") == as_video


def test_a_parquet_input_with_videos_is_a_shard_to_a_job_for_videos(
    tmp_path: Path, storage: Storage
) -> None:
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"path": ["a.mp4"], "video": [b"1"]}), path)
    shard = build_manifest(path, storage, medium="video")
    assert (shard["uri"].to_pylist(), shard["kind"].to_pylist()) == ([path], ["parquet"])
    listed = build_manifest(path, storage)
    assert listed["uri"].to_pylist() == [f"{tmp_path}/a.mp4"]
    # The other way round: images beside the names of videos.
    pq.write_table(pa.table({"path": ["a.mp4"], "image": [b"1"]}), path)
    listed = build_manifest(path, storage, medium="video")
    assert (listed["uri"].to_pylist(), listed["kind"].to_pylist()) == (
        [f"{tmp_path}/a.mp4"], ["video"]
    )  # fmt: skip


def test_a_manifest_of_videos_is_kept_and_refused_by_a_job_for_images(
    folder: Path, storage: Storage
) -> None:
    table = build_manifest(str(folder), storage, medium="video", label_from="parent")
    path = str(folder.parent / "m.parquet")
    save_manifest(storage, path, table)
    assert build_manifest(path, storage, medium="video").equals(table)
    output = str(folder.parent / "out")
    write_manifest(storage, output, table)
    assert read_manifest(storage, output).equals(table)
    assert summarize(read_manifest(storage, output)).num_by_kind["video"] == 4
    with pytest.raises(InputError, match=r"4 entries are refused(?s:.*)got 'video', allowed"):
        build_manifest(path, storage)
    shards = build_manifest(path, storage, skip_bad_lines=True)
    assert kinds(shards, folder) == SHARD_KINDS


class Shard(Storage):
    """One Parquet file, whatever is asked for."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(StorageOptions())
        self.data = io.BytesIO()
        pq.write_table(table, self.data)

    def open(self, *args: object, **kwargs: object) -> io.BytesIO:
        return io.BytesIO(self.data.getvalue())


def test_signed_urls_of_videos_are_read_again(tmp_path: Path, storage: Storage) -> None:
    signature = "X-Amz-Signature=SENTINEL0123&X-Amz-Expires=60"
    signed = f"https://h.example/a.mp4?{signature}"
    (tmp_path / "l.txt").write_text(f"{signed}\nb.mp4\n")
    table = build_manifest(str(tmp_path / "l.txt"), storage, medium="video")
    assert table["is_signed"].to_pylist() == [True, False]
    urls = fetch_uris(table, str(tmp_path / "l.txt"), storage, medium="video")
    assert urls == {table["source_id"][0].as_py(): signed}
    shard = Shard(pa.table({"path": ["a.mp4"], "video": [b"1"]}))
    signed = f"https://h.example/m.parquet?{signature}"
    table = build_manifest(signed, shard, medium="video")
    assert (table["kind"].to_pylist(), table["is_signed"].to_pylist()) == (["parquet"], [True])
    urls = fetch_uris(table, signed, shard, medium="video")
    assert urls == {table["source_id"][0].as_py(): signed}


def test_the_command_lists_the_medium_it_is_told(folder: Path) -> None:
    facts = {}
    for medium in ("image", "video"):
        path = folder.parent / f"{medium}.parquet"
        facts[medium] = list_input(str(folder), str(path), {"medium": medium})
        assert set(kinds(pq.read_table(path), folder).values()) == {medium, *SHARD_KINDS.values()}
    assert facts["video"]["sources"] == 8
    assert facts["video"]["  video"] == 4
    assert facts["video"]["left out, .jpg"] == 1
    assert facts["video"]["medium"] == "video"
    with pytest.raises(InputError, match="2 images and 4 videos; --medium says which"):
        list_input(str(folder), str(folder.parent / "default.parquet"), {})
    with pytest.raises(ConfigError, match=re.escape("medium must be one of image, video")):
        list_input(str(folder), str(folder.parent / "no.parquet"), {"medium": "audio"})


def test_the_command_takes_a_parquet_file_for_a_shard_where_it_is_told_the_column(
    tmp_path: Path,
) -> None:
    shard, manifest = str(tmp_path / "s.parquet"), str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"path": ["a.mp4"], "clip": [b"1"]}), shard)
    settings = {"medium": "video", "media_column": "clip"}
    assert list_input(shard, manifest, settings)["  parquet"] == 1
    assert pq.read_table(manifest)["uri"].to_pylist() == [shard]
