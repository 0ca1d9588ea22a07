# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The commands that train and measure checkpoints."""

import dataclasses
from typing import Any

import click

from effnet_batch.cli_command import EXIT_COMPLETE, command
from effnet_batch.cli_console import Console
from effnet_batch.cli_options import config_options, storage_flags


@click.command()
@click.argument("input", metavar="[MANIFEST]", required=False)
@click.argument("output", required=False)
@config_options("finetune")
@command
def finetune(input: str, output: str, settings: dict[str, Any], console: Console) -> int:
    """Train a forgery classifier on labelled videos; OUTPUT/model.safetensors is what score runs.

    MANIFEST is a list with the columns uri and label (fake, real), best also group (who is seen)
    and split (train, val). Run it again to go on where an earlier run broke off. MANIFEST may also
    be the output of embed --frames or score --embeddings: then the head alone is trained, on stored
    frames, in seconds.

    \b
    effnet-batch finetune videos.csv detector/ --weights efficientnet_b1 --epochs 10
    effnet-batch finetune embeddings/ head/ --network resnet50_lstm --weights resnet50
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
            "clips trained on": found.num_samples,
            "videos validated on": found.num_validated,
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
        cells = []
        for each in measured.values():
            one = each.metrics[name]
            text = "-" if one.value is None else f"{one.value:.4f}"
            cells.append(text if one.low is None else f"{text} [{one.low:.3f}, {one.high:.3f}]")
        rows.append((metric_title(name), *cells))
    console.table(("metric", *measured), rows)
    return EXIT_COMPLETE


@click.command()
@click.argument("scores")
@click.argument("output")
@click.option("--checkpoint", required=True, help="The checkpoint that made the scores, alone.")
@click.option("--labels", help="Manifest or list with uri and label; default: the scored one's.")
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
