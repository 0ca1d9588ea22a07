"""Records of which the model gives no finite numbers: a status of their own, and no numbers."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from overflowing import PREPROCESSING, make_overflow
from photographs import encode as encode_image
from PIL import Image
from test_score_stage import CARPHONE, SOURCE, open_here
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.sampling import Uniform
from effnet_batch.models.architectures import build_model
from effnet_batch.models.checkpoint_info import Thresholds
from effnet_batch.models.engine import EngineOutput, build_engine
from effnet_batch.schema import videos_schema
from effnet_batch.stages.decode import DecodedBatch, decode_batch
from effnet_batch.stages.embed import EmbeddingColumns, embed_batch
from effnet_batch.stages.embed_video import VideoEmbedder, embed_video
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.frames import FrameSpool, stored_segments
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp, record_columns
from effnet_batch.stages.rescore import KEPT_COLUMNS, rescore_row
from effnet_batch.stages.score import Member, Scorer, score_item
from effnet_batch.stages.show import View

VIEW = View(sampling=Uniform(num_frames=4))
STAMP = Stamp("run", "f" * 16)


def black(number: int, width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


VIDEOS = {"ok": encode(num_frames=8, show=black), "model_error": CARPHONE}


def plain_image(value: int) -> bytes:
    return encode_image(Image.fromarray(np.full((64, 64, 3), value, np.uint8)), "PNG")


def decode(images: list[bytes]) -> DecodedBatch:
    return decode_batch(
        [item(data) for data in images],
        lambda data: decode_image(data, PREPROCESSING, ImageLimits()),
        STAMP,
        64,
    )


def item(data: bytes) -> Item:
    return Item(SOURCE, data=data, size_bytes=len(data), num_source_records=1)


@pytest.mark.parametrize("options", [{}, {"top_k": 2, "logits": True}])
def test_an_image_without_finite_numbers_has_no_vector(options: dict[str, Any]) -> None:
    model = build_model("mobilenet_v2", num_classes=5).eval()
    make_overflow(model)
    columns = EmbeddingColumns(**options)
    engine = build_engine(
        model, PREPROCESSING, engine="torch", batch_size=2, with_logits=columns.needs_logits
    )
    dark, bright = plain_image(0), plain_image(200)
    batch = decode([dark, bright, b"no image", dark, bright])
    table = embed_batch(batch, engine, columns)
    assert table.schema == columns.schema
    found = table.to_pylist()
    unread = found[2]["status"]
    assert [row["status"] for row in found] == ["ok", "model_error", unread, "ok", "model_error"]
    assert unread not in ("ok", "model_error")
    numbers = {"embedding", "logits", "top_k_classes", "top_k_scores"} & set(table.column_names)
    for row in found:
        assert {row[name] is None for name in numbers} == {row["status"] != "ok"}
    assert (found[1]["error_type"], found[1]["width"]) == ("ModelError", 64)
    assert found[1]["error_message"] == (
        "the model's output is not finite in fp32, stored as float32"
    )
    assert (found[0]["error_type"], found[0]["error_message"]) == (None, None)
    assert len(found[0]["embedding"]) == 1280
    assert found[0]["embedding"] == found[3]["embedding"]


def test_a_vector_that_float16_cannot_hold_is_none() -> None:
    output = EngineOutput(np.array([[1, 65504], [1, -7e4]], np.float32), None)
    engine: Any = SimpleNamespace(batch_size=2, precision="bf16", run=lambda frames: output)
    batch = decode([plain_image(0), plain_image(99)])
    for dtype, status in (("float32", "ok"), ("float16", "model_error")):
        table = embed_batch(batch, engine, EmbeddingColumns(dtype=dtype))
        assert table["status"].to_pylist() == ["ok", status]


@pytest.mark.parametrize("status", VIDEOS)
def test_a_video_without_finite_vectors_is_neither_embedded_nor_judged(status: str) -> None:
    model, info = tiny_checkpoint(0, preprocessing=PREPROCESSING)
    make_overflow(model.encoder.backbone)
    encoder = OwnEncoder(build_engine(model.encoder, PREPROCESSING, engine="torch", batch_size=4))
    embedder = VideoEmbedder(view=VIEW, preprocessing=PREPROCESSING, encoder=encoder)
    embedded = embed_video(item(VIDEOS[status]), open_here, embedder, STAMP, StageClock())
    member = Member(info=info, view=VIEW, model=model, encoder=encoder)
    scorer = Scorer(members=[member], thresholds=Thresholds(), num_crops=2)
    scored = score_item(item(VIDEOS[status]), open_here, scorer, STAMP, StageClock())
    for table, numbers in ((embedded, ["embedding"]), (scored, ["score", "verdict", "tracks"])):
        (row,) = table.to_pylist()
        assert (row["status"], row["num_frames_used"], row["codec"]) == (status, 4, "h264")
        assert {row[name] is None for name in numbers} == {status != "ok"}
        if status != "ok":
            assert row["error_message"] == "the model's output is not finite in fp32"


def test_logits_that_are_not_finite_are_no_verdict_of_rescore_either() -> None:
    model, info = tiny_checkpoint(0, preprocessing=PREPROCESSING)
    encoder = OwnEncoder(build_engine(model.encoder, PREPROCESSING, engine="torch", batch_size=4))
    sound = Member(info=info, view=VIEW, model=model, encoder=encoder, frames="f")
    broken_model, broken_info = tiny_checkpoint(1, preprocessing=PREPROCESSING)
    with torch.no_grad():
        broken_model.head[-1].weight.fill_(3e38)
        broken_model.head[-1].bias.fill_(3e38)
        broken_model.lstm.bias_hh_l0.fill_(9)  # all hidden values are near 1
    broken = dataclasses.replace(sound, info=broken_info, model=broken_model)
    stored: dict[str, Any] = {}
    for name, members in (("sound", [sound]), ("broken", [sound, broken])):
        spool = FrameSpool(record_columns(item(b""), None, STAMP), float16=False)
        scorer = Scorer(members=members, thresholds=Thresholds(), num_crops=1)
        table = score_item(item(CARPHONE), open_here, scorer, STAMP, StageClock(), spool)
        stored[name] = (table.to_pylist()[0], list(spool.tables()))
    row, tables = stored["sound"]
    scorer = Scorer(members=[broken], thresholds=Thresholds())
    row = {name: row[name] for name in KEPT_COLUMNS}
    again = rescore_row(row, stored_segments(tables), scorer, STAMP, StageClock())
    assert row["status"] == "ok"
    for failed in (stored["broken"][0], {**dict.fromkeys(videos_schema().names), **again}):
        assert (failed["status"], failed["error_type"]) == ("model_error", "ModelError")
        assert failed["error_message"] == "logits of tiny-1 are not finite"
        assert [failed[name] for name in ("score", "logit", "verdict", "tracks")] == [None] * 4
