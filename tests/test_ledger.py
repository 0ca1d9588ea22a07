"""The ledger against a slow, obvious model, and parts whose tails do not fit the first guess."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from committed_parts import DATA, MemoryStorage, Row, ledger_of, part
from hypothesis import given, settings, strategies as st

from effnet_batch.errors import FetchError, OutageError
from effnet_batch.ledger import Ledger
from effnet_batch.schema import STATUSES, TRANSIENT_STATUSES, source_id
from effnet_batch.sink import part_bytes

NAMES = [f"part-run{run}-{task:06}-0000.parquet" for run in (1, 2) for task in (0, 1, 2)]


@st.composite
def histories(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Return parts by name: attempts half done, done twice, superseded; in any order of listing."""
    parts: dict[str, list[Row]] = {name: [] for name in draw(st.permutations(NAMES))}
    for source in "abcd"[: draw(st.integers(1, 4))]:
        for attempt in draw(st.sets(st.integers(1, 4), min_size=1, max_size=3)):
            num_records = draw(st.integers(1, 4))
            version = draw(st.sampled_from(["v1", "v2", None]))
            for record in draw(st.sets(st.integers(0, num_records - 1), min_size=1)):
                is_last = record == num_records - 1
                for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)):
                    status = draw(st.sampled_from(["ok", "ok", "ok", "timeout", "decode_error"]))
                    need = num_records if is_last else None
                    parts[name].append(Row(source, record, attempt, version, status, need))
    return parts


