# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The command ``effnet-batch``. Heavy libraries are imported by the commands that need them."""

from typing import Any

import click

from effnet_batch import __version__
from effnet_batch.cli_cluster import cluster
from effnet_batch.cli_command import (
    EXIT_COMPLETE,
    EXIT_FAILED,
    EXIT_TOO_MANY_FAILURES,
    command as _command,
)
from effnet_batch.cli_console import Console, format_duration, format_size
from effnet_batch.cli_learning import calibrate, evaluate, finetune, robustness
from effnet_batch.cli_listing import labels, manifest
from effnet_batch.cli_options import config_options, storage_flags
from effnet_batch.cli_plan import plan


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="effnet-batch")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="EFFNET_BATCH_LOG_FORMAT",
    help="Lines for people, or a JSON object a line for log collectors.",
)
def main(log_format: str) -> None:
    """Batch jobs with EfficientNet on Ray: images to vectors, videos to verdicts, in Parquet.

    \b
    effnet-batch embed s3://bucket/images s3://bucket/embeddings --model efficientnet_b0
    effnet-batch score s3://bucket/videos s3://bucket/scores --checkpoint detector.safetensors
    effnet-batch verify s3://bucket/embeddings

    Exit codes: 0 complete, 1 the job failed, 2 wrong usage or configuration, 3 complete but more
    records failed than --max-failures allows, 130 interrupted.
    """


@main.command()
@click.argument("input", required=False)
@click.argument("output", required=False)
@config_options("embed")
@click.option("--update", is_flag=True, help="List INPUT again; take in what is new or changed.")
@_command
def embed(input: str, output: str, update: bool, settings: dict[str, Any], console: Console) -> int:
    """Embed every image, or every video, of INPUT and write the vectors to OUTPUT.

    INPUT is a folder, glob, list of URIs, manifest, tar, zip or Parquet shard; local or s3://,
    gs://, az://, https://. Where it holds images and videos, --medium says which to read. A video
    gets one vector, the mean over its sampled frames or the faces in them. Run it again to finish
    what an earlier run left.

    \b
    effnet-batch embed photos/ embeddings/ --model efficientnet_lite0 --top-k 3
    effnet-batch embed clips/ embeddings/ --sampling fps --fps 2 --faces yunet
    """
    from effnet_batch.config import EmbedConfig
    from effnet_batch.pipelines.embed import embed as run_embed

    config = EmbedConfig.from_flat(settings)
    summary = run_embed(input, output, config=config, update=update, reporter=console)
    return _conclude(summary, config.limits.max_failures, console)


@main.command()
@click.argument("input", required=False)
@click.argument("output", required=False)
@config_options("score")
@click.option("--update", is_flag=True, help="List INPUT again; take in what is new or changed.")
@_command
def score(input: str, output: str, update: bool, settings: dict[str, Any], console: Console) -> int:
    """Judge every video of INPUT and write a verdict with its evidence to OUTPUT.

    INPUT is a folder, glob, list of URIs, manifest, tar, zip or Parquet shard; local or s3://,
    gs://, az://, https://. Run it again to finish what an earlier run left.

    \b
    effnet-batch score videos/ scores/ --checkpoint detector.safetensors --faces yunet
    """
    from effnet_batch.config import ScoreConfig
    from effnet_batch.pipelines.score import score as run_score

    config = ScoreConfig.from_flat(settings)
    summary = run_score(input, output, config=config, update=update, reporter=console)
    return _conclude(summary, config.limits.max_failures, console)


@main.command()
@click.argument("input", metavar="EMBEDDINGS", required=False)
@click.argument("output", required=False)
@config_options("rescore")
@_command
def rescore(input: str, output: str, settings: dict[str, Any], console: Console) -> int:
    """Judge the videos of EMBEDDINGS again by their stored frames and write verdicts to OUTPUT.

    EMBEDDINGS is what `score --embeddings` or `embed --frames` wrote. Nothing is decoded; the
    checkpoint must have the backbone that made the embeddings.

    \b
    effnet-batch score videos/ scores/ --checkpoint detector.safetensors --embeddings
    effnet-batch rescore scores/ rescored/ --checkpoint finetuned.safetensors
    """
    from effnet_batch.config import RescoreConfig
    from effnet_batch.pipelines.rescore import rescore as run_rescore

    config = RescoreConfig.from_flat(settings)
    summary = run_rescore(input, output, config=config, reporter=console)
    return _conclude(summary, config.limits.max_failures, console)


