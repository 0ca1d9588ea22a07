"""Frame embeddings beside their records: written first, invisible alone, missed when gone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed_parts import Row, manifest, part
from manifest_tables import write_manifest

import effnet_batch
from effnet_batch import schema, sink
from effnet_batch.ledger import Ledger
from effnet_batch.media.sampling import Clips, Uniform
from effnet_batch.media.tracks import Box
from effnet_batch.pipelines.maintain import compact, forget
from effnet_batch.pipelines.verify import verify
from effnet_batch.sink import OutputPaths, PartWriter, frame_parts
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.look import Segment
from effnet_batch.stages.show import Shot, View
from effnet_batch.storage import Storage

RECORD = {
    "uri": "/a.mp4",
    "member": None,
    "run_id": "run",
    "source_id": schema.source_id("/a.mp4"),
    "record_id": schema.record_id("/a.mp4", None, 0),
    "attempt": 1,
    "status": "ok",
}
FIRST, SECOND = "s3://bucket/first.tar", "s3://bucket/second.tar"
BOX = Box(left=1.25, top=-2.5, right=30.1, bottom=40.7, score=0.875)


VIEW = View(sampling=Uniform(num_frames=1000))


def segment(num_shots: int, *, box: Box | None = None) -> Segment:
    shots = [Shot(0, 10 + i, 0.04 * i, box) for i in range(num_shots)]
    expected = [10 + i for i in range(num_shots)]
    return Segment(expected=expected, read=[], shots=shots, clips=[], embeddings=[])


@pytest.mark.parametrize("float16", [False, True])
def test_rows_say_where_and_when_and_in_which_clips(float16: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    spool = FrameSpool(RECORD, float16=float16)
    view = View(sampling=Clips(num_clips=2, num_frames=2))
    spool.add(segment(3, box=BOX), 0, view, vectors, "aaaa")
    spool.add(segment(1), 1, view, vectors[:1], "aaaa")
    other = dataclasses.replace(view, max_clip_frames=1)
    spool.add(segment(1), 1, other, vectors[:1], "aaaa")  # the same pictures again
    table = pa.concat_tables(spool.tables())
    spool.close()
    assert table.schema == schema.frames_schema(float16=float16)
    rows = table.drop_columns(["embedding"]).to_pylist()
    common = {name: RECORD[name] for name in ("uri", "member", "run_id", "source_id")}
    assert rows[1] == {
        **common,
        "record_id": RECORD["record_id"],
        "attempt": 1,
        "fingerprint": "aaaa",
        "segment": 0,
        "track": 0,
        "frame_index": 11,
        "pts_seconds": 0.04,
        "left": 1.25,
        "top": -2.5,
        "right": 30.1,
        "bottom": 40.7,
        "face_score": 0.875,
        "clips": [0, 1],
        "clip_steps": [1, 0],
    }
    assert [(row["segment"], row["clips"], row["clip_steps"], row["left"]) for row in rows] == [
        (0, [0], [0], 1.25),
        (0, [0, 1], [1, 0], 1.25),
        (0, [1], [1], 1.25),
        (1, [0], [0], None),
    ]
    stored = np.array(table["embedding"].to_pylist(), np.float32)
    kind = np.float16 if float16 else np.float32
    np.testing.assert_array_equal(stored[:3], vectors.astype(kind).astype(np.float32))


def test_a_spool_holds_little_of_a_long_video_and_forgets_a_failed_one() -> None:
    vectors = np.ones((1000, 1280), np.float32)  # 5 MB a segment
    spool = FrameSpool(RECORD, float16=False)
    before = pa.total_allocated_bytes()
    for number in range(20):
        spool.add(segment(1000), number, VIEW, vectors, "aaaa")
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert sum(len(table) for table in spool.tables()) == 20_000
    spool.clear()
    assert list(spool.tables()) == []
    spool.add(segment(2), 0, VIEW, vectors[:2], "bbbb")
    assert [len(table) for table in spool.tables()] == [2]
    spool.close()


def write(root: Path, num_records: int = 3, rows_per_part: int = 2) -> PartWriter:
    """Commit records of four frames each."""
    storage, paths = Storage(), OutputPaths(str(root))
    metadata = {"fingerprint": "f"}
    writer = PartWriter(storage, paths, "run", 0, rows_per_part=rows_per_part, metadata=metadata)
    for number in range(num_records):
        row = Row("shard", number, need=num_records if number == num_records - 1 else None)
        table = pq.read_table(pa.BufferReader(part([row])))
        spool = FrameSpool(table.to_pylist()[0], float16=False)
        for index in range(2):
            spool.add(segment(2), index, VIEW, np.full((2, 4), number, np.float32), "aaaa")
        writer.add(table, spool.tables())
        spool.close()
    writer.close()
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_frames_are_written_before_their_part_in_bounded_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    put = Storage.write

    def write_and_note(self: Storage, uri: str, data: bytes) -> None:
        written.append(uri)
        put(self, uri, data)

    monkeypatch.setattr(Storage, "write", write_and_note)
    monkeypatch.setattr(sink, "_FRAME_PART_BYTES", 1)
    writer = write(tmp_path)
    first, second = "part-run-000000-0000", "part-run-000000-0001"
    assert [uri.removeprefix(f"{tmp_path}/") for uri in written] == [
        *(f"frames/{first}-{index:04}.parquet" for index in range(4)),
        f"data/{first}.parquet",
        *(f"frames/{second}-{index:04}.parquet" for index in range(2)),
        f"data/{second}.parquet",
    ]
    assert writer.totals["num_records"] == 3
    assert writer.totals["size_bytes"] == sum(Path(uri).stat().st_size for uri in written)
    ledger = Ledger.scan(Storage(), str(tmp_path / "data"))
    parts = [one.uri for one in ledger.parts]
    assert ledger.frames == {parts[0]: frame_parts(parts[0], 4), parts[1]: frame_parts(parts[1], 2)}
    metadata: dict[str, Any] = sink.read_metadata(pq.read_schema(parts[0]))
    assert metadata["frames"] == {"num_parts": 4, "num_rows": 8}


def test_a_part_whose_frames_are_gone_counts_as_damaged(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "frames" / "part-run-000000-0001-0000.parquet").unlink()
    ledger = Ledger.scan(Storage(), str(tmp_path / "data"))
    assert [one.uri.rsplit("/", 1)[1] for one in ledger.parts] == ["part-run-000000-0000.parquet"]
    ((uri, why),) = ledger.unreadable.items()
    assert uri.endswith("part-run-000000-0001.parquet")
    assert "frames" in why
    assert "are missing" in why


def make_output(root: Path) -> None:
    """Commit two shards and what a killed writer left; one record of the first one failed."""
    storage, paths = Storage(), OutputPaths(str(root))
    run = {
        "job": "embed",
        "input": "x",
        "fingerprint": "f",
        "state": "complete",
        "frames": {"a": {}},
    }
    storage.write(paths.run, json.dumps(run).encode())
    write_manifest(storage, str(root), manifest({FIRST: "v1", SECOND: "v1"}))
    rows = [
        Row(FIRST, 0),
        Row(FIRST, 1, status="decode_error"),
        Row(FIRST, 2, need=3),
        Row(SECOND, 0, need=1),
    ]
    for unit, group in enumerate([rows[:2], rows[1:]]):  # the second row stands twice
        writer = PartWriter(
            storage, paths, "run", unit, rows_per_part=9, metadata={"fingerprint": "f"}
        )
        for row in group:
            table = pq.read_table(pa.BufferReader(part([row])))
            spool = FrameSpool(table.to_pylist()[0], float16=False)
            if row.status == "ok":
                vectors = np.full((3, 2), rows.index(row), np.float32)
                spool.add(segment(3), 0, VIEW, vectors, "aaaa")
            writer.add(table, spool.tables())
            spool.close()
        writer.close()
    orphan = root / "frames" / "part-run-000009-0000-0000.parquet"
    orphan.write_bytes((root / "frames" / "part-run-000000-0000-0000.parquet").read_bytes())


def frames_of(root: Path) -> list[tuple[str, str, float]]:
    table = effnet_batch.read_frames(str(root))
    vectors = effnet_batch.embedding_matrix(table)
    return [
        (uri, record, float(vector[0]))
        for uri, record, vector in zip(
            table["uri"].to_pylist(), table["member"].to_pylist(), vectors, strict=True
        )
    ]


LIVE = [
    *[(FIRST, "m0", 0.0)] * 3,
    *[(FIRST, "m2", 2.0)] * 3,
    *[(SECOND, "m0", 3.0)] * 3,
]


def test_readers_see_the_frames_of_live_records_only(tmp_path: Path) -> None:
    make_output(tmp_path)
    assert verify(str(tmp_path), is_deep=True).is_proven
    assert frames_of(tmp_path) == LIVE
    few = effnet_batch.read_frames(str(tmp_path), columns=["pts_seconds", "segment"])
    assert few.column_names == ["pts_seconds", "segment"]
    assert few["pts_seconds"].to_pylist() == [0.0, 0.04, 0.08] * 3


def test_compact_rewrites_frames_and_drops_orphans(tmp_path: Path) -> None:
    make_output(tmp_path)
    assert compact(str(tmp_path), part_bytes=1) == (2, 2)
    assert compact(str(tmp_path)) == (2, 1)
    assert frames_of(tmp_path) == LIVE
    (data,) = (tmp_path / "data").iterdir()
    assert names(tmp_path / "frames") == [f"{data.stem}-0000.parquet"]
    assert verify(str(tmp_path), is_deep=True).is_proven
    assert verify(str(tmp_path)).num_superseded == 0


@pytest.mark.parametrize(("forgotten", "left"), [(FIRST, LIVE[6:]), (SECOND, LIVE[:6])])
def test_forget_erases_frames(tmp_path: Path, forgotten: str, left: list[Any]) -> None:
    make_output(tmp_path)
    uris = tmp_path / "list.txt"
    uris.write_text(forgotten)
    forget(str(tmp_path), str(uris))
    assert frames_of(tmp_path) == left
    assert verify(str(tmp_path), is_deep=True).is_proven
    for path in (tmp_path / "frames").iterdir():
        assert forgotten not in pq.read_table(path)["uri"].to_pylist()
        assert "000009" not in path.name


def test_a_deep_verify_misses_frames(tmp_path: Path) -> None:
    make_output(tmp_path)
    path = tmp_path / "frames" / "part-run-000001-0000-0000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(3), path)
    problems = verify(str(tmp_path), is_deep=True).problems
    assert any("3 frames of" in one and "speaks of 6" in one for one in problems), problems
    assert any("1 records of" in one and "without frames" in one for one in problems), problems
