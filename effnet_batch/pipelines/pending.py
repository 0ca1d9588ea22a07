"""What is still to do: the manifest without what the ledger shows as done, cut into units.

A unit is what one task reads; its parts are named after it. Units are cut by counts and sizes of
the manifest, the number of actors and the model's batch size, when a run starts, so that they do
not depend on timing.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.ledger import Ledger, LedgerPass, ids_from_hex
from effnet_batch.manifest import fetch_uris, source_version
from effnet_batch.prefixes import RowsByPrefix, cut_passes
from effnet_batch.schema import KIND_IMAGE, KIND_VIDEO, MANIFEST_SCHEMA, MEDIA
from effnet_batch.storage import Storage

_BYTES_PER_MEMBER: Final = {KIND_IMAGE: 100_000, KIND_VIDEO: 5_000_000}
"""A guess that only balances units: how large a member of a shard is."""

_MANIFEST_COLUMNS: Final = (
    "uri", "source_id", "kind", "size_bytes", "etag", "label", "group", "split", "is_signed",
)  # fmt: skip
PENDING_SCHEMA: Final = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in _MANIFEST_COLUMNS),
        pa.field("source_version", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("skip", pa.list_(pa.string())),
    ]
)
"""The columns of `stages.read.Source` but ``fetch_uri``, and ``is_signed``."""


def find_pending(manifest: RowsByPrefix, ledger: Ledger, retry: Sequence[str] = ()) -> RowsByPrefix:
    """Returns the sources that are not done, of `PENDING_SCHEMA`.

    Args:
        manifest: every source, of `schema.MANIFEST_SCHEMA`.
        ledger: what is committed.
        retry: statuses whose sources are to be done again although they are done.
    """
    pending = RowsByPrefix(PENDING_SCHEMA)
    for prefixes in cut_passes(manifest, ledger.rows):
        found = ledger.read(prefixes)
        redo = found.sources_with_status(retry) if retry else None
        pending.add(pending_sources(manifest.read(prefixes), found, redo=redo))
    return pending


def pending_sources(
    manifest: pa.Table, ledger: LedgerPass, *, redo: pa.Array | None = None
) -> pa.Table:
    """Returns the sources of one pass that are not done, of `PENDING_SCHEMA`.

    A source of unchanged version whose highest attempt is half done goes on in that attempt without
    the records that are committed; any other pending source gets a new attempt.

    Args:
        manifest: the sources of the pass, of `schema.MANIFEST_SCHEMA`.
        ledger: what is committed of them.
        redo: ids (16 bytes) of sources to do again although they are done.
    """
    states = ledger.states.table
    ids = ids_from_hex(manifest["source_id"])
    place = pc.index_in(ids, value_set=states["source"].combine_chunks())
    is_known = np.asarray(pc.is_valid(place))
    place = pc.fill_null(place, 0)
    versions = states.select(["version", "last_version"])
    states = states.select(["is_complete", "is_transient", "attempt", "last_attempt"])
    at = states.take(place) if states.num_rows else None
    version = source_version(manifest)
    attempt = np.ones(manifest.num_rows, np.int32)
    is_done = np.zeros(manifest.num_rows, bool)
    is_continued = np.zeros(manifest.num_rows, bool)
    skip: dict[str, list[str]] = {}
    if at is not None:
        is_redone = np.zeros(manifest.num_rows, bool)
        if redo is not None:
            is_redone = np.asarray(pc.is_in(ids, value_set=redo))
        is_complete = np.asarray(at["is_complete"])
        is_done = (
            is_known
            & is_complete
            & ~np.asarray(at["is_transient"])
            & _same(version, versions["version"].take(place))
            & ~is_redone
        )
        last = np.asarray(at["last_attempt"])
        is_last_live = last == np.asarray(at["attempt"])
        is_continued = (
            is_known & ~is_done & ~(is_complete & is_last_live) & ~(is_redone & is_last_live)
        )
        if is_continued.any():
            is_continued &= _same(version, versions["last_version"].take(place))
            skip, overfull = _committed_records(ledger.rows, ids.filter(pa.array(is_continued)))
            is_continued &= ~np.asarray(pc.is_in(ids, value_set=overfull))
        attempt = np.where(is_known, np.where(is_continued, last, last + 1), 1).astype(np.int32)
    keep = pa.array(~is_done)
    pending = manifest.select(_MANIFEST_COLUMNS)
    pending = pending.append_column("source_version", version)
    pending = pending.append_column("attempt", pa.array(attempt)).filter(keep)
    lists = pa.array(
        [skip.get(key) for key in pending["source_id"].to_pylist()]
        if skip
        else [None] * len(pending),
        pa.list_(pa.string()),
    )
    return pending.append_column("skip", lists).cast(PENDING_SCHEMA)


def fresh_sources(manifest: pa.Table) -> pa.Table:
    """Returns sources of a manifest as they are before any work, of `PENDING_SCHEMA`."""
    rows = manifest.num_rows
    columns = {
        "source_version": source_version(manifest),
        "attempt": pa.array(np.ones(rows, np.int32)),
        "skip": pa.nulls(rows, pa.list_(pa.string())),
    }
    pending = manifest.select(_MANIFEST_COLUMNS)
    for name, column in columns.items():
        pending = pending.append_column(name, column)
    return pending.cast(PENDING_SCHEMA)


def _same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray:
    """Returns where two versions agree; an unknown version agrees with any."""
    return np.asarray(pc.fill_null(pc.equal(left, right), True))


def _committed_records(
    rows: pa.Table, sources: pa.ChunkedArray
) -> tuple[dict[str, list[str]], pa.Array]:
    """Returns what the highest attempt of some half-done sources has.

    Returns:
        Record ids in hex by source id in hex, and the ids (16 bytes) of sources that have more
        records than their last one says. No further record completes those; it happens when a
        shard could not be opened again after a part of it had been committed.
    """
    rows = rows.filter(pc.is_in(rows["source"], value_set=sources.combine_chunks()))
    last = rows.group_by("source").aggregate([("attempt", "max")])
    wanted = dict(zip(last["source"].to_pylist(), last["attempt_max"].to_pylist(), strict=True))
    found: dict[bytes, dict[str, None]] = collections.defaultdict(dict)
    needs: dict[bytes, int] = {}
    columns = (rows[name].to_pylist() for name in ("source", "record", "attempt", "need"))
    for source, record, attempt, need in zip(*columns, strict=True):
        if attempt == wanted[source]:
            found[source][record.hex()] = None
            if need is not None:
                needs[source] = max(need, needs.get(source, 0))
    overfull = {source for source, need in needs.items() if len(found[source]) > need}
    skip = {s.hex(): list(records) for s, records in found.items() if s not in overfull}
    return skip, pa.array(sorted(overfull), pa.binary(16))


def with_fetch_uris(pending: pa.Table, input: str, storage: Storage, medium: str) -> pa.Table:
    """Returns pending sources with the column ``fetch_uri``: the signed URL of those that have one.

    Signatures are secrets, which wait in no file: they are joined to a pass when its turn comes.

    Args:
        pending: of `PENDING_SCHEMA`.
        input: what the sources were listed from.
        storage: how it is reached.
        medium: what was listed.

    Raises:
        InputError: the input does not have the URL of a signed source any more.
    """
    signed = fetch_uris(pending, input, storage, medium=medium)
    ids = pending["source_id"].to_pylist() if signed else []
    urls = [signed.get(key) for key in ids] or [None] * pending.num_rows
    return pending.append_column("fetch_uri", pa.array(urls, pa.string()))


@dataclasses.dataclass(frozen=True)
class Taper:
    """Makes the last units of a pass smaller, so that the actors end at nearly the same time."""

    num_actors: int
    min_rows: int
    """What is smaller than this costs more than it evens out."""
    multiple_of: int = 1
    """Units have a multiple of so many rows, such as whole batches, beside the last one."""

    def bound(self, num_left: int) -> int:
        """Returns the most rows of the next unit: half of what each actor has left to do."""
        half = -(-num_left // (2 * self.num_actors))
        return round_up(max(self.min_rows, half), self.multiple_of)


def round_up(number: int, multiple_of: int) -> int:
    """Returns the smallest multiple that is no less."""
    return -(-number // multiple_of) * multiple_of


def cut_units(
    pending: pa.Table,
    rows_per_part: int,
    medium: str = KIND_IMAGE,
    *,
    first_unit: int = 0,
    taper: Taper | None = None,
) -> Iterator[pa.Table]:
    """Yields slices of the pending sources with their number in a column ``unit``.

    A unit has at most ``rows_per_part`` plain images or videos; a shard counts as many as its size
    suggests.

    Args:
        pending: from `pending_sources`.
        rows_per_part: bound on a unit.
        medium: what the members of shards are.
        first_unit: number of the first unit.
        taper: bounds the last units further; None leaves them as large as the others.
    """
    is_plain = np.asarray(pc.is_in(pending["kind"], value_set=pa.array(MEDIA)))
    sizes = np.asarray(pc.fill_null(pending["size_bytes"], 0))
    weights = np.where(is_plain, 1, np.maximum(1, sizes // _BYTES_PER_MEMBER[medium]))
    start, weight, unit = 0, 0, first_unit
    left = int(weights.sum())
    bound = min(rows_per_part, taper.bound(left)) if taper else rows_per_part
    for row in range(pending.num_rows + 1):
        is_end = row == pending.num_rows
        if row > start and (is_end or weight + weights[row] > bound):
            part = pending.slice(start, row - start)
            yield part.append_column("unit", pa.array(np.full(len(part), unit, np.int32)))
            start, left, weight, unit = row, left - weight, 0, unit + 1
            bound = min(rows_per_part, taper.bound(left)) if taper else rows_per_part
        if not is_end:
            weight += int(weights[row])


def first_uri(pending: RowsByPrefix) -> str | None:
    """Returns the URI of something that workers will read, to find out whether they can.

    Args:
        pending: sources, or records of which only the ``part`` is read.

    Returns:
        None where nothing is pending, or the first source is fetched by a presigned URL.
    """
    for table in filter(len, pending.tables()):
        (first,) = table.slice(0, 1).to_pylist()
        return None if first.get("is_signed") else str(first.get("uri", first.get("part")))
    return None
