"""The driver's memory for millions of sources: gone over in one pass, and in several.

    python benchmarks/driver_memory.py

Made by rule: a bucket that lists --sources keys, their manifest, and committed parts of 5,000
records for nine tenths of them; no images, no vectors, no model. Measured, each in a process of
its own that names its peak resident set: ``list`` (list the bucket, write the manifest),
``update`` (the same, joined with the manifest that is there), ``pending`` (read manifest and
ledger, find what is to do) and ``verify``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from effnet_batch import prefixes
from effnet_batch.ledger import Ledger
from effnet_batch.manifest import build_manifest, read_manifest, write_manifest
from effnet_batch.pipelines.pending import find_pending
from effnet_batch.pipelines.verify import verify
from effnet_batch.schema import embeddings_schema, record_id, source_id
from effnet_batch.sink import OutputPaths, commit_part
from effnet_batch.storage import ObjectInfo, Storage

ROWS_PER_PART = 5_000
KEYS_PER_PAGE = 1_000
RUN = {"job": "embed", "input": "s3://synthetic/", "fingerprint": "f", "state": "stopped"}
MEASURES = ("nothing", "list", "update", "pending", "verify")


class Bucket(Storage):
    """This machine's disk, and a bucket that lists any number of keys."""

    def __init__(self, num_keys: int) -> None:
        super().__init__()
        self._num_keys = num_keys

    def list(self, uri: str, *, recursive: bool = True) -> Iterator[list[ObjectInfo]]:
        if not uri.startswith("s3://"):
            yield from super().list(uri, recursive=recursive)
            return
        for start in range(0, self._num_keys, KEYS_PER_PAGE):
            stop = min(start + KEYS_PER_PAGE, self._num_keys)
            yield [
                ObjectInfo(
                    uri_of(number),
                    size_bytes=50_000 + number % 1_000,
                    etag=etag_of(number),
                    mtime=datetime(2026, 1, 1, tzinfo=UTC),
                )
                for number in range(start, stop)
            ]


def uri_of(number: int) -> str:
    return f"s3://synthetic/photos/{number // 10_000:05}/{number:010}.jpg"


def etag_of(number: int) -> str:
    return f"{number * 2654435761 % (1 << 128):032x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sources", type=int, default=3_000_000)
    parser.add_argument("--rows-per-pass", type=int, default=1_000_000)
    parser.add_argument("--folder", help="for some 300 bytes a source; default: the system's")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options)
        return
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as folder:
        one, several = options.sources, options.rows_per_pass
        print(f"| {options.sources:,} sources | one pass: s | MB | passes of {several:,}: s | MB |")
        print("|---|--:|--:|--:|--:|", flush=True)
        for name in MEASURES:
            if name == "update":
                _commit(folder, options.sources)
            found = [_run(name, folder, options.sources, size) for size in (one, several)]
            cells = (f"{seconds:.1f} | {peak / 1e6:.0f}" for seconds, peak in found)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _run(name: str, folder: str, num_sources: int, rows_per_pass: int) -> tuple[float, int]:
    arguments = [f"--measure={name}", f"--folder={folder}", f"--sources={num_sources}"]
    command = [sys.executable, __file__, *arguments, f"--rows-per-pass={rows_per_pass}"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found["seconds"], found["peak_bytes"]


def _measure(options: argparse.Namespace) -> None:
    prefixes.ROWS_PER_PASS = options.rows_per_pass
    tempfile.tempdir = options.folder
    storage, root = Bucket(options.sources), f"{options.folder}/output"
    started = time.perf_counter()
    if options.measure in ("list", "update"):
        listed = build_manifest("s3://synthetic/photos/", storage)
        write_manifest(storage, root, listed, update=options.measure == "update")
    elif options.measure == "pending":
        ledger = Ledger.scan(storage, OutputPaths(root).data)
        pending = find_pending(read_manifest(storage, root), ledger)
        assert pending.num_rows == options.sources - _num_committed(options.sources)
    elif options.measure == "verify":
        report = verify(root)
        assert (report.num_sources, report.problems) == (options.sources, ())
        assert report.num_done == _num_committed(options.sources)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) << 10
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def _num_committed(num_sources: int) -> int:
    return num_sources * 9 // 10 // ROWS_PER_PART * ROWS_PER_PART


def _commit(folder: str, num_sources: int) -> None:
    """Writes run.json and the parts, as if a run had been stopped."""
    storage, paths, schema = Storage(), OutputPaths(f"{folder}/output"), embeddings_schema()
    storage.write(paths.run, json.dumps(RUN).encode())
    for part, start in enumerate(range(0, _num_committed(num_sources), ROWS_PER_PART)):
        numbers = range(start, start + ROWS_PER_PART)
        uris = [uri_of(number) for number in numbers]
        known = {
            "uri": uris,
            "source_id": [source_id(uri) for uri in uris],
            "record_id": [record_id(uri, None, 0) for uri in uris],
            "source_version": [etag_of(number) for number in numbers],
            "attempt": [1] * ROWS_PER_PART,
            "status": ["ok"] * ROWS_PER_PART,
            "num_source_records": [1] * ROWS_PER_PART,
            "run_id": ["20260101T000000-bench0"] * ROWS_PER_PART,
            "fingerprint": [RUN["fingerprint"]] * ROWS_PER_PART,
        }
        columns = [known.get(field.name, pa.nulls(ROWS_PER_PART, field.type)) for field in schema]
        table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
        uri = paths.part("20260101T000000-bench0", part)
        commit_part(storage, uri, table, {"fingerprint": RUN["fingerprint"]})


if __name__ == "__main__":
    main()
