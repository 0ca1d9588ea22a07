"""Keeping a manifest: written as a whole or not at all, read, updated, sampled."""

import contextlib
import dataclasses
import hashlib
import io
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch import schema
from effnet_batch.errors import FetchError, InputError
from effnet_batch.manifest.columns import METADATA_KEY
from effnet_batch.prefixes import RowsByPrefix, cut_passes
from effnet_batch.storage import Storage, discarding_empty, join, redact

_FOLDER: Final = "manifest"
_MARKER: Final = "_complete.json"
_ROWS_PER_PART: Final = 1_000_000
_ROWS_PER_GROUP: Final = 131_072
_MAX_VANISHED: Final = 10
# Ids and tags never repeat, so a dictionary of them only costs.
_DICTIONARY_COLUMNS: Final = ["kind", "label", "group", "split"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestSummary:
    """What a manifest holds and what its listing left out."""

    num_sources: int
    num_by_kind: dict[str, int]
    num_signed: int
    """Sources whose URL had a signature."""
    num_skipped_by_extension: dict[str, int]
    """Files that are neither shards nor of the medium; lower-case extensions with their dot."""
    num_bad_lines: int
    """Entries of the list that were refused and left out."""
    medium: str
    """What it was listed for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestUpdate:
    """What bringing a manifest up to date changed."""

    num_added: int
    num_changed: int
    """Sources whose etag, size or mtime is another one."""
    num_vanished: int
    """Sources that are not listed any more; they stay in the manifest."""
    vanished: tuple[str, ...]
    """URIs of the first ten of them."""


def summarize(sources: RowsByPrefix) -> ManifestSummary:
    """Returns what a manifest holds and what its listing left out."""
    notes: dict[str, Any] = json.loads((sources.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    kinds: Counter[str] = Counter()
    num_signed = 0
    for table in sources.tables():
        found = table["kind"].value_counts().to_pylist()
        kinds.update({row["values"]: row["counts"] for row in found})
        num_signed += pc.sum(table["is_signed"].cast(pa.int64())).as_py() or 0
    return ManifestSummary(
        num_sources=sources.num_rows,
        num_by_kind={kind: kinds[kind] for kind in schema.KINDS if kind in kinds},
        num_signed=num_signed,
        num_skipped_by_extension=notes.get("num_skipped_by_extension", {}),
        num_bad_lines=notes.get("num_bad_lines", 0),
        medium=notes.get("medium", schema.KIND_IMAGE),
    )


def source_version(table: pa.Table) -> pa.ChunkedArray:
    """Returns each source's version: its etag, else mtime in microseconds and size, else null."""
    version = table["etag"]
    if version.null_count:
        mtime = table["mtime"].cast(pa.int64()).cast(pa.string())
        size = table["size_bytes"].cast(pa.string())
        return pc.coalesce(version, pc.binary_join_element_wise(mtime, size, "-"))
    return version


def select_sources(
    sources: RowsByPrefix,
    *,
    is_distinct: bool = True,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> RowsByPrefix:
    """Returns some of a manifest's sources, each once.

    Needs a few bytes of memory for every source, whatever their number.

    Args:
        sources: a manifest.
        is_distinct: every source stands there once; else the first row of each is taken.
        limit: keep the first ``limit`` of what is left after sampling.
        sample: keep this many at random. Sources are ranked by a hash of seed and source_id, so
            the same seed gives the same sources in any order of listing, and a smaller sample is
            part of a larger one.
        seed: which ranking.

    Raises:
        InputError: a source stands there several times with different labels or splits.
    """
    if is_distinct and limit is None and sample is None:
        return sources
    is_kept = np.full(sources.num_rows, is_distinct)
    ranks = np.zeros(0 if sample is None else sources.num_rows, np.uint64)
    passes = cut_passes(sources)
    for prefixes in passes:
        table, numbers = sources.read_numbered(prefixes)
        if not is_distinct:
            first = _first_rows(table)
            if len(first) < table.num_rows:
                _check_agrees(table)
            is_kept[numbers[first]] = True
        if sample is not None:
            ranks[numbers] = _ranks(table, seed)
    kept = np.flatnonzero(is_kept)
    if sample is not None and sample < len(kept):
        kept = np.sort(kept[np.argsort(ranks[kept], kind="stable")[:sample]])
    kept = kept[:limit]
    if len(kept) == sources.num_rows:
        return sources
    is_kept[:] = False
    is_kept[kept] = True
    selected = RowsByPrefix(sources.schema)
    for prefixes in passes:
        table, numbers = sources.read_numbered(prefixes)
        selected.add(table.filter(pa.array(is_kept[numbers])))
    return selected


def _first_rows(table: pa.Table) -> np.ndarray:
    """Returns where each source stands first."""
    rows = pa.table({"source_id": table["source_id"], "row": np.arange(table.num_rows)})
    return np.asarray(rows.group_by("source_id").aggregate([("row", "min")])["row_min"])


def _check_agrees(table: pa.Table) -> None:
    """Refuses a source of which two things are said: one of them would be lost."""
    for name in ("label", "split"):
        counts = table.group_by("source_id").aggregate([(name, "count_distinct")])
        several = counts.filter(pc.greater(counts[f"{name}_count_distinct"], 1))
        if several.num_rows:
            rows = table.filter(pc.equal(table["source_id"], several["source_id"][0]))
            said = sorted({text for text in rows[name].to_pylist() if text is not None})
            raise InputError(
                f"{several.num_rows:,} sources are listed with more than one {name}, such as "
                f"{redact(rows['uri'][0].as_py())} with {' and '.join(said)}; list each once"
            )


def _ranks(table: pa.Table, seed: int) -> np.ndarray:
    """Returns a number for every source that only it and the seed determine, as uint64."""
    ranks = np.empty(table.num_rows, np.uint64)
    position = 0
    for chunk in table["source_id"].chunks:
        for source in chunk.to_pylist():
            digest = hashlib.blake2b(f"{seed}:{source}".encode(), digest_size=8).digest()
            ranks[position] = int.from_bytes(digest)
            position += 1
    return ranks


def _update_pass(old: pa.Table, new: pa.Table) -> tuple[pa.Table, ManifestUpdate]:
    """Brings the sources of a pass up to date with their new listing, see `write_manifest`."""
    if not old.num_rows:  # the usual case, which need not copy a large manifest
        return new, ManifestUpdate(
            num_added=new.num_rows, num_changed=0, num_vanished=0, vanished=()
        )
    in_new = pc.index_in(old["source_id"], pa.array(new["source_id"].combine_chunks()))
    is_listed = in_new.is_valid().to_numpy()
    at_new = in_new.fill_null(0).to_numpy().astype(np.int64)
    is_added = ~pc.is_in(new["source_id"], old["source_id"].combine_chunks()).to_numpy()
    # Row numbers in (new, old), one table below the other.
    kept = np.where(is_listed, at_new, new.num_rows + np.arange(old.num_rows))
    both = pa.concat_tables([new, old.replace_schema_metadata(new.schema.metadata)])
    table = both.take(np.concatenate([kept, np.flatnonzero(is_added)]))
    before = source_version(old).filter(pa.array(is_listed))
    after = source_version(new).take(pa.array(at_new[is_listed]))
    vanished = old["uri"].filter(pa.array(~is_listed))
    return table, ManifestUpdate(
        num_added=int(is_added.sum()),
        num_changed=pc.sum(pc.not_equal(before, after).cast(pa.int64())).as_py() or 0,
        num_vanished=len(vanished),
        vanished=tuple(vanished.slice(0, _MAX_VANISHED).to_pylist()),
    )


def check_savable(storage: Storage, uri: str) -> None:
    """Checks that `save_manifest` can write there, before a listing that may take long.

    Raises:
        InputError: ``uri`` does not end in ``.parquet``, so it would not be known as a manifest.
        StorageError: its folder cannot be written into.
    """
    if not uri.lower().endswith(".parquet"):
        raise InputError(f"{uri}: a manifest's name must end in .parquet")
    folder = uri.rpartition("/")[0] or "/"
    with discarding_empty(folder):
        storage.check_writable(folder)


def save_manifest(storage: Storage, uri: str, sources: RowsByPrefix) -> None:
    """Writes a manifest as one Parquet file that can be the input of any job."""
    storage.write(uri, _encode(sources.schema, sources.tables()))


def write_manifest(
    storage: Storage, output: str, sources: RowsByPrefix, *, update: bool = False
) -> ManifestUpdate:
    """Writes the manifest of an output and returns what that changed.

    Args:
        storage: how ``output`` is reached.
        output: canonical URI of the output.
        sources: the manifest.
        update: bring the manifest that is there up to date, instead of replacing it. Sources keep
            their place in it; new ones follow at the end; those that are not listed any more stay.
    """
    old = RowsByPrefix(sources.schema)
    if update:
        # A damaged one counts as none: what is done stands in the parts.
        with contextlib.suppress(InputError):
            old = read_manifest(storage, output)
    changes: list[ManifestUpdate] = []

    def updated() -> Iterator[pa.Table]:
        for prefixes in cut_passes(old, sources):
            table, change = _update_pass(old.read(prefixes), sources.read(prefixes))
            changes.append(change)
            yield table

    replace_manifest(storage, output, updated())
    return ManifestUpdate(
        num_added=sum(change.num_added for change in changes),
        num_changed=sum(change.num_changed for change in changes),
        num_vanished=sum(change.num_vanished for change in changes),
        vanished=tuple(uri for change in changes for uri in change.vanished)[:_MAX_VANISHED],
    )


def replace_manifest(storage: Storage, output: str, tables: Iterable[pa.Table]) -> None:
    """Replaces the manifest of an output: readers see the old one or the new one.

    Parts of at most a million rows come first under new names, then the marker that names them
    replaces the old marker, then the old parts go, and those of a manifest never finished.

    Args:
        storage: how ``output`` is reached.
        output: canonical URI of the output.
        tables: the manifest, a pass at a time; at least one.
    """
    folder = join(output, _FOLDER)
    version = secrets.token_hex(4)
    names: list[str] = []
    num_sources = 0
    for table in tables:
        for start in range(0, max(table.num_rows, 1), _ROWS_PER_PART):
            names.append(f"part-{version}-{len(names):05}.parquet")
            part = table.slice(start, _ROWS_PER_PART)
            storage.write(join(folder, names[-1]), _encode(table.schema, [part]))
        num_sources += table.num_rows
    marker = {"version": 1, "num_sources": num_sources, "parts": names}
    storage.write(join(folder, _MARKER), json.dumps(marker, indent=1).encode())
    kept = {join(folder, name) for name in (*names, _MARKER)}
    found = [info.uri for page in storage.list(folder) for info in page]
    storage.delete_many([uri for uri in found if uri not in kept])


def has_manifest(storage: Storage, output: str) -> bool:
    """Returns whether an output has a complete manifest."""
    return _marker(storage, join(output, _FOLDER)) is not None


def read_manifest(storage: Storage, output: str) -> RowsByPrefix:
    """Returns the manifest of an output.

    Raises:
        InputError: the output has no complete manifest, or it is damaged.
        OutageError: storage refused.
    """
    folder = join(output, _FOLDER)
    names = _marker(storage, folder)
    if names is None:
        raise InputError(f"{folder}: no complete manifest; run the job with its input again")
    sources = RowsByPrefix(schema.MANIFEST_SCHEMA)
    try:
        for name in names:
            part = pq.ParquetFile(pa.BufferReader(storage.read(join(folder, name))))
            sources.schema = sources.schema.with_metadata(part.schema_arrow.metadata)
            for group in range(part.num_row_groups):
                # Threads would hold several row groups twice, unpacked and decoded.
                table = part.read_row_group(group, use_threads=False)
                sources.add(table.select(sources.schema.names).cast(sources.schema))
    # pyarrow says OSError where the bytes themselves are damaged.
    except (FetchError, pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder}: the manifest is damaged: {error}; run the job with --update"
        ) from None
    return sources


def _marker(storage: Storage, folder: str) -> Sequence[str] | None:
    """Returns the names of the parts of the complete manifest, or None."""
    uri = join(folder, _MARKER)
    try:
        marker = json.loads(storage.read(uri))
        return [str(name) for name in marker["parts"]]
    except FetchError as error:
        if error.error_type != "FileNotFoundError":
            raise InputError(str(error)) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri}: damaged: {error}; run the job with --update") from None


def _encode(columns: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, columns, compression="zstd", use_dictionary=_DICTIONARY_COLUMNS
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
    return buffer.getvalue()
