"""Frames to embeddings: the model's columns beside the rows that describe them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.errors import ModelError
from effnet_batch.models.engine import Engine, EngineOutput
from effnet_batch.models.engine_base import AnyFrames
from effnet_batch.schema import STATUS_OK, embeddings_schema
from effnet_batch.stages.decode import DecodedBatch
from effnet_batch.stages.lanes import StageClock, run_lanes
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import error_columns


@dataclasses.dataclass(frozen=True)
class EmbeddingColumns:
    """Which of the model's outputs are stored, and how."""

    top_k: int = 0
    logits: bool = False
    dtype: str = "float32"
    class_names: tuple[str, ...] | None = None
    """Of the classes in order, where the model knows them."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of the tables that `embed_batch` returns."""
        return embeddings_schema(
            float16=self.dtype == "float16",
            top_k=self.top_k,
            has_names=self.class_names is not None,
            logits=self.logits,
        )

    @property
    def needs_logits(self) -> bool:
        """Whether the classifier has to run."""
        return bool(self.top_k) or self.logits


def embed_batch(batch: DecodedBatch, engine: Engine, columns: EmbeddingColumns) -> pa.Table:
    """Runs the model over the frames of a batch.

    Returns:
        One row per record, of ``columns.schema``; the model's columns are null where the status is
        not ok. Records whose numbers would not be finite have the status ``model_error``.
    """
    outputs = run_batches(batch.frames, engine)
    is_finite = _are_finite(outputs, columns)
    rows = batch.rows
    if not is_finite.all():
        where = f"{engine.precision}, stored as {columns.dtype}"
        rows = _without_numbers(
            rows, is_finite, ModelError(f"the model's output is not finite in {where}")
        )
    is_ok = _is_ok(rows)
    schema = columns.schema
    embeddings = outputs.embeddings[is_finite]
    made: dict[str, pa.Array] = {
        "embedding": _vectors(embeddings, is_ok, schema.field("embedding").type)
    }
    if columns.needs_logits:
        assert outputs.logits is not None, "the engine was built without logits"
        logits = outputs.logits[is_finite]
        if columns.logits:
            made["logits"] = _vectors(logits, is_ok, schema.field("logits").type)
        if columns.top_k:
            classes = np.argsort(-logits, axis=1, kind="stable")[:, : columns.top_k]
            scores = np.take_along_axis(_softmax(logits), classes, axis=1)
            made["top_k_classes"] = _vectors(
                classes.astype(np.int32), is_ok, schema.field("top_k_classes").type
            )
            made["top_k_scores"] = _vectors(scores, is_ok, schema.field("top_k_scores").type)
            if columns.class_names is not None:
                names = np.array(columns.class_names, object)[classes]
                made["top_k_names"] = _vectors(names, is_ok, schema.field("top_k_names").type)
    arrays = [made[name] if name in made else rows[name] for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def run_batches(frames: AnyFrames, engine: Engine) -> EngineOutput:
    """Runs any number of frames, a batch at a time."""
    if len(frames) <= engine.batch_size:
        return engine.run(frames)
    submitted = [
        engine.submit(frames[start : start + engine.batch_size])
        for start in range(0, len(frames), engine.batch_size)
    ]
    runs = [each.collect() for each in submitted]
    logits = [run.logits for run in runs if run.logits is not None]
    return EngineOutput(
        np.concatenate([run.embeddings for run in runs]),
        np.concatenate(logits) if logits else None,
    )


def _is_ok(rows: pa.Table) -> np.ndarray:
    return np.asarray(pc.equal(rows["status"], STATUS_OK))


def _are_finite(outputs: EngineOutput, columns: EmbeddingColumns) -> np.ndarray:
    """Returns, as bool [N], which frames have finite numbers, also in the dtype of the output."""
    largest = np.finfo(columns.dtype).max
    are_finite = (np.abs(outputs.embeddings) <= largest).all(axis=1)
    if outputs.logits is not None:
        most = largest if columns.logits else np.finfo(np.float32).max
        are_finite &= (np.abs(outputs.logits) <= most).all(axis=1)
    return np.asarray(are_finite)


def _without_numbers(rows: pa.Table, are_finite: np.ndarray, error: ModelError) -> pa.Table:
    """Returns the rows with the error in those whose frames, the ok ones', are not finite."""
    failed = np.array(_is_ok(rows))
    failed[failed] = ~are_finite
    for name, value in error_columns(error).items():
        column = pc.if_else(pa.array(failed), value, rows[name])
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def _vectors(values: np.ndarray, is_ok: np.ndarray, kind: pa.ListType) -> pa.ListArray:
    """Returns one list per record: the rows of ``values`` where ``is_ok``, else null."""
    width = values.shape[1] if values.ndim == 2 else 0
    offsets = np.zeros(len(is_ok) + 1, np.int32)
    np.cumsum(np.where(is_ok, width, 0), out=offsets[1:])
    flat = pa.array(np.ascontiguousarray(values).reshape(-1)).cast(kind.value_type, safe=False)
    mask = pa.array(~is_ok) if not is_ok.all() else None
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=mask)


def embed_items(
    items: Iterable[Item],
    decode: Callable[[list[Item]], DecodedBatch],
    embed: Callable[[DecodedBatch], pa.Table],
    *,
    batch_size: int,
    num_lanes: int,
    clock: StageClock,
) -> Iterator[pa.Table]:
    """Decodes and embeds in parallel lanes, yielding tables in the items' order.

    A lane decodes a batch and runs the model over it in one thread, so that every core is busy and
    no frame waits for another core. Batches are cut by count, and by the bytes of very large
    images: a rerun cuts the same ones.

    Args:
        items: what `read_items` yields.
        decode: items to a decoded batch.
        embed: decoded batch to table.
        batch_size: items per batch.
        num_lanes: threads.
        clock: takes the seconds spent in ``read``, ``decode`` and ``model``.
    """

    def lane(batch: list[Item]) -> pa.Table:
        with clock.measure("decode"):
            decoded = decode(batch)
        with clock.measure("model"):
            return embed(decoded)

    return run_lanes(
        items,
        lane,
        batch_size=batch_size,
        num_lanes=num_lanes,
        num_waiting=2 * num_lanes,
        clock=clock,
    )
