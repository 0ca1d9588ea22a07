"""Keeping an output: what it holds, fewer parts, erased sources."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.errors import InputError, RecordError
from effnet_batch.ledger import Ledger, read_frames_of, reading
from effnet_batch.lock import OutputLock
from effnet_batch.manifest import read_manifest, replace_manifest
from effnet_batch.pipelines.run import new_run_id
from effnet_batch.pipelines.verify import (
    check,
    load_forgotten,
    load_manifest,
    load_run,
    without_forgotten,
)
from effnet_batch.schema import STATUS_OK, STATUSES, source_id
from effnet_batch.sink import FRAMES_KEY, OutputPaths, PartWriter, part_bytes, read_metadata
from effnet_batch.storage import Storage, StorageOptions, canonical_uri

_FAILURE_COLUMNS = ("status", "error_message", "uri", "member")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What `output_status` found."""

    output: str
    state: str
    counts: dict[str, Any]
    run: dict[str, Any]
    num_parts: int
    size_bytes: int
    failures: list[tuple[str, str, str, str]]
    """Status, error, URI and member of the first failed records."""

    def facts(self) -> dict[str, object]:
        """Returns what a person wants to know, in order."""
        statuses = self.counts["records_by_status"]
        seconds, records = self.run.get("seconds", 0), self.run["stages"].get("num_records", 0)
        return {
            "input": self.run["input"],
            "sources": self.counts["num_sources"],
            "  done": self.counts["num_done"],
            "  failed": self.counts["num_failed"],
            "  pending": self.counts["num_pending"],
            "records": self.counts["num_records"],
            **{f"  {name}": count for name, count in statuses.items()},
            "superseded rows": self.counts["num_superseded"] or None,
            "parts": self.num_parts,
            "size": f"{self.size_bytes:,} bytes",
            **_model_facts(self.run["resolved"]),
            "engine": " ".join(
                str(self.run["resolved"]["engine"][name])
                for name in ("engine", "precision", "device")
            ),
            "fingerprint": self.run["fingerprint"],
            "latest run": self.run["run_id"],
            "records/s": f"{records / seconds:.1f}" if seconds and records else None,
        }


def _model_facts(resolved: dict[str, Any]) -> dict[str, object]:
    """Returns what the numbers came from: a backbone, or checkpoints."""
    if "checkpoints" not in resolved:
        return {"model": f"{resolved['architecture']} ({resolved['weights']})"}
    return {"checkpoints": ", ".join(one["info"]["name"] for one in resolved["checkpoints"])}


def output_status(output: str, *, num_failures: int = 10, **storage: Any) -> Status:
    """Counts what an output holds.

    Args:
        output: folder of the output.
        num_failures: how many failed records to list.
        **storage: settings of `StorageOptions`.

    Raises:
        InputError: there is no output of ours at this place.
    """
    room = Storage(StorageOptions(**storage))
    paths = OutputPaths(canonical_uri(output))
    run = load_run(room, paths)
    ledger = Ledger.scan(room, paths.data)
    report = check(load_manifest(room, paths), ledger, run)
    return Status(
        output=paths.root,
        state=run["state"],
        counts=report.counts(),
        run=run,
        num_parts=len(ledger.parts),
        size_bytes=sum(part.size_bytes for part in ledger.parts),
        failures=list(itertools.islice(_failures(ledger), num_failures))
        if report.records_by_status.keys() - {STATUS_OK}
        else [],
    )


def _failures(ledger: Ledger) -> Iterator[tuple[str, str, str, str]]:
    failed = [name for name in STATUSES if name != STATUS_OK]
    for table in ledger.live(_FAILURE_COLUMNS, statuses=failed):
        for row in table.to_pylist():
            status, message, uri, member = (str(row[name] or "") for name in _FAILURE_COLUMNS)
            yield status, message, uri, member


def compact(output: str, *, part_bytes: int = 256 << 20, **storage: Any) -> tuple[int, int]:
    """Rewrites the live rows as fewer, larger parts; old parts are deleted only afterwards.

    Killed at any moment it leaves an output of the same live rows.

    Args:
        output: folder of the output.
        part_bytes: about how many bytes of rows, before compression, make a part; their frames
            count.
        **storage: settings of `StorageOptions`.

    Returns:
        The number of parts before and after.
    """
    room = Storage(StorageOptions(**storage))
    paths = OutputPaths(canonical_uri(output))
    run_id = new_run_id()
    load_run(room, paths)
    with OutputLock(room, paths.lock, run_id):
        ledger = Ledger.scan(room, paths.data)
        ledger.check_readable()
        old = [part.uri for part in ledger.parts]
        num_new = _rewrite(room, paths, run_id, ledger, part_bytes)
        # Of equal records the part of the smallest name is live, so it goes last.
        room.delete_many(sorted(old, reverse=True))
        _erase_orphans(room, paths)
    return len(old), num_new


def _rewrite(
    room: Storage, paths: OutputPaths, run_id: str, ledger: Ledger, part_bytes: int
) -> int:
    """Writes the live rows and their frames as new parts; returns how many."""
    num_new = 0
    writer: PartWriter | None = None
    for part, table in ledger.live_parts():
        if writer is None:
            metadata = {**read_metadata(table.schema), "run_id": run_id}
            metadata.pop(FRAMES_KEY, None)
            writer = PartWriter(
                room, paths, run_id, num_new, rows_per_part=sys.maxsize, metadata=metadata
            )
            num_new += 1
        records = table["record_id"].combine_chunks()
        frames = read_frames_of(room, ledger.frames.get(part, ()), records=records)
        writer.add(table, frames)
        if writer.num_bytes >= part_bytes:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return num_new


