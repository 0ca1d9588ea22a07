"""Proof that an output holds every source and every record exactly once."""

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.errors import InputError, RecordError
from effnet_batch.ledger import (
    Ledger,
    LedgerPass,
    find_repeated,
    ids_from_hex,
    read_frames_of,
)
from effnet_batch.manifest import read_manifest, source_version
from effnet_batch.prefixes import RowsByPrefix, cut_passes
from effnet_batch.schema import STATUS_OK, STATUSES
from effnet_batch.sink import FRAMES_KEY, OutputPaths, read_metadata
from effnet_batch.storage import Storage, StorageOptions, canonical_uri

_MAX_LISTED = 1_000
_RUN_FIELDS = {"job", "input", "fingerprint", "state"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What an output holds. ``num_sources = num_done + num_failed + num_pending`` always."""

    num_sources: int
    num_done: int
    """Sources all of whose records are ok."""
    num_failed: int
    """Sources with at least one failed record, all records present."""
    num_pending: int
    """Sources that are not finished."""
    num_records: int
    """Live records, which is what readers see."""
    num_superseded: int
    """Rows that a later attempt or an earlier part replaces; `compact` removes them."""
    records_by_status: dict[str, int]
    pending: tuple[str, ...] = ()
    """The first URIs that are not finished."""
    problems: tuple[str, ...] = ()
    """What must not be, besides pending sources."""

    @property
    def is_proven(self) -> bool:
        """Whether every source is finished and nothing else is in the output."""
        return not self.num_pending and not self.problems

    @property
    def failed_share(self) -> float:
        """Failed records as a share of all live ones."""
        failed = self.num_records - self.records_by_status.get(STATUS_OK, 0)
        return failed / self.num_records if self.num_records else 0.0

    def counts(self) -> dict[str, Any]:
        """Returns the counts alone, as plain JSON values."""
        values = dataclasses.asdict(self)
        return {
            name: value for name, value in values.items() if name not in ("pending", "problems")
        }


def verify(output: str, *, is_deep: bool = False, **storage: Any) -> Report:
    """Checks an output from nothing but its files.

    Args:
        output: folder of the output.
        is_deep: also read every vector or score: present where the status is ok and only there,
            finite, vectors of one width; and every frame.
        **storage: settings of `StorageOptions`.

    Raises:
        InputError: there is no output of ours at this place.
    """
    room = Storage(StorageOptions(**storage))
    paths = OutputPaths(canonical_uri(output))
    run = load_run(room, paths)
    ledger = Ledger.scan(room, paths.data)
    report = check(load_manifest(room, paths), ledger, run)
    if is_deep:
        problems = (
            *report.problems,
            *(_vector_problems(ledger) if run["job"] == "embed" else _score_problems(ledger)),
            *(_frame_problems(room, ledger) if run.get("frames") else ()),
        )
        report = dataclasses.replace(report, problems=problems[:_MAX_LISTED])
    return report


def load_run(storage: Storage, paths: OutputPaths) -> dict[str, Any]:
    """Returns run.json.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        run = json.loads(storage.read(paths.run))
    except RecordError as error:
        raise InputError(f"{paths.root} is no output of effnet-batch: {error}") from error
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not run.keys() >= _RUN_FIELDS:
        raise InputError(
            f"{paths.run} is damaged; delete it and run the job again, which renews it"
        )
    return run


def load_manifest(storage: Storage, paths: OutputPaths) -> RowsByPrefix:
    """Returns the manifest of an output without the sources that were erased from it."""
    return without_forgotten(read_manifest(storage, paths.root), load_forgotten(storage, paths))


def without_forgotten(manifest: RowsByPrefix, forgotten: Iterable[str]) -> RowsByPrefix:
    """Returns a manifest without the sources of these ids."""
    ids = pa.array(forgotten, pa.string())
    if not len(ids):  # the usual case, which need not copy a large manifest
        return manifest
    kept = RowsByPrefix(manifest.schema)
    for table in manifest.tables():
        kept.add(table.filter(pc.invert(pc.is_in(table["source_id"], ids))))
    return kept


def load_forgotten(storage: Storage, paths: OutputPaths) -> list[str]:
    """Returns the ids of the sources that were erased; ids say nothing about the sources.

    Raises:
        InputError: the list of them is damaged.
    """
    if not storage.exists(paths.forgotten):
        return []
    try:
        ids = json.loads(storage.read(paths.forgotten))
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise InputError(
            f"{paths.forgotten} is damaged, so that nobody knows what was erased; restore it, or "
            "delete it and erase again what must not come back"
        )
    return ids


def check(manifest: RowsByPrefix, ledger: Ledger, run: dict[str, Any]) -> Report:
    """Compares manifest and ledger.

    Args:
        manifest: every source.
        ledger: every committed row.
        run: run.json, for the fingerprint that all parts must have.
    """
    counts: collections.Counter[str] = collections.Counter()
    by_status: collections.Counter[str] = collections.Counter()
    pending: list[str] = []
    for prefixes in cut_passes(manifest, ledger.rows):
        sources, found = manifest.read(prefixes), ledger.read(prefixes)
        is_finished = _count_pass(sources, found, counts)
        by_status.update(found.count_live_by_status())
        unfinished = sources["uri"].filter(pa.array(~is_finished))
        pending += unfinished.slice(0, _MAX_LISTED - len(pending)).to_pylist()
    problems = _part_problems(ledger, run)
    if num_strangers := counts.pop("num_strangers"):
        problems.append(f"records of {num_strangers} sources that the manifest does not have")
    if num_repeated := counts.pop("num_repeated"):
        problems.append(f"{num_repeated} sources stand more than once in the manifest")
    return Report(
        num_sources=manifest.num_rows,
        **counts,
        records_by_status={name: by_status[name] for name in STATUSES if by_status[name]},
        pending=tuple(pending),
        problems=tuple(problems[:_MAX_LISTED]),
    )


def _count_pass(
    manifest: pa.Table, ledger: LedgerPass, counts: collections.Counter[str]
) -> np.ndarray:
    """Counts the sources and records of one pass.

    Args:
        manifest: sources of the pass.
        ledger: what is committed of them.
        counts: takes the counts of `Report`, num_strangers and num_repeated.

    Returns:
        Which sources are finished, as bool [number of sources].
    """
    states = ledger.states.table
    ids = ids_from_hex(manifest["source_id"])
    place = pc.index_in(ids, value_set=states["source"].combine_chunks())
    is_finished = np.zeros(manifest.num_rows, bool)
    if states.num_rows:
        at = states.select(["is_complete", "version"]).take(pc.fill_null(place, 0))
        same = pc.fill_null(pc.equal(source_version(manifest), at["version"]), True)
        is_finished = (
            np.asarray(pc.is_valid(place)) & np.asarray(at["is_complete"]) & np.asarray(same)
        )
    failed_ids = ledger.sources_with_status(name for name in STATUSES if name != STATUS_OK)
    is_failed = is_finished & np.asarray(pc.is_in(ids, value_set=failed_ids))
    is_stranger = np.ones(states.num_rows, bool)
    is_stranger[np.asarray(pc.drop_null(place))] = False
    repeated = ids.filter(pa.array(find_repeated(ids)))
    num_live = int(ledger.states.is_live.sum())
    counts.update(
        num_done=int((is_finished & ~is_failed).sum()),
        num_failed=int(is_failed.sum()),
        num_pending=int((~is_finished).sum()),
        num_records=num_live,
        num_superseded=ledger.rows.num_rows - num_live,
        num_strangers=int(is_stranger.sum()),
        num_repeated=len(repeated) - pc.count_distinct(repeated).as_py(),
    )
    return is_finished


def _part_problems(ledger: Ledger, run: dict[str, Any]) -> list[str]:
    """Returns which parts must not be."""
    expected = run.get("fingerprint")
    return [
        *(f"unreadable part {uri}: {why}" for uri, why in ledger.unreadable.items()),
        *(
            f"parts of fingerprint {found} beside the run's {expected}"
            for found in sorted(ledger.fingerprints - {expected})
        ),
    ]


def _vector_problems(ledger: Ledger) -> list[str]:
    problems, widths = [], set()
    for table in ledger.live(["uri", "member", "status", "embedding"]):
        is_ok = pc.equal(table["status"], STATUS_OK)
        if (
            not pc.equal(pc.is_valid(table["embedding"]), is_ok)
            .combine_chunks()
            .equals(pa.array([True] * len(table)))
        ):
            problems.append(
                "vectors are missing or made up in the part that begins with "
                + str(table["uri"][0])
            )
        vectors = table["embedding"].combine_chunks()
        widths |= set(pc.unique(pc.list_value_length(vectors.drop_null())).to_pylist())
        values = vectors.flatten().cast(pa.float32())
        if not pc.all(pc.is_finite(values), min_count=0).as_py():
            problems.append(
                f"vectors that are not finite in the part that begins with {table['uri'][0]}"
            )
    if len(widths) > 1:
        problems.append(f"vectors of different lengths: {sorted(widths)}")
    return problems


def _score_problems(ledger: Ledger) -> list[str]:
    problems = []
    for table in ledger.live(["uri", "status", "score", "logit", "verdict"]):
        is_ok = np.asarray(pc.equal(table["status"], STATUS_OK))
        first = f"in the part that begins with {table['uri'][0]}"
        if any(
            not np.array_equal(np.asarray(pc.is_valid(table[name])), is_ok)
            for name in ("score", "logit", "verdict")
        ):
            problems.append(f"scores are missing or made up {first}")
        scores = table["score"].drop_null().to_numpy()
        # Written so that a score that is not a number is seen too.
        if not ((scores >= 0) & (scores <= 1)).all():
            problems.append(f"scores outside 0..1 {first}")
    return problems


def _frame_problems(room: Storage, ledger: Ledger) -> list[str]:
    problems = []
    for part, table in ledger.live_parts(["record_id", "status"]):
        num_rows, is_finite, records = 0, True, []
        uris = ledger.frames.get(part, ())
        for rows in read_frames_of(room, uris, columns=["record_id", "embedding"]):
            num_rows += len(rows)
            values = pc.list_flatten(rows["embedding"]).cast(pa.float32())
            is_finite &= bool(pc.all(pc.is_finite(values), min_count=0).as_py())
            records.append(rows["record_id"].unique())
        expected = read_metadata(table.schema).get(FRAMES_KEY, {}).get("num_rows", 0)
        if num_rows != expected:
            problems.append(f"{num_rows} frames of {part}, which speaks of {expected}")
        if not is_finite:
            problems.append(f"frames that are not finite of {part}")
        judged = table["record_id"].filter(pc.equal(table["status"], STATUS_OK))
        seen = pa.chunked_array(records, pa.string()).combine_chunks()
        if (
            num_missing := len(judged)
            - pc.sum(pc.is_in(judged, value_set=seen), min_count=0).as_py()
        ):
            problems.append(f"{num_missing} records of {part} without frames")
    return problems