@main.command()
@click.argument("output")
@click.option(
    "--status", "statuses", required=True, help="Statuses to do again, separated by commas."
)
@storage_flags
@_command
def retry(output: str, statuses: str, storage: dict[str, Any], console: Console) -> int:
    """Do the failed records of some statuses again.

    \b
    effnet-batch retry embeddings/ --status decode_error,too_large
    """
    from effnet_batch.config import EmbedConfig, ScoreConfig
    from effnet_batch.errors import ConfigError
    from effnet_batch.pipelines.maintain import stored_run

    names = _statuses(statuses)
    run = stored_run(output, **storage)
    if run["job"] == "rescore":
        raise ConfigError(
            f"{output} has the statuses of {run['input']}: retry there, then rescore again"
        )
    settings = {**run["config"], **storage}
    config: Any
    run_job: Any
    if run["job"] == "score":
        from effnet_batch.pipelines.score import score as run_job

        config = ScoreConfig.from_flat(settings)
    else:
        from effnet_batch.pipelines.embed import embed as run_job

        config = EmbedConfig.from_flat(settings)
    summary = run_job(run["input"], output, config=config, retry=names, reporter=console)
    return _conclude(summary, config.limits.max_failures, console)


def _statuses(text: str) -> list[str]:
    from effnet_batch.errors import ConfigError
    from effnet_batch.pipelines.checks import check_retry

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--status names no status")
    check_retry(names)
    return names