def model_live(parts: dict[str, list[Row]]) -> dict[str, list[tuple[str, int, Row]]]:
    """Return the live rows of every source, as name of part, place in it, row."""
    firsts: dict[str, dict[int, dict[int, tuple[str, int, Row]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for name in sorted(parts):
        for place, row in enumerate(parts[name]):
            firsts[row.source][row.attempt].setdefault(row.record, (name, place, row))
    live = {}
    for source, attempts in firsts.items():
        complete = [number for number, found in attempts.items() if is_complete(found)]
        live[source] = list(attempts[max(complete or attempts)].values())
    return live


def is_complete(found: dict[int, tuple[str, int, Row]]) -> bool:
    return len(found) in [row.need for _, _, row in found.values()]


@settings(deadline=None, max_examples=150)
@given(histories())
def test_live_rows_and_states_are_those_of_the_obvious_model(parts: dict[str, list[Row]]) -> None:
    ledger = ledger_of(parts)
    live = model_live(parts)
    places = {(name, place) for rows in live.values() for name, place, _ in rows}
    starts = np.cumsum([0, *(len(parts[one.uri.rsplit("/", 1)[1]]) for one in ledger.parts)])
    found = {
        (ledger.parts[number].uri.rsplit("/", 1)[1], row - int(starts[number]))
        for row, number in enumerate(ledger.rows.read()["part"].to_pylist())
        if ledger.read().states.is_live[row]
    }
    assert found == places

    states = {row["source"].hex(): row for row in ledger.read().states.table.to_pylist()}
    assert states.keys() == {source_id(source) for source in live}
    for source, rows in live.items():
        state = states[source_id(source)]
        every = [row for part_rows in parts.values() for row in part_rows if row.source == source]
        last = max(row.attempt for row in every)
        assert state["attempt"] == rows[0][2].attempt
        assert state["num_records"] == len(rows)
        assert state["is_complete"] == is_complete(dict(enumerate(rows)))
        assert state["is_transient"] == any(r.status in TRANSIENT_STATUSES for _, _, r in rows)
        assert state["version"] == rows[0][2].version
        assert state["last_attempt"] == last
        assert state["last_version"] == next(r.version for r in every if r.attempt == last)

    statuses = Counter(row.status for rows in live.values() for _, _, row in rows)
    assert ledger.read().count_live_by_status() == statuses
    for status in STATUSES:
        assert {one.hex() for one in ledger.read().sources_with_status([status]).to_pylist()} == {
            source_id(source)
            for source, rows in live.items()
            if any(row.status == status for _, _, row in rows)
        }

    in_order = sorted((one for rows in live.values() for one in rows), key=lambda one: one[:2])
    read = [row for table in ledger.live(["uri", "member", "attempt"]) for row in table.to_pylist()]
    assert [(row["uri"], row["member"], row["attempt"]) for row in read] == [
        (row.source, f"m{row.record}", row.attempt) for _, _, row in in_order
    ]
    ok = [row for table in ledger.live(["status"], statuses=["ok"]) for row in table.to_pylist()]
    assert len(ok) == statuses["ok"]

    chosen = {row.record_id for _, _, row in in_order[::2]}
    storage = ledger.storage
    assert isinstance(storage, MemoryStorage)
    storage.num_read_whole = 0
    some = [
        (row["uri"], row["member"])
        for table in ledger.live(["uri", "member"], records=sorted(chosen))
        for row in table.to_pylist()
    ]
    assert some == [(row.source, f"m{row.record}") for _, _, row in in_order[::2]]
    assert storage.num_read_whole == len({name for name, _, _ in in_order[::2]})


@settings(deadline=None, max_examples=25)
@given(histories(), st.data())
def test_a_refreshed_ledger_is_that_of_one_scan(
    parts: dict[str, list[Row]], data: st.DataObject
) -> None:
    storage = MemoryStorage()
    ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    assert ledger.parts == []
    for name, rows in parts.items():
        storage.put(name, part(rows))
        if data.draw(st.booleans()):
            ledger.refresh()
    ledger.refresh()
    whole = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    columns = ["uri", "member", "attempt", "status"]
    assert list(ledger.live(columns)) == list(whole.live(columns))
    keys = [("source", "ascending")]
    assert ledger.read().states.table.sort_by(keys) == whole.read().states.table.sort_by(keys)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 700])
def test_a_part_is_read_from_its_tail(num_rows: int) -> None:
    rows = [Row(f"s3://b/{i}.jpg", 0, need=1) for i in range(num_rows)]
    ledger = ledger_of({"part-a.parquet": rows})
    assert not ledger.unreadable
    assert ledger.rows.num_rows == num_rows
    assert ledger.storage.num_read_whole == 0  # type: ignore[attr-defined]


def test_a_part_of_many_row_groups_is_read_although_its_tail_holds_the_last_group_only() -> None:
    rows = [Row(f"s3://b/{i}.jpg", 0, need=1) for i in range(600)]
    vectors = np.random.default_rng(0).random((600, 300), np.float32)
    table = pq.read_table(pa.BufferReader(part(rows)))
    metadata = table.schema.metadata
    table = table.set_column(
        table.schema.get_field_index("embedding"), "embedding", pa.array(list(vectors))
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, row_group_size=100)
    storage = MemoryStorage()
    storage.put("part-a.parquet", bytes(buffer.getvalue()))
    ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    assert not ledger.unreadable
    assert storage.num_read_whole == 1
    assert {one.hex() for one in ledger.rows.read()["source"].to_pylist()} == {
        source_id(row.source) for row in rows
    }


@pytest.mark.parametrize("note_bytes", [10, 40_000, 500_000])
def test_a_footer_larger_than_the_guess_is_read_all_the_same(note_bytes: int) -> None:
    rows = [Row(f"s3://b/{i}.jpg", 0, need=1) for i in range(5)]
    storage = MemoryStorage()
    storage.put("part-a.parquet", part(rows, note="x" * note_bytes))
    storage.put("part-b.parquet", part([Row("s3://b/5.jpg", 0, need=1)]))
    ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    assert not ledger.unreadable
    assert ledger.rows.num_rows == 6
    assert pc.all(ledger.read().states.table["is_complete"]).as_py()


def test_a_ledger_of_long_uris_and_messages_is_read() -> None:
    rows = [Row("s3://b/" + f"{i}" + "x" * 3_900, 0, need=1) for i in range(300)]
    ledger = ledger_of({"part-a.parquet": rows})
    assert not ledger.unreadable
    assert ledger.rows.num_rows == 300


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "zeros", "text", "foreign", "status", "ids", "columns"]
)
def test_a_damaged_part_is_named_and_counts_as_absent(damage: str) -> None:
    good = part([Row("a", 0, need=1)])
    table = pq.read_table(pa.BufferReader(good))

    def changed(name: str, value: str) -> bytes:
        place = table.schema.get_field_index(name)
        column = pa.array([value], pa.string())
        return part_bytes(table.set_column(place, table.schema.field(name), column), {})

    foreign = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), foreign)
    bytes_of = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "zeros": good[:-3_000] + bytes(2_900) + good[-100:],
        "text": b"this is no Parquet file",
        "foreign": bytes(foreign.getvalue()),
        "status": changed("status", "splendid"),
        "ids": changed("source_id", "short"),
        "columns": part_bytes(table.drop_columns(["attempt"]), {"fingerprint": "f"}),
    }
    storage = MemoryStorage()
    bad = storage.put("part-a.parquet", bytes_of[damage])
    storage.put("part-b.parquet", part([Row("b", 0, need=1)]))
    ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    assert ledger.unreadable.keys() == {bad}
    assert [one.uri for one in ledger.parts] == [f"{DATA}/part-b.parquet"]
    assert {one.hex() for one in ledger.rows.read()["source"].to_pylist()} == {source_id("b")}


def test_files_that_are_no_parts_are_left_alone() -> None:
    storage = MemoryStorage()
    storage.put("part-a.parquet", part([Row("a", 0, need=1)]))
    storage.put("part-a.parquet.tmp", b"")
    storage.put("_SUCCESS", b"")
    storage.put("notes.parquet", b"")
    ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    assert not ledger.unreadable
    assert len(ledger.parts) == 1


@pytest.mark.parametrize("is_transient", [False, True])
def test_a_part_that_storage_does_not_give_is_no_damaged_part(is_transient: bool) -> None:
    class Refusing(MemoryStorage):
        def read_tails(self, uris: object, num_bytes: int) -> list[bytes | FetchError]:
            return [FetchError("the disk is on fire", is_transient=is_transient)]

    storage = Refusing()
    uri = storage.put("part-a.parquet", b"x")
    if is_transient:  # a good part must not be set aside because of a bad moment
        with pytest.raises(OutageError, match="the disk is on fire"):
            Ledger.scan(storage, DATA)  # type: ignore[arg-type]
    else:
        ledger = Ledger.scan(storage, DATA)  # type: ignore[arg-type]
        assert ledger.unreadable == {uri: "the disk is on fire"}
