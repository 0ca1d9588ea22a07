"""What is still to do: against a slow model, and over whole histories of broken runs."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from committed_parts import DATA, MemoryStorage, Row, ledger_of, manifest, part
from hypothesis import given, settings, strategies as st
from manifest_tables import by_prefix
from test_ledger import histories, is_complete, model_live

from effnet_batch.ledger import Ledger
from effnet_batch.pipelines.pending import Taper, cut_units, first_uri, pending_sources
from effnet_batch.pipelines.verify import check
from effnet_batch.schema import KIND_IMAGE, KIND_TAR, TRANSIENT_STATUSES, source_id
from effnet_batch.stages.read import sources_from_table

RUN = {"fingerprint": "f"}


def pending(ledger: Ledger, versions: dict[str, str | None], redo: set[str] | None = None):
    """Return attempt and skipped record ids of every pending source."""
    ids = None if redo is None else pa.array([bytes.fromhex(source_id(one)) for one in redo])
    table = pending_sources(manifest(versions), ledger.read(), redo=ids and ids.cast(pa.binary(16)))
    table = table.append_column("fetch_uri", pa.nulls(len(table), pa.string()))
    return {one.uri: (one.attempt, one.skip) for one in sources_from_table(table)}


def model_pending(
    parts: dict[str, list[Row]], versions: dict[str, str | None], redo: set[str]
) -> dict[str, tuple[int, frozenset[str]]]:
    live = model_live(parts)
    expected = {}
    for source, version in versions.items():
        rows = [row for part_rows in parts.values() for row in part_rows if row.source == source]
        if not rows:
            expected[source] = (1, frozenset())
            continue

        def is_unchanged(found: str | None, version: str | None = version) -> bool:
            return found is None or version is None or found == version

        shown = [row for _, _, row in live[source]]
        is_whole = is_complete(dict(enumerate(live[source])))
        is_passing = any(row.status in TRANSIENT_STATUSES for row in shown)
        if is_whole and not is_passing and is_unchanged(shown[0].version) and source not in redo:
            continue
        last = max(row.attempt for row in rows)
        latest = [row for row in rows if row.attempt == last]
        # To be done again by name is what readers see; a half-done successor of it just goes on.
        is_half_done = not (is_whole and shown[0].attempt == last)
        is_to_redo = source in redo and shown[0].attempt == last
        # More records than the last one says can never become whole.
        needs = [row.need for row in latest if row.need is not None]
        is_overfull = bool(needs) and len({row.record_id for row in latest}) > max(needs)
        can_go_on = is_half_done and not is_overfull and not is_to_redo
        if can_go_on and is_unchanged(latest[0].version):
            expected[source] = (last, frozenset(row.record_id for row in latest))
        else:
            expected[source] = (last + 1, frozenset())
    return expected


@settings(deadline=None, max_examples=150)
@given(
    histories(),
    st.lists(st.sampled_from(["v1", "v2", None]), min_size=5, max_size=5),
    st.sets(st.sampled_from("abcd")),
)
def test_pending_sources_are_those_of_the_obvious_model(
    parts: dict[str, list[Row]], etags: list[str | None], redo: set[str]
) -> None:
    versions = dict(zip("abcde", etags, strict=True))
    assert pending(ledger_of(parts), versions, redo) == model_pending(parts, versions, redo)


class World:
    """Sources whose content changes, and runs over them that break off anywhere."""

    def __init__(self, num_records: dict[str, int]) -> None:
        self.storage = MemoryStorage()
        self.versions: dict[str, str | None] = dict.fromkeys(num_records, "v1")
        self.num_records = num_records
        self.num_runs = 0
        self.decoded: dict[tuple[str, str | None], int] = defaultdict(int)
        """How often a record of a source's version was committed."""

    @property
    def ledger(self) -> Ledger:
        return Ledger.scan(self.storage, DATA)  # type: ignore[arg-type]

    def run(self, keep: float, failing: set[str], random: np.random.Generator) -> None:
        """Commit a random share of what is to do; the first records of a source come first."""
        self.num_runs += 1
        for number, (source, (attempt, skip)) in enumerate(
            pending(self.ledger, self.versions).items()
        ):
            version, count = self.versions[source], self.num_records[source]
            if source in failing:
                rows = [Row(source, 0, attempt, version, "fetch_error", 1)]
                if skip and random.random() < 0.5:  # broke off in its middle: nothing is committed
                    continue
                if skip:  # a second try could not open what a first one had half committed
                    rows = [Row(source, 99, attempt, version, "fetch_error", 1)]
            else:
                rows = [
                    Row(source, i, attempt, version, need=count if i == count - 1 else None)
                    for i in range(count)
                ]
                rows = [row for row in rows if row.record_id not in skip]
            num_kept = sum(random.random(len(rows)) < keep)
            if keep < 1:
                rows = rows[:num_kept]
            for index in range(0, len(rows), 2):
                some = rows[index : index + 2]
                for row in some:
                    if row.status == "ok":
                        self.decoded[row.record_id, version] += 1
                name = f"part-{self.num_runs:04}-{number:06}-{index:04}.parquet"
                self.storage.put(name, part(some))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_history_of_broken_runs_ends_with_every_record_once(data: st.DataObject) -> None:
    sources = "abc"[: data.draw(st.integers(1, 3))]
    world = World({source: data.draw(st.integers(1, 6)) for source in sources})
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    has_failed, has_changed = set(), set()
    for _ in range(data.draw(st.integers(0, 4))):
        failing = data.draw(st.sets(st.sampled_from(sources)))
        has_failed |= failing
        world.run(data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])), failing, random)
        for source in data.draw(st.sets(st.sampled_from(sources))):
            world.versions[source] = f"v{world.num_runs + 1}"
            world.num_records[source] = max(1, world.num_records[source] + random.integers(-1, 2))
            has_changed.add(source)
    world.run(1.0, set(), random)

    assert pending(world.ledger, world.versions) == {}
    report = check(by_prefix(manifest(world.versions)), world.ledger, RUN)
    assert report.is_proven, report
    assert report.num_done == len(sources)
    steady = set(sources) - has_changed
    live = [row for table in world.ledger.live(["uri", "member"]) for row in table.to_pylist()]
    for source in steady:
        members = [row["member"] for row in live if row["uri"] == source]
        assert sorted(members) == [f"m{i}" for i in range(world.num_records[source])]
        if source not in has_failed:
            ids = [Row(source, i).record_id for i in range(world.num_records[source])]
            assert [world.decoded[one, "v1"] for one in ids] == [1] * len(ids)