def _conclude(summary: Any, max_failures: float, console: Console) -> int:
    """Prints a run's summary; returns its exit code."""
    report = summary.report
    failed = {name: n for name, n in report.records_by_status.items() if name != "ok"}
    for uri, reason in summary.incomplete[:10]:
        console.warning(f"{uri} broke off and is left for the next run: {reason}")
    console.summary(
        f"{summary.state.capitalize()}: {summary.output}",
        {
            "sources": f"{report.num_sources:,} = {report.num_done:,} done + "
            f"{report.num_failed:,} failed + {report.num_pending:,} pending",
            "records": report.num_records,
            **{f"  {name}": count for name, count in failed.items()},
            "this run": f"{summary.num_new_records:,} records in "
            f"{format_duration(summary.seconds)} "
            f"({summary.records_per_second:.1f} records/s, {format_size(summary.size_bytes)})"
            if summary.num_new_records
            else "nothing was left to do",
        },
    )
    for problem in report.problems[:20]:
        console.error(problem)
    if not report.is_proven:
        console.error(f"{report.num_pending:,} sources are not finished; run the command again")
        return EXIT_FAILED
    if report.failed_share > max_failures:
        console.error(
            f"{report.failed_share:.1%} of the records failed, more than --max-failures "
            f"{max_failures:.1%}; see effnet-batch status {summary.output}"
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_COMPLETE


@main.command()
@click.argument("output")
@click.option("--deep", is_flag=True, help="Also read every vector or score, and stored frames.")
@storage_flags
@_command
def verify(output: str, deep: bool, storage: dict[str, Any], console: Console) -> int:
    """Prove that OUTPUT holds every source and record exactly once.

    Exits with 1 and lists what is missing when it does not.

    \b
    effnet-batch verify embeddings/
    """
    from effnet_batch.pipelines.verify import verify as run_verify

    report = run_verify(output, is_deep=deep, **storage)
    console.summary(
        "Every source and every record stands once" if report.is_proven else "Not proven",
        report.counts(),
    )
    for uri in report.pending[:20]:
        console.error(f"not finished: {uri}")
    if report.num_pending > 20:
        console.error(f"and {report.num_pending - 20:,} more")
    for problem in report.problems:
        console.error(problem)
    return EXIT_COMPLETE if report.is_proven else EXIT_FAILED


@main.command()
@click.argument("output")
@click.option(
    "--failures",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many failed records to list.",
)
@storage_flags
@_command
def status(output: str, failures: int, storage: dict[str, Any], console: Console) -> None:
    """Show what OUTPUT holds: counts, failures by kind, throughput.

    \b
    effnet-batch status embeddings/ --failures 50
    """
    from effnet_batch.pipelines.maintain import output_status

    found = output_status(output, num_failures=failures, **storage)
    console.summary(f"{found.state}: {found.output}", found.facts())
    if found.failures:
        console.table(("status", "error", "uri", "member"), found.failures)


@main.command()
@click.argument("output")
@click.option("--html", default="report.html", show_default=True, help="Path or URL of the page.")
@click.option("--seed", default=0, show_default=True, help="Of the random videos.")
@storage_flags
@_command
def report(output: str, html: str, seed: int, storage: dict[str, Any], console: Console) -> None:
    """Write one HTML page of the scores in OUTPUT: counts, histogram, videos with their evidence.

    The page needs no server and no other file. It lists the 1,000 videos of the highest scores and
    200 random ones, each with its timeline and its crops, if any were stored.

    \b
    effnet-batch report scores/ --html scores.html
    """
    from effnet_batch.pipelines.report import write_report

    page = write_report(output, html, seed=seed, **storage)
    counts = {**page.tally.num_by_verdict, **page.tally.num_by_status}
    console.summary(
        f"Report: {page.uri}",
        {
            "videos": page.tally.num_videos,
            **{f"  {name}": count for name, count in counts.items() if name != "ok"},
            "size": format_size(page.size_bytes),
        },
    )


@main.command()
@click.argument("output")
@click.option(
    "--part-bytes", default=256 << 20, show_default=True, help="About how large parts become."
)
@storage_flags
@_command
def compact(output: str, part_bytes: int, storage: dict[str, Any], console: Console) -> None:
    """Rewrite the parts of OUTPUT as fewer, larger ones without superseded rows.

    \b
    effnet-batch compact embeddings/
    """
    from effnet_batch.pipelines.maintain import compact as run_compact

    before, after = run_compact(output, part_bytes=part_bytes, **storage)
    console.summary("Compacted", {"parts before": before, "parts now": after})


@main.command()
@click.argument("output")
@click.option("--uri-list", required=True, help="Text file of the URIs to erase, one per line.")
@storage_flags
@_command
def forget(output: str, uri_list: str, storage: dict[str, Any], console: Console) -> None:
    """Erase sources and everything derived from them from OUTPUT, for good.

    \b
    effnet-batch forget embeddings/ --uri-list deletion-requests.txt
    """
    from effnet_batch.pipelines.maintain import forget as run_forget

    facts = run_forget(output, uri_list, **storage)
    console.summary("Erased", facts)


@main.command()
@click.option("--phi", type=float, help="Compound coefficient: depth 1.2^phi, width 1.1^phi, ...")
@click.option("--width", type=float, help="Width coefficient.")
@click.option("--depth", type=float, help="Depth coefficient.")
@click.option("--resolution", type=int, help="Input side in pixels.")
@click.option("--model", default=None, help="Only this model.")
@click.option("--no-measure", is_flag=True, help="Leave out this machine's images per second.")
@_command
def models(
    phi: float | None,
    width: float | None,
    depth: float | None,
    resolution: int | None,
    model: str | None,
    no_measure: bool,
    console: Console,
) -> None:
    """List the models and their published weights, or measure a scaled model.

    \b
    effnet-batch models
    effnet-batch models --phi 1.5
    effnet-batch models --model resnet50 --width 1.5
    """
    from effnet_batch.models.listing import published_rows, scaled_facts

    if phi is None and width is None and depth is None and resolution is None:
        console.table(*published_rows(model))
        return
    facts = scaled_facts(
        model or "efficientnet_b0",
        phi=phi,
        width=width,
        depth=depth,
        resolution=resolution,
        is_measured=not no_measure,
    )
    console.summary("Scaled model", facts)


@main.command()
@_command
def checkpoints(console: Console) -> None:
    """List published forgery checkpoints: network, protocol, published AUC, licence, where to get.

    \b
    effnet-batch checkpoints
    """
    from effnet_batch.models.listing import checkpoint_rows

    console.table(*checkpoint_rows())


_ELSEWHERE = (cluster, plan, manifest, finetune, evaluate, robustness, calibrate, labels)
for _command_elsewhere in _ELSEWHERE:
    main.add_command(_command_elsewhere)
