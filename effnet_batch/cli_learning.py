# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The commands that train and measure checkpoints."""

import dataclasses
from typing import Any

import click

from effnet_batch.cli_command import EXIT_COMPLETE, EXIT_TOO_MANY_FAILURES, command
from effnet_batch.cli_console import Console
from effnet_batch.cli_options import config_options, storage_flags

_LABELS = click.option(
    "--labels", help="Manifest or list with uri and label; default: the scored one's."
)


@click.command()
@click.argument("input", metavar="[MANIFEST]", required=False)
@click.argument("output", required=False)
@config_options("finetune")
@command
def finetune(input: str, output: str, settings: dict[str, Any], console: Console) -> int:
    """Train a classifier of videos or images; OUTPUT/model.safetensors is what score or embed runs.

    MANIFEST is a list with the columns uri and label (fake, real), best also group (who is seen)
    and split (train, val). Run it again to go on where an earlier run broke off. MANIFEST may also
    be the output of embed --frames or score --embeddings: then the head alone is trained, on stored
    frames, in seconds. Of images, in plain files or shards, the label is any class; give --weights,
    and --label-from parent where folders are classes.

    \b
    effnet-batch finetune videos.csv detector/ --weights efficientnet_b1 --epochs 10
    effnet-batch finetune embeddings/ head/ --network resnet50_lstm --weights resnet50
    effnet-batch finetune flowers.csv classifier/ --weights efficientnet_b0 --mixup 0.2
    """
    from effnet_batch.config import FinetuneConfig
    from effnet_batch.pipelines.finetune import finetune as run_finetune

    config = FinetuneConfig.from_flat(settings)
    found = run_finetune(input, output, config=config, reporter=console)
    console.summary(
        f"Trained: {found.checkpoint}",
        {
            "sha256": found.sha256,
            "epochs": f"{found.num_epochs}, kept number {found.best_epoch}",
            **{f"validation {name}": f"{value:.4f}" for name, value in found.metrics.items()},
            "trained on": found.num_samples,
            "validated on": found.num_validated,
            **{f"left out: {reason}": count for reason, count in found.left_out.items()},
            "waited for data": f"{found.data_wait_share:.1%} of the last epoch",
        },
    )
    return EXIT_COMPLETE


@click.command()
@click.argument("input", metavar="[SCORES]", required=False)
@click.option("--output", help="Folder for metrics.json, plots and a page.")
@config_options("evaluate", optional="output")
@command
def evaluate(input: str, output: str | None, settings: dict[str, Any], console: Console) -> int:
    """Measure the scores of an output against labels.

    Intervals hold 95 % of resamples of whole groups, so that many videos of one person count as
    little as they should.

    \b
    effnet-batch evaluate scores/ --labels labels.csv --by method --output evaluation/
    """
    from effnet_batch.config import EvaluateConfig
    from effnet_batch.evaluation.page import metric_title
    from effnet_batch.pipelines.evaluate import evaluate as run_evaluate
    from effnet_batch.storage import StorageOptions

    config = EvaluateConfig.from_flat(settings)
    wanted = config.evaluation
    found = run_evaluate(
        input,
        labels=wanted.labels,
        output=output,
        split=wanted.split,
        by=wanted.by,
        impute=wanted.impute,
        threshold=wanted.threshold,
        num_resamples=wanted.resamples,
        storage=StorageOptions(**dataclasses.asdict(config.storage)),
    )
    columns = {"videos": found.videos, "frames": found.frames}
    for name, slices in found.by.items():
        columns |= {f"{name} {value}": each for value, each in slices.items()}
    measured = {title: each for title, each in columns.items() if each is not None}
    console.summary(
        f"Evaluation of {found.scores}",
        {
            "labelled videos": found.num_videos,
            **{
                f"without a score: {status}": f"{sum(counts.values()):,}"
                + (f", counted as {wanted.impute:g}" if wanted.impute is not None else ", left out")
                for status, counts in found.without_score.items()
            },
            "without a label, left out": found.num_unlabelled or None,
            "labelled, never scored": found.num_absent or None,
            "threshold of the accuracies": f"{found.threshold:g}",
        },
    )
    if not measured:
        console.warning("no labelled video has a score")
        return EXIT_COMPLETE
    sizes = [f"{each.num_fake}, {each.num_real}, {each.num_groups}" for each in measured.values()]
    rows = [("fake, real, groups", *sizes)]
    for name in next(iter(measured.values())).metrics:
        cells = [_estimate(each.metrics[name]) for each in measured.values()]
        rows.append((metric_title(name), *cells))
    console.table(("metric", *measured), rows)
    return EXIT_COMPLETE


