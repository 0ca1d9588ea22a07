"""What is left of a detector's AUC when its videos are distorted: a grid of scoring jobs."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from effnet_batch.config import ActorSettings, InputSettings, ScoreConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.evaluation.bootstrap import DEFAULT_RESAMPLES, Estimate
from effnet_batch.evaluation.page import build_robustness_page
from effnet_batch.evaluation.scored import count_unscored, measure
from effnet_batch.manifest import save_manifest
from effnet_batch.media.distortions import NUM_LEVELS, PARAMETERS, Distortion
from effnet_batch.pipelines.evaluate import PAGE_FILE, check_plots, load_scored
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import STATE_COMPLETE, storage_options
from effnet_batch.pipelines.score import score
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import Report, load_manifest, load_run
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, canonical_uri, join

CELLS_FILE: Final = "robustness.json"
PLOT_FILE: Final = "auc.svg"
CLEAN: Final = "clean"
"""Name of the cell without a distortion."""
_MANIFEST_FILE: Final = "videos.parquet"
"""What the clean cell listed; every other cell reads it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One distortion at one level, or none."""

    name: str
    """Of its scores in the output: ``clean``, or such as ``noise-3``."""
    distortion: str | None
    level: int
    """0 without a distortion."""
    parameter: float | None
    """What the level stands for; see `media.distortions.PARAMETERS`."""
    auc: Estimate
    num_fake: int
    num_real: int
    num_groups: int
    without_score: dict[str, dict[str, int]]
    """Labelled videos without a score, by status and class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robustness:
    """What `robustness` found."""

    output: str
    """Canonical URI; a folder of scores for every cell lies in it."""
    input: str
    split: str | None
    imputed_score: float | None
    """What stood for videos without a score; None left them out."""
    failed_share: float
    """Undistorted videos that failed, of all."""
    cells: tuple[Cell, ...]
    """The clean one first, then by distortion and level."""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return dataclasses.asdict(self)


