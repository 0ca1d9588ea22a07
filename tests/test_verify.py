"""`verify` on outputs written by hand: what must not be is said, and the command exits with 1."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from committed_parts import manifest
from manifest_tables import write_manifest

from effnet_batch import schema
from effnet_batch.cli import main
from effnet_batch.pipelines.verify import verify
from effnet_batch.sink import commit_part
from effnet_batch.storage import Storage

A, B = "s3://pictures/a.jpg", "s3://pictures/b.jpg"
Row = tuple[str, str, list[float] | None]
"""URI, status and vector."""
GOOD: list[Row] = [(A, "ok", [1.0, 2.0]), (B, "decode_error", None)]
FIRST = f"in the part that begins with {A}"


def write_output(
    folder: Path, rows: Sequence[Row], sources: Sequence[str], fingerprint: str
) -> str:
    """Writes an output whose run has the fingerprint ``f``."""
    storage, root = Storage(), str(folder / "out")
    write_manifest(storage, root, pa.concat_tables(manifest({uri: "v1"}) for uri in sources))
    run = {"job": "embed", "input": "s3://pictures/", "fingerprint": "f", "state": "complete"}
    storage.write(f"{root}/run.json", json.dumps(run).encode())
    table = pa.Table.from_pylist(
        [
            {
                "uri": uri,
                "embedding": vector,
                "run_id": "run",
                "fingerprint": fingerprint,
                "source_id": schema.source_id(uri),
                "record_id": schema.record_id(uri, None, 0),
                "source_version": "v1",
                "attempt": 1,
                "status": status,
                "num_source_records": 1,
            }
            for uri, status, vector in rows
        ],
        schema.embeddings_schema(),
    )
    uri = f"{root}/data/part-1-000000-0000.parquet"
    commit_part(storage, uri, table, {"fingerprint": fingerprint})
    return root


@pytest.mark.parametrize(
    ("rows", "sources", "fingerprint", "problem"),
    [
        ([(A, "ok", [1.0, float("nan")])], [A], "f", f"vectors that are not finite {FIRST}"),
        ([(A, "ok", [1.0, float("inf")])], [A], "f", f"vectors that are not finite {FIRST}"),
        ([(A, "decode_error", [1.0])], [A], "f", f"vectors are missing or made up {FIRST}"),
        ([(A, "ok", None)], [A], "f", f"vectors are missing or made up {FIRST}"),
        (
            [(A, "ok", [1.0]), (B, "ok", [1.0, 2.0])],
            [A, B],
            "f",
            "vectors of different lengths: [1, 2]",
        ),
        (GOOD, [A], "f", "records of 1 sources that the manifest does not have"),
        (GOOD, [A, A, B], "f", "1 sources stand more than once in the manifest"),
        (GOOD, [A, B], "g", "parts of fingerprint g beside the run's f"),
        (GOOD[:1], [A, B], "f", None),
        (GOOD, [A, B], "f", ""),
    ],
)
def test_what_must_not_be_is_said_and_exits_with_1(
    rows: list[Row],
    sources: list[str],
    fingerprint: str,
    problem: str | None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = write_output(tmp_path, rows, sources, fingerprint)
    report = verify(root, is_deep=True)
    assert report.problems == ((problem,) if problem else ())
    assert report.pending == ((B,) if problem is None else ())
    assert report.is_proven == (problem == "")
    done = CliRunner().invoke(main, ["verify", root, "--deep"])
    said = f"not finished: {B}" if problem is None else problem
    assert done.exit_code == (0 if problem == "" else 1)
    assert said in capfd.readouterr().err
