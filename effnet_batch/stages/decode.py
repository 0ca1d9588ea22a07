"""Encoded images to uint8 frames and the rows that describe them."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from effnet_batch.errors import FetchError, RecordError
from effnet_batch.media.image import DecodedImage
from effnet_batch.schema import STATUS_OK, record_id
from effnet_batch.stages.read import Item


class Decode(Protocol):
    """Anything that turns encoded bytes into a frame or raises a RecordError."""

    def __call__(self, data: bytes) -> DecodedImage:
        """Decodes one image."""
        ...


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What every row of a run carries."""

    run_id: str
    fingerprint: str


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
_MAX_MESSAGE = 500


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
        rows.append(_row(item, error, stamp, width, height))
    return DecodedBatch(pa.Table.from_pylist(rows, _SCHEMA), frames[:num_frames])


def _row(
    item: Item, error: RecordError | None, stamp: Stamp, width: int | None, height: int | None
) -> dict[str, Any]:
    source = item.source
    row: dict[str, Any] = {
        "uri": source.uri,
        "member": item.member,
        "label": source.label if item.label is None else item.label,
        "group": source.group,
        "split": source.split,
        "width": width,
        "height": height,
        "size_bytes": item.size_bytes,
        "run_id": stamp.run_id,
        "fingerprint": stamp.fingerprint,
        "source_id": source.source_id,
        "record_id": record_id(source.uri, item.member, item.occurrence),
        "source_version": source.source_version,
        "attempt": source.attempt,
        "status": STATUS_OK,
        "num_source_records": item.num_source_records,
    }
    if error is not None:
        row["status"] = error.status
        row["error_type"] = (
            error.error_type if isinstance(error, FetchError) else type(error).__name__
        )
        row["error_message"] = str(error)[:_MAX_MESSAGE]
    return row


class Watchdog:
    """Notices a decode that hangs in native code, where no exception can reach it.

    A context manager around a decoder; ``on_hang`` is called from a thread and is expected to end
    the process, since nothing else ends such a decode.
    """

    def __init__(self, decode: Decode, timeout_seconds: float, on_hang: Callable[[], None]) -> None:
        self._decode = decode
        self._timeout_seconds = timeout_seconds
        self._on_hang = on_hang
        self._started: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode-watchdog", daemon=True)

    def __call__(self, data: bytes) -> DecodedImage:
        """Decodes one image under watch."""
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            return self._decode(data)
        finally:
            del self._started[thread]

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout_seconds / 4)):
            now = time.monotonic()
            if any(now - start > self._timeout_seconds for start in self._started.copy().values()):
                self._on_hang()
                return
