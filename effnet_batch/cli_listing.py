# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The commands that list what there is, and say what is wrong with it."""

from typing import TYPE_CHECKING, Any

import click

from effnet_batch.cli_command import EXIT_COMPLETE, EXIT_FAILED, command
from effnet_batch.cli_console import Console
from effnet_batch.cli_options import config_options, storage_flags

if TYPE_CHECKING:
    from effnet_batch.pipelines.label_check import LabelReport

_contents_option = click.option(
    "--contents",
    is_flag=True,
    help="Also read files of equal size, to find the same one in two splits or under two labels.",
)


@click.command()
@click.argument("input")
@click.argument("manifest")
@click.option("--check", is_flag=True, help="Look for groups in two splits and for missing files.")
@_contents_option
@config_options("manifest")
@command
def manifest(
    input: str,
    manifest: str,
    check: bool,
    contents: bool,
    settings: dict[str, Any],
    console: Console,
) -> int:
    """List INPUT once into a Parquet file that `embed` and `score` take as their INPUT.

    With --check it counts splits and labels, and exits with 1 when a group stands in two splits or
    a file is missing; with --contents also when the same content stands in two splits or has two
    labels. A list that names a source with two labels or in two splits is refused in any case.

    \b
    effnet-batch manifest s3://bucket/images images.manifest.parquet
    effnet-batch manifest videos.csv videos.manifest.parquet --check --contents
    effnet-batch embed images.manifest.parquet s3://bucket/embeddings
    """
    from effnet_batch.pipelines.listing import check_listed, list_input

    facts = list_input(input, manifest, settings)
    if not (check or contents):
        console.summary(f"Manifest: {manifest}", facts)
        return EXIT_COMPLETE
    report = check_listed(manifest, settings, reads_contents=contents)
    console.summary(f"Manifest: {manifest}", {**facts, **report.counts})
    return _tell(report, console)


@click.command()
@click.argument("root")
@click.argument("target")
@click.option("--layout", default="auto", show_default=True, help="Name of the dataset's layout.")
@_contents_option
@storage_flags
@command
def labels(
    root: str,
    target: str,
    layout: str,
    contents: bool,
    storage: dict[str, Any],
    console: Console,
) -> int:
    """Write the labels of a known dataset as a CSV list, and say what leaks between its splits.

    Knows DFDC, FaceForensics++, Celeb-DF, DeeperForensics-1.0, DeepfakeBench, DeepfakeTIMIT,
    folders real and fake, folders named like classes, Flowers-102 and CIFAR-100 (binary version),
    whose images it writes beside TARGET as Parquet shards. Exits with 1 when somebody is in two
    splits.

    \b
    effnet-batch labels /data/Celeb-DF-v2 celeb.csv
    effnet-batch labels /data/Celeb-DF-v2 celeb.csv --contents
    """
    from effnet_batch.pipelines.labels import list_labels
    from effnet_batch.storage import StorageOptions

    found = list_labels(
        root, target, layout=layout, reads_contents=contents, storage=StorageOptions(**storage)
    )
    console.summary(f"Labels: {target}", {"layout": found.layout, **found.report.counts})
    for note in found.notes:
        console.warning(note)
    return _tell(found.report, console)


def _tell(report: "LabelReport", console: Console) -> int:
    """Shows what is wrong; returns the exit code."""
    for problem in report.problems:
        console.error(problem)
    for kind, count in report.num_problems.items():
        console.error(f"{count:,} {kind}")
    return EXIT_FAILED if report.num_problems else EXIT_COMPLETE