@click.command()
@click.argument("input", required=False)
@click.argument("output", required=False)
@config_options("score")
@click.option("--distortions", help="Kinds, separated by commas; default: all seven.")
@click.option("--levels", help="Levels, separated by commas; default: 1,2,3,4,5.")
@_LABELS
@click.option("--split", help="Measure only videos of this split.")
@click.option("--impute", type=float, help="Score of videos without one; the DFDC takes 0.5.")
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Of the intervals; 0 leaves them out.",
)
@command
def robustness(
    input: str,
    output: str,
    settings: dict[str, Any],
    distortions: str | None,
    levels: str | None,
    labels: str | None,
    split: str | None,
    impute: float | None,
    resamples: int,
    console: Console,
) -> int:
    """Score labelled videos under the distortions of DeeperForensics-1.0 and measure what is left.

    Frames are distorted after decoding, by saturation, contrast, blocks, noise, blur, downscale and
    (H.264) compression, in five levels each. OUTPUT gets the scores of every cell of this grid,
    robustness.json, a heat map and a page. Run it again to finish what an earlier run left, or to
    add to the grid.

    \b
    effnet-batch robustness test.csv robust/ --checkpoint model.safetensors --levels 1,3,5
    """
    from effnet_batch.config import ScoreConfig
    from effnet_batch.pipelines.robustness import robustness as run_robustness

    grid: dict[str, Any] = {}
    if distortions is not None:
        grid["distortions"] = _items(distortions)
    if levels is not None:
        try:
            grid["levels"] = [int(level) for level in _items(levels)]
        except ValueError:
            raise click.UsageError(f"--levels takes numbers, got {levels!r}") from None
    config = ScoreConfig.from_flat(settings)
    found = run_robustness(
        input,
        output,
        config=config,
        labels=labels,
        split=split,
        impute=impute,
        num_resamples=resamples,
        reporter=console,
        **grid,
    )
    clean, *cells = found.cells
    console.summary(
        f"Robustness: {found.output}",
        {
            "videos": f"{clean.num_fake:,} fake, {clean.num_real:,} real",
            "AUC undistorted": _estimate(clean.auc),
        },
    )
    columns = sorted({cell.level for cell in cells})
    rows: dict[str, list[str]] = {}
    for cell in cells:
        rows.setdefault(str(cell.distortion), []).append(_estimate(cell.auc))
    titles = ("AUC at level", *map(str, columns))
    console.table(titles, [(name, *row) for name, row in rows.items()])
    if found.failed_share > config.limits.max_failures:
        console.error(
            f"{found.failed_share:.1%} of the undistorted videos failed, more than --max-failures "
            f"{config.limits.max_failures:.1%}"
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_COMPLETE


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _estimate(estimate: Any) -> str:
    if estimate.value is None:
        return "-"
    text = f"{estimate.value:.4f}"
    return text if estimate.low is None else f"{text} [{estimate.low:.3f}, {estimate.high:.3f}]"


@click.command()
@click.argument("scores")
@click.argument("output")
@click.option("--checkpoint", required=True, help="The checkpoint that made the scores, alone.")
@_LABELS
@click.option("--split", help="Fit only on videos of this split, such as val.")
@click.option(
    "--method",
    type=click.Choice(("temperature", "platt", "none")),
    default="temperature",
    show_default=True,
    help="How scores become frequencies.",
)
@click.option("--fpr", type=float, help="Most reals called fake, as a share; sets the threshold.")
@storage_flags
@command
def calibrate(
    scores: str,
    output: str,
    checkpoint: str,
    labels: str | None,
    split: str | None,
    method: str,
    fpr: float | None,
    storage: dict[str, Any],
    console: Console,
) -> int:
    """Fit a checkpoint's calibration and threshold to its scores of labelled videos.

    Writes a new checkpoint to OUTPUT; take videos that neither trained it nor test it.

    \b
    effnet-batch calibrate scores/ calibrated.safetensors --checkpoint model.safetensors --split val
    """
    from effnet_batch.pipelines.calibrate import calibrate as run_calibrate
    from effnet_batch.storage import StorageOptions

    found = run_calibrate(
        scores,
        checkpoint,
        output,
        labels=labels,
        split=split,
        method=method,
        fpr=fpr,
        storage=StorageOptions(**storage),
    )
    calibration = found.calibration
    console.summary(
        f"Calibrated: {found.output}",
        {
            "sha256": found.sha256,
            "videos": f"{found.num_fake:,} fake, {found.num_real:,} real",
            "scale and offset": calibration
            and f"{calibration.scale:.4g}, {calibration.offset:.4g}",
            "threshold of fake": f"{found.thresholds.fake:.4f}",
            "log loss": f"{found.log_loss_before:.4f} before, {found.log_loss_after:.4f} after",
        },
    )
    return EXIT_COMPLETE
