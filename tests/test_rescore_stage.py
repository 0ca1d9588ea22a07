"""Stored frames judged again without Ray: what a full run by the same checkpoints says."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_score_stage import CARPHONE, SOURCE, FakeDetector, open_here
from tiny_checkpoint import PREPROCESSING, tiny_checkpoint

from effnet_batch.errors import JobError
from effnet_batch.media.faces import FaceSettings
from effnet_batch.media.sampling import Clips, EveryNth, Fps, Uniform
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import Thresholds
from effnet_batch.models.engine import build_engine
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.schema import videos_schema
from effnet_batch.stages import frames as frames_module, show as show_module
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.frames import FrameSpool, stored_segments
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp, record_columns
from effnet_batch.stages.rescore import rescore_row
from effnet_batch.stages.score import Member, Scorer, score_item
from effnet_batch.stages.show import View

HEADS = {
    "lstm": {"lstm_layers": 1, "lstm_dim": 8},
    "bidirectional": {"lstm_layers": 2, "lstm_dim": 6, "is_bidirectional": True, "head_dims": (5,)},
    "frames": {},
}
ENCODERS: dict[int, Any] = {}


def member(seed: int, head: str, view: View, **aggregation: str) -> Member:
    """Return a member whose backbone depends on the seed alone, whatever its head."""
    config = SequenceConfig(architecture="mobilenet_v2", bottleneck_dim=16, **HEADS[head])
    model, info = tiny_checkpoint(
        seed, sequence=config, aggregation=AggregationConfig(**aggregation), name=f"{head}-{seed}"
    )
    backbone, _ = tiny_checkpoint(seed)
    model.encoder.load_state_dict(backbone.encoder.state_dict())
    if seed not in ENCODERS:
        engine = build_engine(model.encoder, PREPROCESSING, engine="torch", batch_size=4)
        ENCODERS[seed] = OwnEncoder(engine)
    return Member(
        info=info, view=view, model=model, encoder=ENCODERS[seed], frames=f"encoder-{seed}"
    )


def scored(
    members: list[Member], frames: FrameSpool | None = None, min_frames: int = 1
) -> dict[str, Any]:
    scorer = Scorer(members=members, thresholds=Thresholds(), min_frames=min_frames)

    def opener(item: Item) -> Any:
        return open_here(item, b"model")

    table = score_item(item(), opener, scorer, Stamp("run-1", "f"), StageClock(), frames)
    (row,) = table.to_pylist()
    return row


def item() -> Item:
    return Item(SOURCE, data=CARPHONE, size_bytes=len(CARPHONE), num_source_records=1)


def rescored(row: dict[str, Any], tables: list[pa.Table], members: list[Member]) -> dict[str, Any]:
    members = [dataclasses.replace(one, encoder=None) for one in members]
    scorer = Scorer(members=members, thresholds=Thresholds())
    found = rescore_row(row, stored_segments(tables), scorer, Stamp("run-2", "g"), StageClock())
    (row,) = pa.Table.from_pylist([found], videos_schema()).to_pylist()
    return row


def assert_close(found: Any, expected: Any) -> None:
    """Compare rows: numbers of float32 to 1e-6, all else exactly."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == expected


FACES = FaceSettings(margin=1.5)
VIEWS = {
    "uniform": View(sampling=Uniform(num_frames=8), max_clip_frames=3),
    "whole": View(sampling=EveryNth(ratio=17)),
    "clips": View(sampling=Clips(num_clips=3, num_frames=5, stride=20), max_clip_frames=4),
    "segments": View(sampling=Fps(fps=3), max_clip_frames=2, segment_seconds=1.5),
    "faces": View(sampling=EveryNth(ratio=10), max_clip_frames=3, faces=FACES),
    "segments of faces": View(
        sampling=EveryNth(ratio=10), max_clip_frames=2, segment_seconds=1.5, faces=FACES
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_rescore_says_what_a_full_run_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "FaceDetector", FakeDetector)
    monkeypatch.setattr(frames_module, "_SPOOL_BYTES", 1_000)
    view = VIEWS[name]
    longer = dataclasses.replace(view, max_clip_frames=5)
    spool = FrameSpool(record_columns(item(), None, Stamp("run-1", "f")), float16=False)
    stored = scored([member(0, "lstm", view), member(1, "lstm", view)], spool)
    assert stored["status"] == "ok"
    # Batches of any size: rows of a segment need not come together.
    rows = pa.concat_tables(spool.tables())
    tables = [rows.slice(start, 3) for start in range(0, len(rows), 3)]
    for members in (
        [member(0, "bidirectional", view, steps="last")],
        [member(1, "frames", view, tracks="frame_max"), member(0, "lstm", longer)],
        [member(0, "frames", longer), member(1, "lstm", view), member(0, "lstm", view)],
    ):
        expected = {**scored(members), "run_id": "run-2", "fingerprint": "g"}
        found = rescored(stored, tables, members)
        assert np.ptp([f["score"] for t in expected["tracks"] for f in t["frames"]]) > 0.01
        assert_close(found, expected)
        assert abs(found["score"] - stored["score"]) > 1e-4


def test_what_was_stored_of_two_views_may_be_judged_through_one() -> None:
    short = VIEWS["segments"]
    long = dataclasses.replace(short, max_clip_frames=5)
    spool = FrameSpool(record_columns(item(), None, Stamp("run-1", "f")), float16=False)
    stored = scored([member(0, "lstm", short), member(1, "lstm", long)], spool)
    members = [member(0, "lstm", long), member(1, "lstm", long)]
    expected = {**scored(members), "run_id": "run-2", "fingerprint": "g"}
    assert_close(rescored(stored, list(spool.tables()), members), expected)


def test_what_is_not_ok_stays_so() -> None:
    view = VIEWS["uniform"]
    members = [member(0, "lstm", view)]
    short = scored(members, min_frames=9)
    assert short["status"] == "too_short"
    assert rescored(short, [], members) == {**short, "run_id": "run-2", "fingerprint": "g"}


def test_missing_frames_are_no_score() -> None:
    view = VIEWS["segments"]
    members = [member(0, "lstm", view), member(1, "lstm", view)]
    spool = FrameSpool(record_columns(item(), None, Stamp("run-1", "f")), float16=False)
    row = scored(members, spool)
    rows = pa.concat_tables(spool.tables())
    for tables in ([], [rows.slice(0, len(rows) - 4)]):
        with pytest.raises(JobError, match=r"frames of /videos/one\.mp4 are missing"):
            rescored(row, tables, members)