def test_with_an_empty_ledger_everything_is_a_first_attempt() -> None:
    assert pending(ledger_of({}), {"a": "v1", "b": None}) == {
        "a": (1, frozenset()),
        "b": (1, frozenset()),
    }


def test_an_empty_manifest_has_nothing_to_do() -> None:
    assert pending(ledger_of({"part-a.parquet": [Row("a", 0, need=1)]}), {}) == {}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([KIND_IMAGE, KIND_TAR]), st.none() | st.integers(0, 3_000_000)),
        max_size=40,
    ),
    st.integers(1, 12),
    st.none() | st.builds(Taper, *[st.integers(1, 4)] * 3),
)
def test_units_hold_every_source_in_order_within_their_bound(
    sources: list[tuple[str, int | None]], rows_per_part: int, taper: Taper | None
) -> None:
    table = pa.table(
        {
            "kind": pa.array([kind for kind, _ in sources], pa.string()),
            "size_bytes": pa.array([size for _, size in sources], pa.int64()),
            "place": pa.array(range(len(sources)), pa.int64()),
        }
    )
    units = list(cut_units(table, rows_per_part, taper=taper))
    assert [place for unit in units for place in unit["place"].to_pylist()] == list(
        range(len(sources))
    )
    assert [set(unit["unit"].to_pylist()) for unit in units] == [{i} for i in range(len(units))]
    for unit in units:
        assert len(unit) <= rows_per_part
        if unit["kind"].to_pylist() == [KIND_IMAGE] * len(unit):
            continue
        weight = sum(
            1 if kind == KIND_IMAGE else max(1, (size or 0) // 100_000)
            for kind, size in zip(
                *unit.select(["kind", "size_bytes"]).to_pydict().values(), strict=True
            )
        )
        assert len(unit) == 1 or weight <= rows_per_part


def test_the_last_units_are_smaller_so_that_actors_end_together() -> None:
    table = pa.table({"kind": [KIND_IMAGE] * 120, "size_bytes": pa.nulls(120, pa.int64())})
    units = cut_units(table, 15, taper=Taper(num_actors=2, min_rows=3))
    assert [len(unit) for unit in units] == [15, 15, 15, 15, 15, 12, 9, 6, 5, 4, 3, 3, 3]
    whole = cut_units(table, 16, taper=Taper(num_actors=2, min_rows=3, multiple_of=4))
    assert [len(unit) for unit in whole] == [16, 16, 16, 16, 16, 12, 8, 8, 4, 4, 4]


def test_what_is_read_to_try_a_node() -> None:
    ids = [source_id(uri) for uri in ("a.mp4", "b.mp4")]
    sources = pa.table({"uri": ["a.mp4", "b.mp4"], "source_id": ids, "is_signed": [None, True]})
    assert first_uri(by_prefix(sources.slice(0, 1))) == "a.mp4"
    assert first_uri(by_prefix(sources.slice(1))) is None, "no node is sent a signature"
    assert first_uri(by_prefix(sources.slice(0, 0))) is None
    stored = pa.table({"part": ["out/data/p.parquet"], "record": ["0"], "source_id": ids[:1]})
    assert first_uri(by_prefix(stored)) == "out/data/p.parquet"