def robustness(
    input: str,
    output: str,
    *,
    config: ScoreConfig | None = None,
    distortions: Sequence[str] = tuple(PARAMETERS),
    levels: Sequence[int] = tuple(range(1, NUM_LEVELS + 1)),
    labels: str | None = None,
    split: str | None = None,
    impute: float | None = None,
    num_resamples: int = DEFAULT_RESAMPLES,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Robustness:
    """Scores an archive undistorted and under every distortion at every level, and measures each.

    Running it again goes on where an earlier run broke off, and takes in what is added to the grid.

    Args:
        input: what `score` takes, labelled ``fake`` and ``real``; with ``group`` for the intervals.
        output: folder; made if missing. It gets an output of `score` for every cell,
            ``robustness.json``, a heat map and a page.
        config: settings of `score`; by default those of ``settings``.
        distortions: kinds, of `media.distortions.PARAMETERS`.
        levels: 1..5.
        labels: as `evaluate` takes it; None takes what the input says.
        split: measure only videos of this split.
        impute: score of videos without one; None leaves them out. They are counted either way.
        num_resamples: bootstrap resamples of whole groups; 0 leaves the intervals out.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``checkpoint=["model.safetensors"]``.

    Raises:
        ConfigError: wrong settings, or no labelled video.
        JobError: a cell failed, or could not be finished; what is committed stays.
    """
    config = ScoreConfig.merged(config, settings)
    grid = _grid(distortions, levels)
    if config.distortion.distortion is not None:
        raise ConfigError("--distortion is for score; --distortions says what the grid has")
    if impute is not None and not 0 <= impute <= 1:
        raise ConfigError(f"impute must lie in 0..1, got {impute:g}")
    check_plots()
    reporter = reporter or Silent()
    storage = Storage(storage_options(config))
    root = canonical_uri(output)
    storage.check_writable(root)
    found: list[Cell] = []
    failed_share = 0.0
    with contextlib.ExitStack() as stack:
        if not all(_is_complete(storage, join(root, _name(each))) for each in grid):
            # One for all cells, whose workers it keeps.
            stack.enter_context(ray_session(config.group(ActorSettings).address))
        for number, each in enumerate(grid, 1):
            reporter.message(f"{number} of {len(grid)}: {each or 'undistorted'}")
            folder = join(root, _name(each))
            report = _score(storage, input, root, config, each, reporter)
            if each is None:
                failed_share = report.failed_share
            found.append(
                _measure(
                    storage,
                    folder,
                    each,
                    labels=labels,
                    split=split,
                    impute=impute,
                    num_resamples=num_resamples,
                )
            )
    result = Robustness(
        output=root,
        input=canonical_uri(input),
        split=split,
        imputed_score=impute,
        failed_share=failed_share,
        cells=tuple(found),
    )
    _write(storage, result)
    return result


def _grid(kinds: Sequence[str], levels: Sequence[int]) -> list[Distortion | None]:
    """Returns the cells in order; None is the clean one.

    Raises:
        ConfigError: there is no such distortion or level, or none is named.
    """
    try:
        cells = [Distortion(kind, level) for kind in kinds for level in sorted(set(levels))]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not cells:
        raise ConfigError("no distortion and level is named")
    return [None, *dict.fromkeys(cells)]


def _name(distortion: Distortion | None) -> str:
    return f"{distortion.kind}-{distortion.level}" if distortion else CLEAN


def _is_complete(storage: Storage, root: str) -> bool:
    paths = OutputPaths(root)
    return storage.exists(paths.run) and load_run(storage, paths)["state"] == STATE_COMPLETE


def _score(
    storage: Storage,
    input: str,
    root: str,
    config: ScoreConfig,
    distortion: Distortion | None,
    reporter: Reporter,
) -> Report:
    """Scores a cell and returns what it holds; the clean one lists the input, for all.

    Raises:
        JobError: it could not be finished.
    """
    folder, listed = join(root, _name(distortion)), join(root, _MANIFEST_FILE)
    if distortion is None:
        summary = score(input, folder, config=config, reporter=reporter)
    else:
        clean = load_manifest(storage, OutputPaths(join(root, CLEAN)))
        if any(pc.any(table["is_signed"]).as_py() for table in clean.tables()):
            listed = input  # the manifest holds no signature, so that the list is asked for them
        else:
            # What else there is to say of the input was said when it was listed.
            inputs = InputSettings(media_column=config.input.media_column)
            config = dataclasses.replace(config, input=inputs)
        hurt = dataclasses.replace(config.distortion, distortion=str(distortion))
        config = dataclasses.replace(config, distortion=hurt)
        summary = score(listed, folder, config=config, reporter=reporter)
    if not summary.report.is_proven:
        raise JobError(
            f"{folder}: {summary.report.num_pending:,} videos are not finished; run the command "
            "again"
        )
    if distortion is None and not storage.exists(listed):
        save_manifest(storage, listed, load_manifest(storage, OutputPaths(folder)))
    return summary.report


def _measure(
    storage: Storage,
    folder: str,
    distortion: Distortion | None,
    *,
    labels: str | None,
    split: str | None,
    impute: float | None,
    num_resamples: int,
) -> Cell:
    scored, run = load_scored(storage, folder, labels=labels, split=split)
    measured = measure(
        scored,
        np.ones(len(scored.labels), np.bool_),
        impute=impute,
        threshold=run["resolved"]["thresholds"]["fake"],
        num_resamples=num_resamples,
    )
    return Cell(
        name=_name(distortion),
        distortion=distortion.kind if distortion else None,
        level=distortion.level if distortion else 0,
        parameter=distortion.parameter if distortion else None,
        auc=measured.metrics["auc"] if measured else Estimate(None),
        num_fake=measured.num_fake if measured else 0,
        num_real=measured.num_real if measured else 0,
        num_groups=measured.num_groups if measured else 0,
        without_score=count_unscored(scored),
    )


def _write(storage: Storage, result: Robustness) -> None:
    from effnet_batch.evaluation.plots import draw_heat_map

    document = result.to_dict()
    rows: dict[str, dict[int, Estimate]] = {}
    for cell in result.cells[1:]:
        rows.setdefault(str(cell.distortion), {})[cell.level] = cell.auc
    plot = draw_heat_map(rows, clean=result.cells[0].auc)
    storage.write(join(result.output, PLOT_FILE), plot)
    storage.write(join(result.output, PAGE_FILE), build_robustness_page(document, plot).encode())
    text = json.dumps(document, indent=1, allow_nan=False)
    storage.write(join(result.output, CELLS_FILE), text.encode())
