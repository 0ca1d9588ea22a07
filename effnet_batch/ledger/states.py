"""Which rows of a ledger are live, and what that says of every source."""

import dataclasses
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.schema import STATUSES, TRANSIENT_STATUSES

_TRANSIENT: Final = pa.array([STATUSES.index(name) for name in TRANSIENT_STATUSES], pa.int8())


@dataclasses.dataclass(frozen=True)
class SourceStates:
    """What the ledger knows of every source it has seen, one row each."""

    table: pa.Table
    """source (16 bytes); of its live attempt: attempt, is_complete, is_transient, version,
    num_records; of its highest attempt: last_attempt, last_version."""
    is_live: np.ndarray
    """bool, one per ledger row: whether readers see the row."""


def group_states(rows: pa.Table, part_order: np.ndarray) -> SourceStates:
    """Returns the state of every source, and which rows are live.

    Args:
        rows: of `ROWS_SCHEMA`.
        part_order: int [number of parts], the rank of every part's name.
    """
    # Most sources have one row, and grouping a million of them costs seconds and half a gigabyte.
    is_repeated = find_repeated(rows["source"])
    if not is_repeated.any():
        return SourceStates(_states_of_single_rows(rows), ~is_repeated)
    single = _states_of_single_rows(rows.filter(pa.array(~is_repeated)))
    grouped = _states_of_groups(rows.filter(pa.array(is_repeated)), part_order)
    is_live = ~is_repeated
    is_live[is_repeated] = grouped.is_live
    table = grouped.table.select(single.column_names).cast(single.schema)
    return SourceStates(pa.concat_tables([single, table]), is_live)


def _states_of_single_rows(rows: pa.Table) -> pa.Table:
    """Returns the states of sources of which there is one row each."""
    return pa.table(
        {
            "source": rows["source"],
            "attempt": rows["attempt"],
            "is_complete": pc.fill_null(pc.equal(rows["need"], 1), False),
            "is_transient": pc.is_in(rows["status"], _TRANSIENT),
            "version": rows["version"],
            "num_records": pa.array(np.ones(rows.num_rows, np.int64)),
            "last_attempt": rows["attempt"],
            "last_version": rows["version"],
        }
    )


def _states_of_groups(rows: pa.Table, part_order: np.ndarray) -> SourceStates:
    parts = np.asarray(rows["part"])
    # Rank by (name of part, place in part): the first of equal records is the live one.
    rank = np.empty(len(parts), np.int64)
    rank[np.lexsort((np.arange(len(parts)), part_order[parts]))] = np.arange(len(parts))
    rows = rows.append_column("rank", pa.array(rank)).append_column(
        "is_transient", pc.is_in(rows["status"], _TRANSIENT)
    )
    firsts = rows.group_by(["source", "attempt", "record"], use_threads=False).aggregate(
        [("rank", "min")]
    )
    first = np.zeros(len(parts), bool)
    first[np.asarray(firsts["rank_min"])] = True
    is_first = first[rank]
    attempts = (
        rows.filter(pa.array(is_first))
        .group_by(["source", "attempt"], use_threads=False)
        .aggregate(
            [([], "count_all"), ("need", "max"), ("is_transient", "any"), ("version", "max")]
        )
    )
    is_complete = pc.fill_null(pc.equal(attempts["count_all"], attempts["need_max"]), False)
    attempts = pa.table(
        {
            "source": attempts["source"],
            "attempt": attempts["attempt"],
            "is_complete": is_complete,
            "is_transient": attempts["is_transient_any"],
            "version": attempts["version_max"],
            "num_records": attempts["count_all"],
            # Complete attempts stand above all others, then the higher number wins.
            "order": pc.add(
                attempts["attempt"].cast(pa.int64()),
                pc.multiply(is_complete.cast(pa.int64()), 1 << 32),
            ),
        }
    )
    best = attempts.group_by("source", use_threads=False).aggregate(
        [("order", "max"), ("attempt", "max")]
    )
    if best.num_rows == attempts.num_rows:  # one attempt each, the usual case
        table = attempts.append_column("last_attempt", attempts["attempt"])
        table = table.append_column("last_version", attempts["version"])
        return SourceStates(table.drop_columns(["order"]), is_first)
    best = best.rename_columns({"order_max": "order", "attempt_max": "last_attempt"})
    last = attempts.select(["source", "attempt", "version"]).rename_columns(
        ["source", "last_attempt", "last_version"]
    )
    table = attempts.join(best, ["source", "order"], join_type="inner", use_threads=False)
    table = table.join(last, ["source", "last_attempt"], join_type="inner", use_threads=False)
    live = table.select(["source", "attempt"]).append_column(
        "is_live", pa.array(np.ones(table.num_rows, bool))
    )
    marked = rows.select(["source", "attempt", "rank"]).join(
        live, ["source", "attempt"], use_threads=False
    )
    by_rank = np.asarray(pc.fill_null(marked.sort_by("rank")["is_live"], False))
    is_live = by_rank[rank] & is_first
    return SourceStates(table.drop_columns(["order"]), is_live)


def find_repeated(ids: pa.ChunkedArray) -> np.ndarray:
    """Returns which ids (16 bytes) stand more than once, as bool [N].

    Only the first 8 bytes are looked at: other ids that agree in them count as repeated too.
    """
    heads = [
        np.frombuffer(chunk.buffers()[1], np.uint64)[2 * chunk.offset :: 2][: len(chunk)]
        for chunk in ids.chunks
        if len(chunk)
    ]
    flat = np.concatenate([*heads, np.empty(0, np.uint64)])
    order = np.argsort(flat)
    is_same = np.diff(flat[order]) == 0
    is_repeated = np.zeros(len(flat), bool)
    is_repeated[order[1:][is_same]] = True
    is_repeated[order[:-1][is_same]] = True
    return is_repeated
