"""How far a precision below fp32 moves the numbers of a run, found on a few of its records."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from effnet_batch.config import DriftSettings, EngineSettings, InputSettings, JobConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.manifest import build_manifest
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import AUTO, EngineChoice
from effnet_batch.pipelines.pending import fresh_sources, with_fetch_uris
from effnet_batch.pipelines.run import Run, storage_options
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.stages.read import Item, OutageGuard, read_items, sources_from_table
from effnet_batch.storage import Storage, redact

FP32: Final = "fp32"
_MOST_IMAGES: Final = 32
_MOST_VIDEOS: Final = 4
"""Sources and records that are looked at."""
_BATCH_SIZE: Final = 16

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Judged = Mapping[str, tuple[Vectors, Scores]]
"""By record, or by any name of records that are read once for both engines: float32 [N, D], what
the model made of frames, and float64 of any shape, in 0..1, the scores; empty where it gives none.
"""
Judge = Callable[[EngineChoice], Judged]
"""Runs the same records through an engine of its own; one that cannot be read is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a precision moves numbers. Plain values; stored in run.json."""

    precision: str
    num_vectors: int
    """Embeddings of frames that were compared."""
    min_cosine: float | None
    """Least cosine of an embedding and the same in fp32; None where there are none."""
    median_cosine: float | None
    max_score_change: float | None
    """Largest change of a score, of 0..1; None where the model gives none."""

    def __str__(self) -> str:
        if self.min_cosine is None:
            return f"{self.precision} could not be held against fp32: no record could be read"
        change = "" if self.max_score_change is None else f", score {self.max_score_change:.2g}"
        return (
            f"{self.precision} against fp32 over {self.num_vectors} frames: cosine at least "
            f"{self.min_cosine:.5f}, median {self.median_cosine:.5f}{change}"
        )


Measure = Callable[[Any, Any, pa.Table], Drift]
"""From a job's configuration, what it was resolved to, and sources from `golden_sources`."""


def measure_drift(choice: EngineChoice, judge: Judge) -> Drift:
    """Runs the same records in fp32 and in the precision of an engine.

    Raises:
        JobError: one of them gives no numbers.
    """
    plain = dataclasses.replace(
        choice, precision=FP32, compiled=False, batch_size=min(choice.batch_size, _BATCH_SIZE)
    )
    # First, so that weights which give no numbers at all are not laid to the other's charge.
    expected, found = judge(plain), judge(choice)
    for precision, judged in ((FP32, expected), (choice.precision, found)):
        for vectors, scores in judged.values():
            check_finite(vectors, precision)
            check_finite(scores, precision)
    # What is fetched and decoded for each may fail, or break off, for one of them alone.
    pairs = [
        (expected[name], found[name])
        for name in expected
        if name in found and len(expected[name][0]) == len(found[name][0])
    ]
    empty = np.empty(0)
    cosines = np.concatenate([empty, *(_cosines(one[0], other[0]) for one, other in pairs)])
    changes = np.concatenate([empty, *(np.abs(one[1] - other[1]).ravel() for one, other in pairs)])
    return Drift(
        precision=choice.precision,
        num_vectors=len(cosines),
        min_cosine=float(cosines.min()) if len(cosines) else None,
        median_cosine=float(np.median(cosines)) if len(cosines) else None,
        max_score_change=float(changes.max()) if len(changes) else None,
    )


def check_finite(values: Vectors | Scores, precision: str) -> None:
    """Checks what a model gave in a precision.

    Raises:
        JobError: not all of it are numbers.
    """
    if np.isfinite(values).all():
        return
    if precision == FP32:
        raise JobError("the model gives vectors that are no numbers, in fp32 too; check --weights")
    raise JobError(f"{precision} gives vectors that are no numbers; choose --precision fp32")


def _cosines(vectors: Vectors, others: Vectors) -> Scores:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    products = np.einsum("nd,nd->n", vectors, others, dtype=np.float64)
    return np.asarray(products / np.maximum(lengths, np.finfo(np.float32).tiny))


def class_scores(model: Backbone, embeddings: Vectors) -> Scores:
    """Returns float64 [N, K], the probabilities of a backbone's classes; K may be 0."""
    if not model.num_classes:
        return np.empty((len(embeddings), 0))
    with torch.inference_mode():
        logits = model.fc.cpu()(torch.from_numpy(np.ascontiguousarray(embeddings)))
        return np.asarray(logits.double().softmax(1).numpy())


def golden_sources(run: Run) -> pa.Table:
    """Returns the sources that are looked at, with the columns of `stages.read.Source`.

    Raises:
        ConfigError: those that the settings name cannot be listed.
    """
    golden = run.config.group(DriftSettings).golden
    most = _MOST_VIDEOS if run.medium == KIND_VIDEO else _MOST_IMAGES
    if golden is None:
        return next(run.passes()).slice(0, most)
    sources = build_manifest(golden, run.storage, medium=run.medium, limit=most)
    table = pa.concat_tables(sources.tables())
    return with_fetch_uris(fresh_sources(table), golden, run.storage, run.medium)


def golden_items(
    config: JobConfig, sources: pa.Table, *, medium: str, max_bytes: int
) -> Iterator[Item]:
    """Yields what some sources hold; of shards only the first members."""
    items = read_items(
        sources_from_table(sources),
        Storage(storage_options(config)),
        OutageGuard(),
        max_bytes=max_bytes,
        media_column=config.group(InputSettings).media_column,
        on_incomplete=lambda source, error: None,
        medium=medium,
    )
    return itertools.islice(items, _MOST_VIDEOS if medium == KIND_VIDEO else _MOST_IMAGES)


def wants_drift(run: Run, precision: str) -> bool:
    """Returns whether a precision is held against fp32: where asked for, or where nobody chose it.

    Looking costs the start of a run seconds, or as long as a few videos take.
    """
    settings = run.config.group(DriftSettings)
    is_asked = settings.golden is not None or settings.max_score_drift is not None
    is_chosen = run.config.group(EngineSettings).precision != AUTO
    return precision != FP32 and run.pending.num_rows > 0 and (is_asked or not is_chosen)


def known_drift(run: Run) -> dict[str, Any] | None:
    """Returns what an earlier run of the same numbers found on the same sources."""
    found = (run.previous or {}).get("drift")
    # Records that could not be read the last time may be there by now.
    if not found or not found["num_vectors"] or found["golden"] != _golden(run):
        return None
    return dict(found)


def to_record(run: Run, drift: Drift) -> dict[str, Any]:
    """Returns what run.json says of it."""
    return {**dataclasses.asdict(drift), "golden": _golden(run)}


def check_drift(run: Run, drift: dict[str, Any]) -> None:
    """Stops a run whose precision moves scores too far.

    Raises:
        ConfigError: there are no scores to go by.
        JobError: they move further than the settings allow.
    """
    limit = run.config.group(DriftSettings).max_score_drift
    if limit is None:
        return
    precision, change = drift["precision"], drift["max_score_change"]
    if not drift["num_vectors"]:
        raise JobError(
            f"nothing to hold {precision} against fp32 on: no record of "
            f"{drift['golden'] or 'the first sources'} can be read; name others with --golden"
        )
    if change is None:
        raise ConfigError(
            "these weights have no classifier, so there are no scores to compare; leave "
            "--max-score-drift out"
        )
    if not change <= limit:
        raise JobError(
            f"{precision} moves a score by {change:.4g} against fp32, more than --max-score-drift "
            f"{limit:g}; choose --precision fp32, or allow more"
        )


def _golden(run: Run) -> str | None:
    golden = run.config.group(DriftSettings).golden
    return None if golden is None else redact(golden)
