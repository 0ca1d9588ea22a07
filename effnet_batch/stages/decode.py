"""Encoded images to uint8 frames and the rows that describe them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from effnet_batch.errors import RecordError
from effnet_batch.media.card_image import CardDecoder
from effnet_batch.media.image import DecodedImage
from effnet_batch.models.engine_base import AnyFrames
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp, record_columns


class Decode(Protocol):
    """Anything that turns encoded bytes into a frame or raises a RecordError."""

    def __call__(self, data: bytes) -> DecodedImage:
        """Decodes one image."""
        ...


@dataclasses.dataclass(frozen=True)
class DecodedBatch:
    """Records in order, and the frames of those that decoded."""

    rows: pa.Table
    """Every column of the output but the model's."""
    frames: AnyFrames
    """uint8 [N, S, S, 3] RGB, one per row whose status is ok, in the rows' order."""


Outcome = tuple[int, int] | RecordError
"""Upright width and height of an image in pixels, or why there is no frame of it."""

_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size_bytes", pa.int64()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("run_id", pa.string()),
        ("fingerprint", pa.string()),
        ("source_id", pa.string()),
        ("record_id", pa.string()),
        ("source_version", pa.string()),
        ("attempt", pa.int32()),
        ("status", pa.string()),
        ("num_source_records", pa.int64()),
    ]
)


def decode_batch(
    items: Sequence[Item], decode: Decode, stamp: Stamp, image_size: int
) -> DecodedBatch:
    """Decodes a few images.

    Args:
        items: what `read_items` yields.
        decode: bytes to frame; its RecordErrors become rows.
        stamp: goes into every row.
        image_size: side S of the frames in pixels.
    """
    frames = np.empty((len(items), image_size, image_size, 3), np.uint8)
    num_frames = 0
    outcomes: list[Outcome] = []
    for item in items:
        if item.data is None:
            continue
        try:
            decoded = decode(item.data)
        except RecordError as error:
            outcomes.append(error)
        else:
            frames[num_frames] = decoded.frame
            num_frames += 1
            outcomes.append((decoded.width, decoded.height))
    return DecodedBatch(_rows(items, outcomes, stamp), frames[:num_frames])


def decode_on_card(
    items: Sequence[Item], decoder: CardDecoder, stamp: Stamp, beat: Callable[[], None]
) -> DecodedBatch:
    """Decodes a few images together on a card, where their frames stay.

    Args:
        items: what `read_items` yields.
        decoder: its RecordErrors become rows.
        stamp: goes into every row.
        beat: is called whenever some images more were decoded.
    """
    decoded = decoder.decode([item.data for item in items if item.data is not None], beat)
    return DecodedBatch(_rows(items, decoded.outcomes, stamp), decoded.frames)


def _rows(items: Sequence[Item], outcomes: Iterable[Outcome], stamp: Stamp) -> pa.Table:
    """Returns a row per item; there is an outcome for every one that has data."""
    rows: list[dict[str, Any]] = []
    following = iter(outcomes)
    for item in items:
        outcome: Outcome | None = item.error if item.data is None else next(following)
        width, height = outcome if isinstance(outcome, tuple) else (None, None)
        error = outcome if isinstance(outcome, RecordError) else None
        row = record_columns(item, error, stamp)
        rows.append({**row, "width": width, "height": height})
    return pa.Table.from_pylist(rows, _SCHEMA)
