"""What runs on the workers of the embedding job: units in, committed parts out.

``fused``: `FusedWorker` reads, decodes, runs the model and commits in one actor; nothing but a
receipt passes through the object store. ``split``: `decode_unit` runs in CPU tasks, `EncodeWorker`
in GPU actors, `commit_rows` in tasks; frames pass through the object store.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from effnet_batch.config import EmbedConfig
from effnet_batch.media.card_image import CardDecoder
from effnet_batch.models.engine import Engine
from effnet_batch.pipelines.metrics import publish_clock
from effnet_batch.pipelines.open_images import image_limits, open_decoder
from effnet_batch.pipelines.progress import ProgressBoard, UnitProgress
from effnet_batch.pipelines.resolution import build_chosen_engine
from effnet_batch.pipelines.resolve import Resolved, load_chosen
from effnet_batch.pipelines.units import Task, part_writer, read_unit, receipt
from effnet_batch.schema import STATUS_OK
from effnet_batch.stages.decode import Decode, DecodedBatch, decode_batch, decode_on_card
from effnet_batch.stages.embed import EmbeddingColumns, embed_batch, embed_items
from effnet_batch.stages.lanes import WAIT, StageClock
from effnet_batch.stages.read import Item, OutageGuard
from effnet_batch.stages.watchdog import Watchdog, end_process
from effnet_batch.storage import Storage, StorageOptions

_MIN_ROWS_PER_BLOCK: Final = 64
_CALLS_ON_GPU: Final = 3
"""One block is computed, one is on its way to the card, one is read or made into rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedTask(Task):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: EmbedConfig
    resolved: Resolved

    @property
    def rows_per_block(self) -> int:
        """Rows that travel together in the split graph: whole batches, at least 64."""
        batch_size = self.resolved.engine.batch_size
        return batch_size * max(1, _MIN_ROWS_PER_BLOCK // batch_size)

    @property
    def calls_at_once(self) -> int:
        """Blocks that an actor of the split graph works on: on a card, one beside the next."""
        return _CALLS_ON_GPU if self.resolved.engine.device == "cuda" else 1

    @property
    def frame_bytes(self) -> int:
        """Size of one decoded frame."""
        return 3 * self.resolved.preprocessing.image_size**2

    @property
    def columns(self) -> EmbeddingColumns:
        """What the model's columns are."""
        output = self.config.output
        return EmbeddingColumns(
            output.top_k, output.logits, output.dtype, self.resolved.class_names
        )


class FusedWorker:
    """Actor of the fused graph."""

    def __init__(self, task: EmbedTask, board: ProgressBoard) -> None:
        self._task = task
        self._board = board
        self._storage = Storage(task.storage)
        self._guard = OutageGuard()
        self._engine = build_worker_engine(task, num_streams=task.num_lanes)
        self._card_decoder: CardDecoder | None = None
        if task.resolved.gpu_decode:
            limits = image_limits(task.config.limits)
            self._card_decoder = CardDecoder(task.resolved.preprocessing, limits)

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Does one unit; returns its receipt."""
        task, clock = self._task, StageClock()
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        with self._decoding(progress) as decode:
            tables = embed_items(
                _read(task, unit, self._storage, self._guard, self._board),
                decode,
                lambda batch: _embed(batch, self._engine, task, clock),
                batch_size=self._engine.batch_size,
                num_lanes=task.num_lanes,
                clock=clock,
            )
            for table in tables:
                writer.add(table)
                progress.count(table)
        writer.close()
        progress.finish()
        return receipt(writer, clock)

    @contextlib.contextmanager
    def _decoding(self, progress: UnitProgress) -> Iterator[Callable[[list[Item]], DecodedBatch]]:
        """Yields what decodes a batch; what may kill its decoder never reaches the card."""
        task, decoder = self._task, self._card_decoder
        if decoder is None or progress.is_suspect:
            size = task.resolved.preprocessing.image_size
            with _decoder(task, progress) as decode:
                yield lambda batch: decode_batch(batch, decode, task.stamp, size)
            return
        with Watchdog(task.config.limits.image_timeout_seconds, end_process) as watchdog:

            def decode_watched(batch: list[Item]) -> DecodedBatch:
                with watchdog.step():
                    return decode_on_card(batch, decoder, task.stamp, watchdog.beat)

            yield decode_watched


def decode_unit(unit: pa.Table, *, task: EmbedTask, board: ProgressBoard) -> Iterator[pa.Table]:
    """Task of the split graph: reads and decodes a unit.

    Yields:
        ``task.rows_per_block`` rows at a time, the last time fewer, with their frame in a binary
        column ``frame``, and ``unit`` and ``place``, the row's number in the unit. Each becomes a
        block: Ray takes up the blocks of a task that it runs again by their position.
    """
    progress, clock = UnitProgress(board, unit), StageClock()
    size = task.resolved.preprocessing.image_size
    with _decoder(task, progress) as decode:
        tables = embed_items(
            _read(task, unit, _storage(task.storage), _task_guard(task.run_id), board),
            lambda batch: decode_batch(batch, decode, task.stamp, size),
            _with_frames,
            batch_size=task.rows_per_block,
            num_lanes=1,
            clock=clock,
        )
        place = 0
        for table in tables:
            places = pa.array(np.arange(place, place + len(table), dtype=np.int64))
            place += len(table)
            progress.count(table)
            yield table.append_column(
                "unit", pa.array(np.full(len(table), progress.unit, np.int32))
            ).append_column("place", places)
    publish_clock(clock, ("read", "decode"))
    progress.finish()


class EncodeWorker:
    """Actor of the split graph: frames to embeddings; may be called from several threads."""

    def __init__(self, task: EmbedTask) -> None:
        self._task = task
        self._engine = build_worker_engine(task, num_streams=task.calls_at_once)
        self._lock = threading.Lock()
        self._num_calls = 0
        self._idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the rows with the model's columns in place of ``frame``."""
        clock = StageClock()
        with self._lock:
            if not self._num_calls:
                clock.add(WAIT, time.perf_counter() - self._idle_since)
            self._num_calls += 1
        size = self._task.resolved.preprocessing.image_size
        batch = DecodedBatch(table, _frames(table, size))
        with clock.measure("model"):
            rows = _embed(batch, self._engine, self._task, clock)
        publish_clock(clock, ("model",))
        with self._lock:
            self._idle_since = time.perf_counter()
            self._num_calls -= 1
        return rows.append_column("unit", table["unit"]).append_column("place", table["place"])


def commit_rows(rows: pa.Table, *, task: EmbedTask) -> pa.Table:
    """Task of the split graph: commits rows of one or several units as one part."""
    number, place = rows["unit"][0].as_py(), rows["place"][0].as_py()
    clock = StageClock()
    writer = part_writer(task, _storage(task.storage), number, clock, first_index=place)
    writer.add(rows.select(task.columns.schema.names))
    writer.close()
    return receipt(writer, clock, ("write",))


def build_worker_engine(task: EmbedTask, *, num_streams: int) -> Engine:
    """Loads the weights and builds the engine that the run was resolved to.

    Raises:
        FingerprintError: the weights on this node are not those of the run.
    """
    torch.set_num_threads(1)
    return build_chosen_engine(
        load_chosen(task.config, task.resolved),
        task.resolved.preprocessing,
        task.resolved.engine,
        num_streams=num_streams,
        actors=task.config.cluster,
        with_logits=task.columns.needs_logits,
    )


def _embed(batch: DecodedBatch, engine: Engine, task: EmbedTask, clock: StageClock) -> pa.Table:
    clock.add_batch(len(batch.frames))
    return embed_batch(batch, engine, task.columns)


def _read(
    task: EmbedTask, unit: pa.Table, storage: Storage, guard: OutageGuard, board: ProgressBoard
) -> Iterator[Item]:
    max_bytes = task.config.limits.max_image_bytes
    return read_unit(task, unit, storage, guard, board, max_bytes=max_bytes)


def _decoder(task: EmbedTask, progress: UnitProgress) -> contextlib.AbstractContextManager[Decode]:
    """Returns the decoder of a unit."""
    return open_decoder(
        task.config,
        task.resolved.preprocessing,
        is_suspect=progress.is_suspect,
        num_lanes=task.num_lanes,
    )


@functools.lru_cache(maxsize=4)
def _storage(options: StorageOptions) -> Storage:
    """Returns the storage of this worker process, which many tasks share."""
    return Storage(options)


@functools.lru_cache(maxsize=4)
def _task_guard(run_id: str) -> OutageGuard:
    """Returns the outage guard of this worker process and run."""
    return OutageGuard()


def _with_frames(batch: DecodedBatch) -> pa.Table:
    """Returns the rows with a column of frames; a record without one has zeros, which are not used.

    All rows are equally large, so that blocks cut by bytes are cut by rows.
    """
    is_ok = _is_ok(batch.rows)
    frames = np.zeros((len(is_ok), *batch.frames.shape[1:]), np.uint8)
    frames[is_ok] = batch.frames
    kind = pa.binary(frames[0].nbytes)
    column = pa.Array.from_buffers(kind, len(is_ok), [None, pa.py_buffer(frames)])
    return batch.rows.append_column("frame", column)


def _frames(table: pa.Table, image_size: int) -> np.ndarray:
    """Returns the frames of the rows that are ok as uint8 [N, S, S, 3]; a view if that is all."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[
            chunk.offset * chunk.type.byte_width : (chunk.offset + len(chunk))
            * chunk.type.byte_width
        ]
        for chunk in table["frame"].chunks
    ]
    flat = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    frames = flat.reshape(table.num_rows, image_size, image_size, 3)
    is_ok = _is_ok(table)
    return frames if is_ok.all() else frames[is_ok]


def _is_ok(table: pa.Table) -> np.ndarray:
    return np.asarray(pc.equal(table["status"], STATUS_OK))
