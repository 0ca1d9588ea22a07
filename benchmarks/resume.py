"""Starting again on an output of a million records: what finding out that all is done costs.

    python benchmarks/resume.py

On a real S3 server (SeaweedFS, from the package index) lies an output of 1,000,000 committed
records in 5,000 parts, each with vectors of 1,280 floats. Measured is what `embed` needs when
nothing is left to do, and when one image is, against the same on an output of one record.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from images import write_images
from process_tree import Cost, measure

from effnet_batch.manifest import read_manifest, replace_manifest
from effnet_batch.schema import MANIFEST_SCHEMA, embeddings_schema, record_id, source_id
from effnet_batch.sink import OutputPaths, commit_part
from effnet_batch.storage import Storage

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from s3_server import S3Server  # noqa: E402

EMBEDDING_DIM = 1_280
PUT_THREADS = 4


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with S3Server(folder / "s3") as server:
            _measure(server, folder, options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rows-per-part", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="for the server's data, some 7 GB; default: the system's")
    return parser.parse_args()


def _measure(server: S3Server, folder: Path, options: argparse.Namespace) -> None:
    os.environ.update(server.env)
    images, output = f"s3://{server.bucket}/images/", f"s3://{server.bucket}/output"
    write_images(folder / "images", options.repeats + 1, width=500, height=375)
    files = sorted((folder / "images").iterdir())
    server.put_files("images/", files[:1])

    def embed(output: str) -> Cost:
        program = str(Path(sys.executable).parent / "effnet-batch")
        command = [program, "embed", images, output, "--model", "efficientnet_lite0"]
        return measure(command, log=folder / "log")

    one_image, nothing = [], []
    for repeat in range(options.repeats):
        small = f"s3://{server.bucket}/small-{repeat}"
        one_image.append(embed(small))
        nothing.append(embed(small))
    embed(output)
    started = time.perf_counter()
    _fill(output, options)
    print(f"committed {options.records:,} records in {time.perf_counter() - started:.0f} s\n")
    _print("nothing pending", nothing, [embed(output) for _ in range(options.repeats)])
    added = []
    for repeat in range(options.repeats):
        server.put_files("images/", files[repeat + 1 : repeat + 2])
        _add_source(output, f"{images}{files[repeat + 1].name}")
        added.append(embed(output))
    _print("one pending", one_image, added)


def _fill(output: str, options: argparse.Namespace) -> None:
    """Adds sources to the manifest and commits their records, as if a run had done them."""
    storage, paths = Storage(), OutputPaths(output)
    run = json.loads(storage.read(paths.run))
    stamp = {"run_id": "20260101T000000-bench0", "fingerprint": run["fingerprint"]}
    real = read_manifest(storage, output).read()
    prefix = real["uri"][0].as_py().rpartition("/")[0]
    uris = [f"{prefix}/synthetic/{i:07}.jpg" for i in range(options.records - 1)]
    etags = [hashlib.md5(uri.encode()).hexdigest() for uri in uris]
    ids = [source_id(uri) for uri in uris]
    count = len(uris)
    made = pa.table(
        {
            "uri": uris,
            "source_id": ids,
            "kind": ["image"] * count,
            "size_bytes": [50_000] * count,
            "etag": etags,
            "mtime": pa.nulls(count, MANIFEST_SCHEMA.field("mtime").type),
            **{name: pa.nulls(count, pa.string()) for name in ("label", "group", "split")},
            "is_signed": [False] * count,
        },
        schema=MANIFEST_SCHEMA,
    )
    replace_manifest(storage, output, [real, made.cast(real.schema)])
    vectors = np.random.default_rng(0).random(options.rows_per_part * EMBEDDING_DIM, np.float32)
    metadata = {**stamp, "fingerprint_fields": run["fingerprint_fields"], "versions": {}}

    def commit(part: int) -> None:
        rows = slice(part * options.rows_per_part, (part + 1) * options.rows_per_part)
        table = _part(uris[rows], ids[rows], etags[rows], vectors, stamp)
        commit_part(storage, paths.part(stamp["run_id"], part), table, metadata)

    with concurrent.futures.ThreadPoolExecutor(PUT_THREADS) as pool:
        list(pool.map(commit, range(-(-count // options.rows_per_part))))


def _part(
    uris: list[str], ids: list[str], etags: list[str], vectors: np.ndarray, stamp: dict[str, str]
) -> pa.Table:
    schema, count = embeddings_schema(), len(uris)
    offsets = np.arange(count + 1, dtype=np.int32) * EMBEDDING_DIM
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors[: count * EMBEDDING_DIM]))
    known = {
        "uri": uris,
        "width": [500] * count,
        "height": [375] * count,
        "size_bytes": [50_000] * count,
        "embedding": lists,
        "source_id": ids,
        "record_id": [record_id(uri, None, 0) for uri in uris],
        "source_version": etags,
        "attempt": [1] * count,
        "status": ["ok"] * count,
        "num_source_records": [1] * count,
        **{name: [value] * count for name, value in stamp.items()},
    }
    columns = [
        known.get(field.name, pa.nulls(count, field.type) if field.nullable else None)
        for field in schema
    ]
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def _add_source(output: str, uri: str) -> None:
    storage = Storage()
    manifest = read_manifest(storage, output).read()
    info = storage.info(uri)
    row = {
        "uri": uri,
        "source_id": source_id(uri),
        "kind": "image",
        "size_bytes": info.size_bytes,
        "etag": info.etag,
        "mtime": info.mtime,
        "is_signed": False,
    }
    new = pa.Table.from_pylist([row], manifest.schema)
    replace_manifest(storage, output, [manifest, new])


def _print(what: str, small: list[Cost], large: list[Cost]) -> None:
    def median(costs: list[Cost], field: str) -> float:
        return statistics.median(getattr(cost, field) for cost in costs)

    print(f"{what}: | measure | one record | a million | added |\n|---|--:|--:|--:|")
    for field, label, unit in (
        ("wall_seconds", "seconds", 1.0),
        ("cpu_seconds", "CPU seconds", 1.0),
        ("root_peak_rss_bytes", "driver's peak RSS, MB", 1e6),
        ("peak_pss_bytes", "whole tree's peak PSS, MB", 1e6),
    ):
        before, after = median(small, field) / unit, median(large, field) / unit
        print(f"| {label} | {before:.1f} | {after:.1f} | {after - before:.1f} |")
    print(flush=True)


if __name__ == "__main__":
    main()
