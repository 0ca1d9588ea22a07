"""What an output's scores are worth against labels."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from effnet_batch.errors import ConfigError, InputError
from effnet_batch.evaluation.bootstrap import DEFAULT_RESAMPLES
from effnet_batch.evaluation.labels import read_label_file
from effnet_batch.evaluation.metrics import Detections
from effnet_batch.evaluation.page import build_page
from effnet_batch.evaluation.scored import (
    COLUMNS,
    Measured,
    Scored,
    count_unscored,
    gather,
    measure,
    measure_frames,
    slices_of,
)
from effnet_batch.ledger import Ledger
from effnet_batch.pipelines.verify import load_run
from effnet_batch.schema import videos_schema
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, StorageOptions, canonical_uri, join

METRICS_FILE: Final = "metrics.json"
PAGE_FILE: Final = "index.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found."""

    scores: str
    """Canonical URI of the output that was evaluated."""
    split: str | None
    threshold: float
    """Score from which a video counts as fake."""
    imputed_score: float | None
    """What stood for videos without a score; None left them out."""
    num_videos: int
    """Labelled videos, with a score or without."""
    num_unlabelled: int
    num_absent: int
    """Labelled videos that the output does not have."""
    without_score: dict[str, dict[str, int]]
    """Labelled videos without a score, by status and class."""
    videos: Measured | None
    frames: Measured | None
    by: dict[str, dict[str, Measured]]
    """Videos sliced: column, then value."""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return dataclasses.asdict(self)


def evaluate(
    scores: str,
    *,
    labels: str | None = None,
    output: str | None = None,
    split: str | None = None,
    by: Sequence[str] = (),
    impute: float | None = None,
    threshold: float | None = None,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    storage: StorageOptions | None = None,
) -> Evaluation:
    """Measures the scores of an output.

    Args:
        scores: folder that `score` or `rescore` wrote to.
        labels: manifest or list with ``uri`` and ``label``, and ``group`` for the intervals; None
            takes what the scored manifest said.
        output: folder for ``metrics.json``, plots and a page; None writes nothing.
        split: measure only videos of this split.
        by: columns of ``labels``, or of the rows, to slice by; such as ``method``.
        impute: score of videos without one, as the DFDC's 0.5; None leaves them out. They are
            counted either way.
        threshold: score from which a video counts as fake; None takes the checkpoint's.
        num_resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: of the resamples.
        storage: how storage is spoken to.

    Raises:
        ConfigError: no labelled video, a label of neither class, or a setting out of range.
    """
    for name, value in (("impute", impute), ("threshold", threshold)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie in 0..1, got {value:g}")
    if num_resamples < 0:
        raise ConfigError(f"num_resamples must not be negative, got {num_resamples}")
    room = Storage(storage or StorageOptions())
    root = canonical_uri(scores)
    if output is not None:
        check_plots()
        room.check_writable(canonical_uri(output))
    scored, run = load_scored(room, root, labels=labels, split=split, slices=by)
    if threshold is None:
        threshold = float(run["resolved"]["thresholds"]["fake"])
    settings: dict[str, Any] = {
        "threshold": threshold,
        "num_resamples": num_resamples,
        "seed": seed,
    }
    everything = np.ones(len(scored.labels), np.bool_)
    by_column = {}
    for name in by:
        found = {
            value: measure(scored, keep, impute=impute, **settings)
            for value, keep in slices_of(scored, name).items()
        }
        by_column[name] = {value: each for value, each in found.items() if each is not None}
    evaluation = Evaluation(
        scores=root,
        split=split,
        threshold=threshold,
        imputed_score=impute,
        num_videos=len(scored.labels),
        num_unlabelled=scored.num_unlabelled,
        num_absent=scored.num_absent,
        without_score=count_unscored(scored),
        videos=measure(scored, everything, impute=impute, **settings),
        frames=measure_frames(scored, **settings),
        by=by_column,
    )
    if output is not None:
        _write(room, canonical_uri(output), evaluation, scored)
    return evaluation


def check_plots() -> None:
    """Finds out whether plots can be drawn, before there is anything to plot.

    Raises:
        ConfigError: they cannot.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib: pip install 'effnet-batch[plots]'")


def load_scored(
    storage: Storage,
    root: str,
    *,
    labels: str | None,
    split: str | None = None,
    slices: Sequence[str] = (),
) -> tuple[Scored, dict[str, Any]]:
    """Returns the labelled scores of an output, and its run.json.

    Raises:
        InputError: it is no output of scores, a part of it cannot be read, or no video of it is
            labelled.
    """
    run = load_run(storage, OutputPaths(root))
    if "thresholds" not in run.get("resolved", {}):
        raise InputError(f"{root} holds no scores; it is an output of {run['job']}")
    found = None if labels is None else read_label_file(labels, storage)
    ledger = Ledger.scan(storage, OutputPaths(root).data)
    ledger.check_readable()
    own = [name for name in slices if name in videos_schema().names]
    columns = list(dict.fromkeys([*COLUMNS, *own]))
    return gather(ledger.live(columns), found, split=split, slices=slices), run


def _write(storage: Storage, folder: str, evaluation: Evaluation, scored: Scored) -> None:
    from effnet_batch.evaluation.plots import draw_plots

    has_score = ~np.isnan(scored.scores)
    plots = {}
    if has_score.any():
        detections = Detections(scored.labels[has_score], scored.scores[has_score])
        plots = draw_plots(detections, threshold=evaluation.threshold)
    document = evaluation.to_dict()
    for name, svg in plots.items():
        storage.write(join(folder, f"{name}.svg"), svg)
    storage.write(join(folder, PAGE_FILE), build_page(document, plots).encode())
    text = json.dumps(document, indent=1, allow_nan=False)
    storage.write(join(folder, METRICS_FILE), text.encode())
