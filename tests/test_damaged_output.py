"""Files of an output that rot, are cut or are swapped: named in one line, none passed over."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.exceptions
from committed_parts import manifest
from manifest_tables import write_manifest
from scored_output import video_row, write_output

import effnet_batch
from effnet_batch.errors import DecodeError, InputError, OutageError
from effnet_batch.ledger import Ledger, read_frames_of
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.storage import Storage

NUM_VIDEOS = 40
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    rows = [video_row(number) for number in range(NUM_VIDEOS)]
    write_output(root, rows, rows_per_part=16)
    write_manifest(Storage(), str(root), manifest({row["uri"]: "v1" for row in rows}))
    (tmp_path / "uris.txt").write_text(rows[0]["uri"])
    return root


def first_part(output: Path) -> Path:
    return min((output / "data").iterdir())


COMMANDS = {
    "verify": ["--deep"],
    "report": ["--html", "report.html"],
    "evaluate": [],
    "compact": [],
    "forget": ["--uri-list", "uris.txt"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_rot_that_the_ledger_does_not_see_is_named(
    output: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(output.parent)
    part = first_part(output)
    data = bytearray(part.read_bytes())
    for place in (100, len(data) // 3):  # in uri and in the evidence
        data[place] ^= 0xFF
    part.write_bytes(data)
    code, said = run(command, str(output), *COMMANDS[command])
    assert code == 1
    assert f"{part} is damaged (" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_what_is_left_of_an_output_is_not_measured(
    output: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It once was, without a word."""
    monkeypatch.chdir(output.parent)
    part = first_part(output)
    part.write_bytes(part.read_bytes()[:500])
    code, said = run(command, str(output), *COMMANDS[command])
    assert code == 2
    assert f"1 parts cannot be read, such as {part}" in said
    with pytest.raises(InputError, match="1 parts cannot be read"):
        effnet_batch.read_scores(str(output))
    part.unlink()
    assert effnet_batch.read_scores(str(output)).num_rows == NUM_VIDEOS - 16


def test_a_part_of_other_types_is_unreadable(output: Path) -> None:
    part = first_part(output)
    table = pq.read_table(part)
    place = table.schema.get_field_index("attempt")
    pq.write_table(table.set_column(place, "attempt", pa.array(["x"] * len(table))), part)
    ledger = Ledger.scan(Storage(), str(output / "data"))
    assert list(ledger.unreadable) == [str(part)]
    assert ledger.rows.num_rows == NUM_VIDEOS - 16


def test_rot_in_a_manifest_is_named(output: Path, run: Run) -> None:
    (part,) = (output / "manifest").glob("*.parquet")
    data = part.read_bytes()
    part.write_bytes(bytes(byte ^ 0x55 if 40 < at < 400 else byte for at, byte in enumerate(data)))
    code, said = run("verify", str(output))
    assert code == 2
    assert "the manifest is damaged" in said


@pytest.mark.parametrize("text", ["{", "5", "[1, 2]"])
def test_a_damaged_list_of_what_was_erased_is_not_taken_for_an_empty_one(
    output: Path, run: Run, text: str
) -> None:
    (output / "forgotten.json").write_text(text)
    code, said = run("forget", str(output), "--uri-list", str(output.parent / "uris.txt"))
    assert code == 2
    assert "forgotten.json is damaged, so that nobody knows what was erased" in said


def test_a_damaged_record_of_a_run_is_erased_with_what_it_may_name(output: Path, run: Run) -> None:
    (output / "runs").mkdir()
    uri = (output.parent / "uris.txt").read_text()
    (output / "runs" / "cut.json").write_text(json.dumps({"error": f"at {uri}"})[:-3])
    (output / "runs" / "list.json").write_text(f'["{uri}"]')
    code, _ = run("forget", str(output), "--uri-list", str(output.parent / "uris.txt"))
    assert code == 0
    assert not list((output / "runs").iterdir())


def test_damaged_frames_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part-0000.parquet"
    table = pa.table({"record_id": ["a" * 32] * 3, "embedding": [[1.0], [2.0], [3.0]]})
    pq.write_table(table, path, compression="zstd")
    assert sum(map(len, read_frames_of(Storage(), [str(path)]))) == 3
    whole = path.read_bytes()
    for damaged in (whole[:200], b"", whole[:20] + bytes(40) + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(DecodeError, match=r"part-0000\.parquet is damaged"):
            list(read_frames_of(Storage(), [str(path)]))


def test_an_error_of_a_library_is_what_a_worker_failed_of() -> None:
    text = (
        "ray::Worker() (pid=1)\n  File x\npyarrow.lib.ArrowInvalid: magic bytes not found\n"
        "To change retry attempts, configure `DataContext`."
    )
    assert str(cause_of(ray.exceptions.RayError(text))) == (
        "a worker failed: pyarrow.lib.ArrowInvalid: magic bytes not found"
    )


def test_what_ray_says_below_an_error_does_not_hide_it() -> None:
    text = (
        "ray::Worker() (pid=1)\n  File x\neffnet_batch.errors.OutageError: http://s3 is away\n"
        "The above exception was the direct cause of the following exception:\n  File y\n"
        "ray.exceptions.UserCodeException: UDF failed to process a data block."
    )
    found = cause_of(ray.exceptions.RayError(text))
    assert (type(found), str(found)) == (OutageError, "http://s3 is away")


def test_a_column_that_is_not_there_is_no_damage(output: Path) -> None:
    with pytest.raises(InputError, match="has no column 'scores'; it has uri, "):
        effnet_batch.read_scores(str(output), columns=["uri", "scores"])


def test_parts_of_a_release_with_fewer_columns_are_read_and_joined(output: Path, run: Run) -> None:
    part = first_part(output)
    old = pq.read_table(part)
    pq.write_table(old.drop_columns(["decoder"]), part)
    table = effnet_batch.read_scores(str(output))
    assert len(table) == NUM_VIDEOS
    assert table["decoder"][: len(old)].null_count == len(old)
    code, said = run("compact", str(output))
    assert code == 0, said
    assert effnet_batch.read_scores(str(output)).sort_by("uri").equals(table.sort_by("uri"))
