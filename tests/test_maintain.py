"""compact and forget on outputs written by hand: broken off at every request, nothing is lost."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed_parts import Row, manifest, part
from hypothesis import given, settings
from manifest_tables import read_manifest, write_manifest
from test_ledger import histories

from effnet_batch.errors import InputError, LockedError, OutageError
from effnet_batch.ledger import Ledger
from effnet_batch.lock import OutputLock
from effnet_batch.pipelines import maintain
from effnet_batch.pipelines.maintain import compact, forget
from effnet_batch.pipelines.verify import verify
from effnet_batch.storage import Storage, StorageOptions

A, B, C, D = (f"s3://pictures/secret-{name}.tar" for name in "abcd")
PARTS = {
    "part-1-000000-0000.parquet": [Row(A, 0), Row(A, 1), Row(A, 2, need=3), Row(B, 0)],
    # A worker that died after its commit, in another run: all of it stands twice.
    "part-2-000000-0000.parquet": [Row(A, 2, need=3), Row(B, 0), Row(B, 1, need=2)],
    # C was done again; D is half done.
    "part-2-000001-0000.parquet": [Row(C, 0, version="v0", need=1)],
    "part-3-000000-0000.parquet": [Row(C, 0, 2), Row(C, 1, 2, need=2, status="decode_error")],
    "part-3-000001-0000.parquet": [Row(D, 0)],
}
NUM_LIVE = 8


@pytest.fixture
def root(tmp_path: Path) -> str:
    return make(tmp_path / "output", PARTS)


def make(folder: Path, parts: dict[str, list[Row]]) -> str:
    storage = Storage(StorageOptions())
    root = str(folder)
    sources = sorted({row.source for rows in parts.values() for row in rows} | {A, B, C, D})
    write_manifest(storage, root, manifest(dict.fromkeys(sources, "v1")))
    run = {"job": "embed", "input": "s3://pictures/", "fingerprint": "f", "state": "complete"}
    storage.write(f"{root}/run.json", json.dumps(run).encode())
    for name, rows in parts.items():
        storage.write(f"{root}/data/{name}", part(rows))
    return root


def live(root: str) -> list[dict[str, Any]]:
    """Return the live rows in an order of their own."""
    ledger = Ledger.scan(Storage(StorageOptions()), f"{root}/data")
    assert not ledger.unreadable
    rows = [row for table in ledger.live() for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["uri"], row["member"]))


class Failing(Storage):
    """Storage that goes away at one of its changes; half of what it deletes then is gone."""

    fail_at: int | None = None
    num_changes = 0

    def _is_over(self) -> bool:
        Failing.num_changes += 1
        return Failing.fail_at is not None and Failing.num_changes > Failing.fail_at

    def write(self, uri: str, data: bytes) -> None:
        if self._is_over():
            raise OutageError("gone")
        super().write(uri, data)

    def delete_many(self, uris: Sequence[str]) -> None:
        if self._is_over():
            if Failing.num_changes == (Failing.fail_at or 0) + 1:
                super().delete_many(list(uris)[::2])
            raise OutageError("gone")
        super().delete_many(uris)


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], int]]:
    """Call something once for every change it makes to storage, which breaks off there.

    Yields:
        A function of (what to call, what to check after each failure) that returns the number of
        changes.
    """
    monkeypatch.setattr(maintain, "Storage", Failing)

    def drive(prepare: Callable[[], Callable[[], Any]], check: Callable[[], None]) -> int:
        Failing.fail_at, Failing.num_changes = None, 0
        prepare()()
        num_changes = Failing.num_changes
        for number in range(num_changes):
            call = prepare()
            Failing.fail_at, Failing.num_changes = number, 0
            try:
                call()
            except OutageError:
                pass
            else:
                # Only the lock may stay behind without an error; nothing rests on it.
                assert number == num_changes - 1
            Failing.fail_at = None
            check()
        return num_changes

    yield drive
    Failing.fail_at = None


def test_compact_keeps_the_live_rows_and_nothing_else(root: str) -> None:
    before, report = live(root), verify(root)
    assert (len(before), report.num_superseded) == (NUM_LIVE, 3)
    assert compact(root) == (5, 1)
    assert live(root) == before
    after = verify(root)
    assert after.num_superseded == 0
    assert (after.num_done, after.num_failed, after.num_pending) == (2, 1, 1)
    assert after.pending == report.pending == (D,)
    assert {path.name[:5] for path in Path(root, "data").iterdir()} == {"part-"}
    assert compact(root) == (1, 1)
    assert live(root) == before


def test_compact_cuts_parts_by_bytes(root: str) -> None:
    before = live(root)
    assert compact(root, part_bytes=1) == (5, 4)
    assert live(root) == before


@settings(deadline=None, max_examples=15)
@given(parts=histories())
def test_compact_changes_no_history(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, list[Row]]
) -> None:
    root = make(tmp_path_factory.mktemp("history"), parts)
    before, report = live(root), verify(root)
    compact(root, part_bytes=2_000)
    assert live(root) == before
    assert verify(root).pending == report.pending
    assert verify(root).num_superseded == 0


def test_compact_broken_off_anywhere_loses_nothing(
    root: str, tmp_path: Path, broken_off: Callable[..., int]
) -> None:
    expected, place = live(root), [""]

    def prepare() -> Callable[[], Any]:
        place[0] = make(
            tmp_path / f"{Failing.fail_at}-{Failing.num_changes}-{place[0][-9:]}", PARTS
        )
        return lambda: compact(place[0], part_bytes=1)

    def check() -> None:
        assert live(place[0]) == expected
        Path(place[0], "_lock.json").unlink(missing_ok=True)
        compact(place[0])
        assert live(place[0]) == expected
        assert verify(place[0]).num_superseded == 0

    assert broken_off(prepare, check) == 6  # four parts, the old ones, the lock


@pytest.mark.parametrize("command", [compact, lambda root: forget(root, f"{root}/list.txt")])
def test_a_locked_or_foreign_output_is_refused(
    command: Callable[[str], Any], root: str, tmp_path: Path
) -> None:
    Path(root, "list.txt").write_text(f"{A}\n")
    with (
        OutputLock(Storage(), f"{root}/_lock.json", "r"),
        pytest.raises(LockedError, match="run r"),
    ):
        command(root)
    assert len(live(root)) == NUM_LIVE
    with pytest.raises(InputError, match="no output of effnet-batch"):
        command(str(tmp_path / "elsewhere"))


def test_compact_refuses_an_output_with_a_damaged_part(root: str) -> None:
    damaged = Path(root, "data", "part-3-000001-0000.parquet")
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(InputError, match=r"part-3-000001-0000\.parquet"):
        compact(root)
    assert len(list(Path(root, "data").iterdir())) == 5


def everything_in(root: str) -> str:
    """Return all that stands in the files of an output, compressed columns too."""
    texts = []
    for path in Path(root).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            texts += [path.name, data.decode("latin-1")]
            if path.suffix == ".parquet" and data[-4:] == b"PAR1":
                table = pq.read_table(pa.BufferReader(data))
                texts += [str(table.to_pydict()), str(table.schema.metadata)]
    return "\n".join(texts)


def scatter(root: str, uri: str) -> None:
    """Leave the URI wherever runs leave it: messages, damaged parts, a manifest never finished."""
    failed = {"job": "embed", "state": "failed", "error": f"{uri} could not be fetched"}
    for name in ("r1", "r2"):
        Path(root, "runs").mkdir(exist_ok=True)
        Path(root, "runs", f"{name}.json").write_text(json.dumps(failed))
    run = json.loads(Path(root, "run.json").read_text())
    Path(root, "run.json").write_text(json.dumps({**run, "error": f"at {uri}: gone"}))
    Path(root, "quarantine").mkdir()
    Path(root, "quarantine", "part-0.parquet").write_bytes(part([Row(uri, 0)])[:-7] + uri.encode())
    Path(root, "manifest", "part-left-00000.parquet").write_bytes(part([Row(uri, 0)]))
    Path(root, "_tmp").mkdir(exist_ok=True)
    Path(root, "_tmp", "part-1-000000-0000.parquet.0123456789abcdef").write_bytes(uri.encode())


def test_forget_leaves_no_byte_of_a_source(root: str, tmp_path: Path) -> None:
    scatter(root, C)
    assert C in everything_in(root)
    others = [row for row in live(root) if row["uri"] not in (A, C)]
    uris = tmp_path / "list.txt"
    uris.write_text(f"# requests of this week\n{A}\n\n  {C}\ns3://pictures/never-heard-of.jpg\n")
    assert forget(root, str(uris)) == {
        "sources asked for": 3,
        "sources erased": 2,
        "rows erased": 7,
        "parts rewritten": 4,
    }
    text = everything_in(root)
    for uri in (A, C):
        assert uri not in text
        assert uri.rsplit("/", 1)[1] not in text
    assert B in text
    assert live(root) == others
    report = verify(root)
    assert (report.num_sources, report.num_done, report.num_pending) == (2, 1, 1)
    assert not report.problems
    assert json.loads(Path(root, "run.json").read_text())["input"] == "s3://pictures/"
    assert forget(root, str(uris))["rows erased"] == 0


def test_forget_broken_off_anywhere_is_finished_by_the_same_call(
    tmp_path: Path, broken_off: Callable[..., int]
) -> None:
    uris = tmp_path / "list.txt"
    uris.write_text(f"{A}\n{C}\n")
    number, place = iter(range(1_000)), [""]

    def prepare() -> Callable[[], Any]:
        place[0] = make(tmp_path / str(next(number)), PARTS)
        scatter(place[0], C)
        return lambda: forget(place[0], str(uris))

    def check() -> None:
        Path(place[0], "_lock.json").unlink(missing_ok=True)
        forget(place[0], str(uris))
        text = everything_in(place[0])
        assert A not in text
        assert C not in text
        assert [row["uri"] for row in live(place[0])] == [B, B, D]
        assert read_manifest(Storage(), place[0])["uri"].to_pylist() == [B, D]

    assert broken_off(prepare, check) >= 6


def test_forget_refuses_a_list_that_it_cannot_read(root: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the list"):
        forget(root, str(tmp_path / "missing.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        forget(root, str(tmp_path / "binary.txt"))
    assert len(live(root)) == NUM_LIVE
