"""Encoded images to uint8 frames and the rows that describe them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from effnet_batch.errors import RecordError
from effnet_batch.media.image import DecodedImage
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
    frames: np.ndarray
    """uint8 [N, S, S, 3] RGB, one per row whose status is ok, in the rows' order."""


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
    rows: list[dict[str, Any]] = []
    frames = np.empty((len(items), image_size, image_size, 3), np.uint8)
    num_frames = 0
    for item in items:
        error, width, height = item.error, None, None
        if item.data is not None:
            try:
                decoded = decode(item.data)
                frames[num_frames] = decoded.frame
                num_frames += 1
                width, height = decoded.width, decoded.height
            except RecordError as caught:
                error = caught
        row = record_columns(item, error, stamp)
        rows.append({**row, "width": width, "height": height})
    return DecodedBatch(pa.Table.from_pylist(rows, _SCHEMA), frames[:num_frames])
