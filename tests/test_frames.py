"""Frame embeddings beside their records: written first, invisible alone, missed when gone."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed_parts import Row, part

from effnet_batch import schema, sink
from effnet_batch.ledger import Ledger
from effnet_batch.media.tracks import Box
from effnet_batch.sink import OutputPaths, PartWriter, frame_parts
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.look import Segment
from effnet_batch.stages.show import Shot
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
BOX = Box(left=1.25, top=-2.5, right=30.1, bottom=40.7, score=0.875)


def segment(num_shots: int, *, box: Box | None = None) -> Segment:
    """Return shots in clips of two that overlap by one."""
    shots = [Shot(0, 10 + i, 0.04 * i, box) for i in range(num_shots)]
    clips = [(0, np.array([i, i + 1])) for i in range(num_shots - 1)]
    return Segment(expected=[], read=[], shots=shots, clips=clips, embeddings=[])


@pytest.mark.parametrize("float16", [False, True])
def test_rows_say_where_and_when_and_in_which_clips(float16: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    spool = FrameSpool(RECORD, float16=float16)
    spool.add(segment(3, box=BOX), 0, vectors, "aaaa")
    spool.add(segment(1), 1, vectors[:1], "aaaa")
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
    }
    assert [(row["segment"], row["clips"], row["left"]) for row in rows] == [
        (0, [0], 1.25),
        (0, [0, 1], 1.25),
        (0, [1], 1.25),
        (1, [], None),
    ]
    stored = np.array(table["embedding"].to_pylist(), np.float32)
    kind = np.float16 if float16 else np.float32
    np.testing.assert_array_equal(stored[:3], vectors.astype(kind).astype(np.float32))


def test_a_spool_holds_little_of_a_long_video_and_forgets_a_failed_one() -> None:
    vectors = np.ones((1000, 1280), np.float32)  # 5 MB a segment
    spool = FrameSpool(RECORD, float16=False)
    before = pa.total_allocated_bytes()
    for number in range(20):
        spool.add(segment(1000), number, vectors, "aaaa")
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert sum(len(table) for table in spool.tables()) == 20_000
    spool.clear()
    assert list(spool.tables()) == []
    spool.add(segment(2), 0, vectors[:2], "bbbb")
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
            spool.add(segment(2), index, np.full((2, 4), number, np.float32), "aaaa")
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
