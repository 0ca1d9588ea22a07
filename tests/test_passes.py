"""Sources gone over in passes: the same as in one, and no more in memory than a pass needs."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from committed_parts import Row, ledger_of, manifest
from embed_process import FAST_MODEL
from hypothesis import given, settings, strategies as st
from killed_runs import Moment, Place, assert_exactly_once, run_and_strike
from manifest_tables import by_prefix
from test_ledger import histories
from test_manifest import ManyKeys
from test_resume import assert_vectors_stand_with_their_records, place

import effnet_batch
from effnet_batch import prefixes
from effnet_batch.config import EmbedConfig
from effnet_batch.errors import StorageError
from effnet_batch.manifest import build_manifest, read_manifest, write_manifest
from effnet_batch.pipelines.pending import find_pending, with_fetch_uris
from effnet_batch.pipelines.progress import Silent
from effnet_batch.pipelines.run import open_run
from effnet_batch.pipelines.verify import check
from effnet_batch.prefixes import RowsByPrefix, cut_passes
from effnet_batch.schema import source_id
from effnet_batch.storage import Storage

__all__ = ["place"]
IDS = [source_id(f"s3://bucket/{number:04}.jpg") for number in range(1_000)]


@contextlib.contextmanager
def passes_of(num_rows: int, rows_per_chunk: int = 64) -> Iterator[None]:
    with (
        mock.patch.object(prefixes, "ROWS_PER_PASS", num_rows),
        mock.patch.object(prefixes, "_ROWS_PER_CHUNK", rows_per_chunk),
    ):
        yield


@pytest.mark.parametrize("is_hex", [True, False])
@pytest.mark.parametrize("rows_per_pass", [1_000, 999, 300, 1])
def test_every_row_stands_in_one_pass_with_its_place(is_hex: bool, rows_per_pass: int) -> None:
    ids = pa.array(IDS) if is_hex else pa.array(map(bytes.fromhex, IDS), pa.binary(16))
    table = pa.table({"source_id": ids, "number": np.arange(1_000)})
    schema = table.schema.with_metadata({"said": "once"})
    with passes_of(rows_per_pass):
        rows = RowsByPrefix(schema)
        for start in range(0, 1_000, 70):
            rows.add(table.slice(start, 70))
        passes = cut_passes(rows, RowsByPrefix(schema))
        found = [rows.read_numbered(one) for one in passes]
    assert [len(passes) == 1, len(passes) > 200] == [rows_per_pass == 1_000, rows_per_pass == 1]
    sizes = [len(numbers) for _, numbers in found]
    assert all(
        size <= rows_per_pass or len(one) == 1 for size, one in zip(sizes, passes, strict=True)
    )
    assert all(left + right > rows_per_pass for left, right in itertools.pairwise(sizes))
    for one, numbers in found:
        assert one.equals(table.take(numbers))
        assert one.schema.equals(schema, check_metadata=True)
    places = np.concatenate([numbers for _, numbers in found])
    assert sorted(places) == list(range(1_000))
    first_bytes = [{key[:2] for key in np.array(IDS)[numbers]} for _, numbers in found]
    assert sum(map(len, first_bytes)) == len(set().union(*first_bytes))
    if rows_per_pass == 1_000:
        assert found[0][0].equals(table)


def test_rows_beyond_a_pass_are_not_held_in_memory() -> None:
    before = pa.total_allocated_bytes()
    text = "x" * 1_000
    with passes_of(1_000):
        rows = RowsByPrefix(pa.schema({"source_id": pa.string(), "text": pa.string()}))
        for _ in range(20):
            rows.add(pa.table({"source_id": IDS, "text": [text] * 1_000}))
            assert pa.total_allocated_bytes() - before < 3_000_000
        assert rows.num_rows == 20_000
        for table in rows.tables():
            assert pa.total_allocated_bytes() - before < 4_000_000
            assert set(table["text"].to_pylist()) == {text}


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    rows = RowsByPrefix(pa.schema({"source_id": pa.string()}))
    with passes_of(10), pytest.raises(StorageError, match=r"No space left.*set TMPDIR"):
        rows.add(pa.table({"source_id": IDS}))


@settings(deadline=None, max_examples=30)
@given(
    histories(),
    st.lists(st.sampled_from(["v1", "v2", None]), min_size=5, max_size=5),
    st.sampled_from([(), ("decode_error",), ("decode_error", "timeout")]),
    st.integers(1, 4),
)
def test_pending_live_rows_and_the_proof_are_those_of_one_pass(
    parts: dict[str, list[Row]], etags: list[str | None], retry: tuple[str, ...], num_rows: int
) -> None:
    sources = manifest(dict(zip("abcde", etags, strict=True)))

    def look() -> tuple[object, ...]:
        rows, ledger = by_prefix(sources), ledger_of(parts)
        report = check(rows, ledger, {"fingerprint": "other"})
        return (
            find_pending(rows, ledger, retry).read().sort_by("uri"),
            list(ledger.live(["uri", "member", "attempt"])),
            list(ledger.live(["uri", "member"], statuses=["timeout"])),
            {**report.counts(), "pending": sorted(report.pending), "problems": report.problems},
        )

    expected = look()
    with passes_of(num_rows, 2):
        assert look() == expected


def test_large_listings_are_cut_sampled_and_updated_as_small_ones(tmp_path: Path) -> None:
    listed = {"recursive": True, "sample": 700, "limit": 500, "seed": 3}
    uris = [f"s3://bucket/{number % 900:04}.jpg" for number in range(1_000)]
    (tmp_path / "l.txt").write_text("\n".join(uris))
    storage, output = Storage(), str(tmp_path / "output")

    def look() -> list[object]:
        found = [
            build_manifest("s3://bucket/", ManyKeys(3), **listed),
            build_manifest(str(tmp_path / "l.txt"), storage),
            build_manifest(str(tmp_path / "l.txt"), storage, limit=250),
        ]
        write_manifest(storage, output, found[1])
        write_manifest(storage, output, found[2])
        change = write_manifest(storage, output, found[1], update=True)
        found.append(read_manifest(storage, output))
        return [change, *(rows.read().sort_by("uri") for rows in found)]

    expected = look()
    assert [len(table) for table in expected[1:]] == [500, 900, 250, 900]
    assert (expected[0].num_added, expected[0].num_vanished) == (650, 0)
    with passes_of(100):
        assert look() == expected


def test_signatures_are_joined_to_every_pass(tmp_path: Path) -> None:
    plain = [f"https://h.invalid/{number}.jpg" for number in range(50)]
    urls = [f"{url}?X-Amz-Signature={number}s" for number, url in enumerate(plain)]
    text = tmp_path / "l.txt"
    text.write_text("\n".join(urls))
    with passes_of(10, 5):
        rows = build_manifest(str(text), Storage())
        found: dict[str, str] = {}
        for table in find_pending(rows, ledger_of({})).tables():
            joined = with_fetch_uris(table, str(text), Storage(), "image")
            found |= {row["uri"]: row["fetch_uri"] for row in joined.to_pylist()}
    assert found == dict(zip(plain, urls, strict=True))


@pytest.mark.slow
def test_runs_killed_in_and_between_passes_end_as_a_run_of_one_pass(
    tmp_path: Path, place: Place
) -> None:
    runs = [
        [Moment(0.11, "driver", is_between_passes=True)],
        [Moment(0.62, "FusedWorker"), Moment(0.68, "machine")],
        [Moment(0.8, "FusedWorker")],
    ]
    snapshots = run_and_strike(tmp_path, place, runs, rows_per_pass=40)
    assert_exactly_once(place, snapshots)
    assert_vectors_stand_with_their_records(place)

    settings = dict(flag.removeprefix("--").split("=") for flag in FAST_MODEL)
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    settings |= {"image_size": 96, "batch_size": 4, "rows_per_part": place.rows_per_part}
    other = f"{place.output}-of-one-pass"
    effnet_batch.embed(place.input, other, **settings)
    tables = [
        effnet_batch.read_embeddings(root).sort_by("record_id") for root in (place.output, other)
    ]
    assert [len(table) for table in tables] == [place.num_records] * 2
    vectors = [effnet_batch.embedding_matrix(table) for table in tables]
    np.testing.assert_allclose(*vectors, atol=1e-4, rtol=1e-3)
    left, right = (
        table.drop_columns(["embedding", "run_id", "num_source_records"]) for table in tables
    )
    assert left.equals(right)


def test_a_run_goes_over_its_pending_sources_in_passes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(100):
        (tmp_path / "in" / f"{number:03}.jpg").write_bytes(b"x")
    config = EmbedConfig.from_flat({})
    with (
        passes_of(30, 10),
        open_run(
            "embed",
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            config,
            update=False,
            retry=(),
            reporter=Silent(),
        ) as run,
    ):
        found = list(run.passes())
        assert run.num_pending_records() == 100
    assert [len(table) <= 30 for table in found] == [True] * len(found)
    assert len(found) >= 4
    assert sorted(uri for table in found for uri in table["uri"].to_pylist()) == [
        str(tmp_path / "in" / f"{number:03}.jpg") for number in range(100)
    ]


def test_what_is_left_of_the_last_prefixes_is_cut_by_its_own_numbers() -> None:
    left = pa.table({"source_id": [key for key in IDS if key >= "c0"]})
    with passes_of(100):
        rows, listed = RowsByPrefix(left.schema), RowsByPrefix(left.schema)
        rows.add(left)
        listed.add(pa.table({"source_id": IDS}))
        sizes = [rows.read(one).num_rows for one in cut_passes(rows)]
        joined = [(rows.read(one), listed.read(one)) for one in cut_passes(rows, listed)]
    assert len(sizes) in (3, 4)
    assert max(sizes) <= 100
    assert max(len(table) for pair in joined for table in pair) <= 100