def _erase_orphans(room: Storage, paths: OutputPaths) -> None:
    """Deletes the frames that no part speaks of, which nobody reads."""
    if not (found := _files(room, paths.frames)):
        return
    ledger = Ledger.scan(room, paths.data)
    ledger.check_readable()
    owned = {uri for uris in ledger.frames.values() for uri in uris}
    room.delete_many([uri for uri in found if uri not in owned])


def forget(output: str, uri_list: str, **storage: Any) -> dict[str, int]:
    """Erases sources: their rows, their place in the manifest, and their way back.

    Only their ids stay, so that a later `--update` does not take them in again; an id does not
    give the URI away. Killed half-way, the same call finishes the work.

    Args:
        output: folder of the output.
        uri_list: local path or URL of a text file, one URI per line.
        **storage: settings of `StorageOptions`.

    Returns:
        Counts: sources asked for, erased from the manifest, rows erased, parts rewritten.
    """
    room = Storage(StorageOptions(**storage))
    paths = OutputPaths(canonical_uri(output))
    load_run(room, paths)
    uris = _listed(room, uri_list)
    ids = [source_id(uri) for uri in uris]
    with OutputLock(room, paths.lock, new_run_id()):
        ledger = Ledger.scan(room, paths.data)
        ledger.check_readable()
        known = set(load_forgotten(room, paths))
        room.write(paths.forgotten, json.dumps(sorted(known | set(ids))).encode())
        num_rows, num_parts = _erase_rows(room, ledger, pa.array(ids, pa.string()))
        _erase_orphans(room, paths)
        _erase_messages(room, paths, uris)
        _erase_leftovers(room, paths)
        manifest = read_manifest(room, paths.root)
        kept = without_forgotten(manifest, ids)
        # Also where nothing is left out: a manifest that was never finished goes with it.
        replace_manifest(room, paths.root, kept.tables())
    return {
        "sources asked for": len(ids),
        "sources erased": manifest.num_rows - kept.num_rows,
        "rows erased": num_rows,
        "parts rewritten": num_parts,
    }


def _listed(room: Storage, uri_list: str) -> list[str]:
    try:
        text = room.read(canonical_uri(uri_list)).decode()
    except RecordError as error:
        raise InputError(f"cannot read the list of URIs: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{uri_list} is not UTF-8 text: {error}") from error
    # Only line feeds end a line: names may hold the other characters that end one elsewhere.
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    return [canonical_uri(line) for line in lines if line and not line.startswith("#")]


def _erase_rows(room: Storage, ledger: Ledger, ids: pa.Array) -> tuple[int, int]:
    """Rewrites, under their own names, the parts that hold rows of these sources."""
    num_rows = num_parts = 0
    wanted = pa.array([bytes.fromhex(one) for one in ids.to_pylist()], pa.binary(16))
    hit: set[int] = set()
    for rows in ledger.rows.tables():
        is_hit = pc.is_in(rows["source"], value_set=wanted)
        hit.update(rows.filter(is_hit)["part"].unique().to_pylist())
    for uri in (ledger.parts[number].uri for number in sorted(hit)):
        with reading(uri):
            table = pq.read_table(pa.BufferReader(room.read(uri)))
        kept = table.filter(pc.invert(pc.is_in(table["source_id"], value_set=ids)))
        num_rows += len(table) - len(kept)
        num_parts += 1
        if not len(kept):
            room.delete_many([uri])  # and its frames are then orphans
            continue
        metadata = read_metadata(table.schema)
        if frames := ledger.frames.get(uri):
            num_frames = _erase_frames(room, frames, ids)
            metadata[FRAMES_KEY] = {"num_parts": len(frames), "num_rows": num_frames}
        room.write(uri, part_bytes(kept, metadata))
    return num_rows, num_parts


def _erase_frames(room: Storage, uris: Sequence[str], ids: pa.Array) -> int:
    """Rewrites frames without those of these sources; returns how many are left."""
    num_left = 0
    for uri in uris:
        with reading(uri):
            table = pq.read_table(pa.BufferReader(room.read(uri)))
        kept = table.filter(pc.invert(pc.is_in(table["source_id"], value_set=ids)))
        num_left += len(kept)
        room.write(uri, part_bytes(kept, read_metadata(table.schema)))
    return num_left


def _erase_messages(room: Storage, paths: OutputPaths, uris: list[str]) -> None:
    """Takes errors that name one of the sources out of the records of the runs.

    A damaged record goes as a whole: nobody can tell what it names.
    """
    for record_uri in [paths.run, *_files(room, paths.runs)]:
        try:
            record = json.loads(room.read(record_uri))
            error = str(record.get("error", ""))
        except (ValueError, AttributeError):
            room.delete_many([record_uri])
            continue
        if any(uri in error for uri in uris):
            record["error"] = "(erased)"
            room.write(record_uri, json.dumps(record, indent=2).encode())


def _erase_leftovers(room: Storage, paths: OutputPaths) -> None:
    """Deletes what nobody reads and what may hold anything: damaged parts, files never finished."""
    lock = paths.lock.rsplit("/", 1)[-1]
    unfinished = [
        uri for uri in _files(room, paths.tmp) if not uri.rsplit("/", 1)[-1].startswith(lock)
    ]
    room.delete_many([*_files(room, paths.quarantine), *unfinished])


def _files(room: Storage, folder: str) -> list[str]:
    return [info.uri for page in room.list(folder) for info in page]


def stored_run(output: str, **storage: Any) -> dict[str, Any]:
    """Returns run.json of an output.

    Raises:
        InputError: there is no output of ours at this place.
    """
    return load_run(Storage(StorageOptions(**storage)), OutputPaths(canonical_uri(output)))
