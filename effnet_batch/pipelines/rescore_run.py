"""What a run on stored frames has to do: live records of another output that this one lacks."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.errors import InputError
from effnet_batch.ledger import Ledger, ids_from_hex
from effnet_batch.manifest import replace_manifest
from effnet_batch.pipelines.run import Run
from effnet_batch.pipelines.verify import (
    check,
    load_forgotten,
    load_manifest,
    load_run,
    without_forgotten,
)
from effnet_batch.prefixes import RowsByPrefix, cut_passes
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import canonical_uri

_KEY: Final = pa.binary(20)
_PENDING_SCHEMA: Final = pa.schema({"part": pa.string(), "record": pa.string()})


class RescoreRun(Run):
    """A run whose input is an output with frames. Sources, versions and attempts are that one's.

    Attributes:
        stored: run.json of the input.
    """

    stored: dict[str, Any]

    def prepare(self, *, update: bool, retry: Sequence[str]) -> None:
        """Finds out what is to do: ``pending`` has a row per record, with its ``part``."""
        self.previous = self._load_previous(update=update)
        paths = OutputPaths(canonical_uri(self.input))
        self.stored = load_run(self.storage, paths)
        ledger = Ledger.scan(self.storage, paths.data)
        if not self.stored.get("frames") or not ledger.parts:
            raise InputError(
                f"{paths.root} holds no frames; `score --embeddings` or `embed --frames` store them"
            )
        manifest = load_manifest(self.storage, paths)
        report = check(manifest, ledger, self.stored)
        if not report.is_proven:
            self.reporter.warning(
                f"{paths.root} is not complete ({report.num_pending:,} sources pending, "
                f"{len(report.problems)} problems): finish it, then run this again"
            )
        self.manifest = without_forgotten(manifest, load_forgotten(self.storage, self.paths))
        replace_manifest(self.storage, self.paths.root, self.manifest.tables())
        self.ledger.refresh()
        self._set_aside_unreadable()
        self.pending = _pending_records(ledger, self.ledger, self.manifest)
        self.reporter.message(f"{report.num_records:,} records, {self.pending.num_rows:,} to do")

    def num_pending_records(self) -> int:
        """Returns how many records are to come."""
        return self.pending.num_rows


def cut_units(pending: pa.Table, first_unit: int) -> Iterator[pa.Table]:
    """Yields the pending records of every part, with their number in a column ``unit``."""
    pending = pending.sort_by("part")
    numbers = np.asarray(pending["part"].combine_chunks().dictionary_encode().indices)
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for unit, (start, stop) in enumerate(itertools.pairwise(starts), first_unit):
        rows = pending.slice(start, stop - start)
        yield rows.append_column("unit", pa.array(np.full(len(rows), unit, np.int32)))


def _pending_records(source: Ledger, done: Ledger, manifest: RowsByPrefix) -> RowsByPrefix:
    """Returns the live records of one ledger that another lacks in the same attempt.

    Returns:
        ``part``, its URI, and ``record``, its id in hex.
    """
    uris = np.array([part.uri for part in source.parts], object)
    pending = RowsByPrefix(_PENDING_SCHEMA, "record")
    for prefixes in cut_passes(source.rows, done.rows, manifest):
        found = source.read(prefixes)
        rows = found.rows.filter(pa.array(found.states.is_live))
        known = ids_from_hex(manifest.read(prefixes)["source_id"]).combine_chunks()
        is_wanted = pc.is_in(rows["source"], value_set=known)
        is_done = pc.is_in(_keys(rows), value_set=_keys(done.rows.read(prefixes)))
        rows = rows.filter(pc.and_(is_wanted, pc.invert(is_done)))
        records = pa.array([one.hex() for one in rows["record"].to_pylist()], pa.string())
        parts = pa.array(uris[np.asarray(rows["part"])], pa.string())
        pending.add(pa.table({"part": parts, "record": records}))
    return pending


def _keys(rows: pa.Table) -> pa.FixedSizeBinaryArray:
    """Returns record and attempt of every row as one value."""
    records = b"".join(rows["record"].to_pylist())
    keys = np.empty((rows.num_rows, 20), np.uint8)
    keys[:, :16] = np.frombuffer(records, np.uint8).reshape(-1, 16)
    keys[:, 16:] = np.asarray(rows["attempt"], np.int32).reshape(-1, 1).view(np.uint8)
    return pa.FixedSizeBinaryArray.from_buffers(_KEY, len(keys), [None, pa.py_buffer(keys)])
