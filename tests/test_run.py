"""The life of a run around its work: what is refused, warned of and recorded, without Ray."""

import json
import shutil
from pathlib import Path

import pytest
from committed_parts import Row, part
from manifest_tables import build_manifest

from effnet_batch.config import EmbedConfig
from effnet_batch.errors import (
    ConfigError,
    FingerprintError,
    InputError,
    OutageError,
    StorageError,
)
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.pipelines.maintain import output_status
from effnet_batch.pipelines.resolve import resolve
from effnet_batch.pipelines.run import open_run
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import Storage

FIELDS = {"weights_sha256": "abc"}


class Listener:
    """Reporter that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, **counts: float | None) -> None:
        pass


def run_of(
    images: Path,
    output: Path,
    listener: Listener | None = None,
    *,
    update: bool = False,
    retry: object = (),
    **settings: object,
):
    return open_run(
        "embed",
        str(images),
        str(output),
        EmbedConfig.from_flat(dict(settings)),
        update=update,
        retry=retry,
        reporter=listener or Listener(),
    )


@pytest.fixture
def images(tmp_path: Path, photos: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(photos.iterdir())[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def begun(tmp_path: Path, images: Path) -> Path:
    """An output of a run that committed nothing."""
    with run_of(images, tmp_path / "output") as run:
        run.begin(Fingerprint(FIELDS), {"engine": {}}, {})
        run.finish()
    return tmp_path / "output"


def test_rows_of_other_numbers_are_refused_even_without_run_json(images, begun):
    (begun / "data").mkdir(exist_ok=True)
    (begun / "data" / "part-0.parquet").write_bytes(part([Row("/elsewhere/a.tar", 0, need=1)]))
    (begun / "run.json").unlink()
    message = "holds rows of fingerprint f, and this run would"
    with pytest.raises(FingerprintError, match=message), run_of(images, begun) as run:
        run.begin(Fingerprint(FIELDS), {}, {})


def test_storage_that_fails_at_the_end_is_an_outage(images, begun, monkeypatch):
    def refuse() -> None:
        raise StorageError("the bucket is gone")

    def work() -> None:
        with run_of(images, begun) as run:
            run.begin(Fingerprint(FIELDS), {}, {})
            monkeypatch.setattr(run.ledger, "refresh", refuse)
            run.finish()

    with pytest.raises(OutageError, match="gone"):
        work()
    assert json.loads((begun / "run.json").read_text())["state"] == "failed"


def test_an_unexpected_error_is_recorded(images, begun):
    def work() -> None:
        with run_of(images, begun) as run:
            run.begin(Fingerprint(FIELDS), {}, {})
            raise KeyError("surprise")

    with pytest.raises(KeyError):
        work()
    record = json.loads((begun / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "'surprise'")


def test_settings_of_the_listing_that_do_not_count_are_named(images, begun):
    listener = Listener()
    for settings in ({"limit": 1}, {"limit": 1, "sample": 2}):
        with run_of(images, begun, listener, **settings) as run:
            assert run.pending.num_rows == 3
    ending = "; --update lists it again"
    assert listener.warnings == [
        f"limit differs from when the input was listed and does not count{ending}",
        f"limit, sample differ from when the input was listed and do not count{ending}",
    ]


def test_a_missing_mount_is_no_pile_of_missing_files(images, begun):
    shutil.rmtree(images)
    with pytest.raises(StorageError, match="does not exist"), run_of(images, begun):
        pass


def test_a_source_that_was_deleted_since_does_not_stop_the_run(images, begun):
    next(images.iterdir()).unlink()
    with run_of(images, begun) as run:
        assert run.pending.num_rows == 3


def test_status_reads_only_parts_with_failures(begun, monkeypatch):
    record = json.loads((begun / "run.json").read_text())
    resolved = {
        "architecture": "efficientnet_b0",
        "weights": "random:0",
        "engine": {"engine": "torch", "precision": "fp32", "device": "cpu", "batch_size": 1},
    }
    (begun / "run.json").write_text(json.dumps({**record, "resolved": resolved}))
    (begun / "data").mkdir(exist_ok=True)
    good = [Row("/a.tar", 0), Row("/a.tar", 1, need=2)]
    bad = [Row("/b.tar", 0, status="decode_error", need=1)]
    (begun / "data" / "part-0.parquet").write_bytes(part(good))
    (begun / "data" / "part-1.parquet").write_bytes(part(bad))
    found = output_status(str(begun))
    assert [(status, uri) for status, _, uri, _ in found.failures] == [("decode_error", "/b.tar")]
    assert found.counts["records_by_status"] == {"ok": 2, "decode_error": 1}
    assert found.num_parts == 2


@pytest.mark.parametrize("damage", ["marker", "part"])
def test_update_lists_anew_what_a_damaged_manifest_held(images, begun, damage):
    part_of_manifest = next((begun / "manifest").glob("part-*"))
    damaged = begun / "manifest" / "_complete.json" if damage == "marker" else part_of_manifest
    damaged.write_bytes(b"")
    with pytest.raises(InputError, match="--update"), run_of(images, begun):
        pass
    with run_of(images, begun, update=True) as run:
        assert run.pending.num_rows == 3


@pytest.mark.parametrize("content", ["", "null", "5", "[]", '{"job": "embed"}'])
def test_a_damaged_run_json_says_what_to_do(images, begun, content):
    (begun / "run.json").write_text(content)
    with pytest.raises(InputError, match="is damaged; delete it and run the job again"):
        output_status(str(begun))
    with pytest.raises(InputError, match="is damaged; delete it"), run_of(images, begun):
        pass
    (begun / "run.json").unlink()
    with run_of(images, begun) as run:
        assert run.pending.num_rows == 3


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        (["bogus"], "unknown status 'bogus'; allowed are fetch_error"),
        (["ok"], "unknown status 'ok'"),
        ("decode_error", "retry must be a list of statuses, got 'decode_error'"),
    ],
)
def test_only_failures_are_retried(images, begun, retry, message):
    with pytest.raises(ConfigError, match=message), run_of(images, begun, retry=retry):
        pass


def test_more_classes_than_the_model_knows():
    settings = {"model": "mobilenet_v2", "weights": "random", "image_size": 96}
    assert resolve(EmbedConfig.from_flat({**settings, "top_k": 1000})).output["top_k"] == 1000
    with pytest.raises(ConfigError, match="top_k is 1001, and random:0 knows 1000 classes"):
        resolve(EmbedConfig.from_flat({**settings, "top_k": 1001}))


def test_a_run_that_fails_before_it_writes_leaves_no_folder_that_was_not_there(images, tmp_path):
    (tmp_path / "there").mkdir()
    for output in ("there", "new", "very/new"):
        with pytest.raises(StorageError), run_of(tmp_path / "missing", tmp_path / output):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "there"]


def test_an_output_is_not_its_own_input(images):
    with pytest.raises(ConfigError, match="the same folder"), run_of(images, images):
        pass


def test_another_output_in_the_same_folder_is_no_shard(images, begun):
    shutil.copytree(begun, images / "first")
    (images / "first" / "data").mkdir(exist_ok=True)
    name = "part-20260102T030405-abc123-000000-0000.parquet"
    (images / "first" / "data" / name).write_bytes(part([Row("/a.tar", 0, need=1)]))
    assert build_manifest(str(images), Storage()).num_rows == 3


def test_an_address_where_nothing_listens_is_refused_at_once():
    message = r"no Ray cluster at 127\.0\.0\.1:9: .*refused"
    with pytest.raises(ConfigError, match=message), ray_session("127.0.0.1:9"):
        pass
