# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The command ``effnet-batch cluster``: jobs on a Ray cluster, through its Jobs API."""

import datetime
import sys
from typing import TYPE_CHECKING, Any

import click

from effnet_batch.cli_command import (
    EXIT_COMPLETE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TOO_MANY_FAILURES,
    EXIT_USAGE,
    command,
)
from effnet_batch.cli_console import Console, format_duration, printable
from effnet_batch.cli_options import CONFIGS, changes_option, parse_change
from effnet_batch.config import load_toml
from effnet_batch.errors import ConfigError

if TYPE_CHECKING:
    from effnet_batch.submission import JobCluster, Submission

_address = click.option(
    "--address", metavar="URL", help="Dashboard of the cluster; default: RAY_API_SERVER_ADDRESS."
)
_FINAL_CODES = (EXIT_USAGE, EXIT_TOO_MANY_FAILURES)
"""Exit codes of jobs that would end the same way again."""


@click.group()
def cluster() -> None:
    """Run jobs on a Ray cluster.

    RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) holds the cluster's token.

    \b
    effnet-batch cluster submit score --config jobs/score_videos.toml --address http://HEAD:8265
    """


@cluster.command()
@click.argument("job", type=click.Choice(["embed", "score", "rescore", "finetune", "evaluate"]))
@click.option(
    "--config", metavar="FILE.toml", help="Settings of the job, which name its input and output."
)
@changes_option
@_address
@click.option("--wait", is_flag=True, help="Show the job's log and exit with its exit code.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --wait: submit a job that failed so often again; it goes on where it was.",
)
@click.option(
    "--code",
    type=click.Choice(["project", "image"]),
    default="project",
    show_default=True,
    help="Send this effnet_batch along, or use the one that the cluster's image has.",
)
@click.option(
    "--insecure-forward-env",
    "forwarded",
    metavar="NAME",
    multiple=True,
    help="Give the job this variable. Its value stands in plain text in the cluster's logs.",
)
@command
def submit(
    job: str,
    config: str | None,
    changes: tuple[str, ...],
    address: str | None,
    wait: bool,
    retries: int,
    code: str,
    forwarded: tuple[str, ...],
    console: Console,
) -> int:
    """Submit a job, or join the submission that already works on its output.

    \b
    effnet-batch cluster submit embed --config jobs/embed_images.toml --set model=efficientnet_b4
    effnet-batch cluster submit score --config jobs/score_videos.toml --wait --retries 3
    """
    if retries and not wait:
        raise click.UsageError("--retries needs --wait")
    settings = {**(load_toml(config, job) if config else {}), **dict(map(parse_change, changes))}
    job_input, job_output = (_taken(settings, name) for name in ("input", "output"))
    CONFIGS[job].from_flat(settings)  # a mistake is said here, not by a job an hour later
    from effnet_batch.submission import JobCluster

    jobs = JobCluster(address)
    for left in range(retries, -1, -1):
        submission_id, is_new = jobs.submit(
            job,
            job_input,
            job_output,
            settings,
            ships_project=code == "project",
            forwarded=forwarded,
            log_format=click.get_current_context().find_root().params["log_format"],
        )
        click.echo(submission_id)
        if not is_new:
            console.message(f"{submission_id} already works on {job_output}")
        if not wait:
            return EXIT_COMPLETE
        exit_code = _follow(jobs, submission_id, console)
        if exit_code in (EXIT_COMPLETE, EXIT_INTERRUPTED, *_FINAL_CODES) or not left:
            return exit_code
        console.warning(f"{submission_id} failed; submitting it again, {left} more times at most")
    raise AssertionError("unreachable")


@cluster.command("list")
@_address
@command
def list_submissions(address: str | None, console: Console) -> None:
    """List the submissions that the cluster remembers.

    \b
    effnet-batch cluster list --address http://HEAD:8265
    """
    from effnet_batch.submission import JobCluster

    header = ("submission", "status", "exit code", "started", "ran for", "output")
    console.table(header, [_row(each) for each in JobCluster(address).submissions()])


@cluster.command()
@click.argument("submission")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@_address
@command
def logs(submission: str, follow: bool, address: str | None, console: Console) -> None:
    """Print what a job has said.

    \b
    effnet-batch cluster logs -f score-0f3a9c41d2b7-1
    """
    from effnet_batch.submission import JobCluster

    jobs = JobCluster(address)
    for text in jobs.follow(submission) if follow else [jobs.logs(submission)]:
        _print(text)


@cluster.command()
@click.argument("submission")
@_address
@command
def wait(submission: str, address: str | None, console: Console) -> int:
    """Wait until a job is over; exit with its exit code.

    \b
    effnet-batch cluster wait score-0f3a9c41d2b7-1
    """
    from effnet_batch.submission import JobCluster

    return _exit_code(JobCluster(address).wait(submission), console)


@cluster.command()
@click.argument("submission")
@_address
@command
def stop(submission: str, address: str | None, console: Console) -> None:
    """Stop a job. What it has committed stays; submit it again to go on.

    \b
    effnet-batch cluster stop score-0f3a9c41d2b7-1
    """
    from effnet_batch.submission import JobCluster

    found = JobCluster(address).stop(submission)
    console.message(f"{submission}: {found.status}")


def _follow(jobs: "JobCluster", submission_id: str, console: Console) -> int:
    """Prints a job's log until it is over; returns its exit code."""
    for text in jobs.follow(submission_id):
        _print(text)
    return _exit_code(jobs.wait(submission_id), console)


def _exit_code(found: "Submission", console: Console) -> int:
    """Returns a job's exit code, and says why where the job could not say it itself."""
    if found.is_stopped:
        console.warning(f"{found.submission_id} was stopped")
        return EXIT_INTERRUPTED
    if found.exit_code is not None and 0 <= found.exit_code < 256:
        return found.exit_code
    console.error(f"{found.submission_id} {found.status.lower()}: {found.message}")
    return EXIT_FAILED


def _row(found: "Submission") -> tuple[object, ...]:
    started = found.started_seconds
    local = datetime.datetime.fromtimestamp(started).astimezone() if started else None
    return (
        found.submission_id,
        found.status,
        found.exit_code,
        local and local.isoformat(sep=" ", timespec="seconds"),
        None if found.seconds is None else format_duration(found.seconds),
        found.output,
    )


def _print(text: str) -> None:
    sys.stdout.write(printable(text.expandtabs()))
    sys.stdout.flush()


def _taken(settings: dict[str, Any], name: str) -> str:
    """Takes input or output out of the settings."""
    place = settings.pop(name, None)
    if not isinstance(place, str) or not place:
        raise ConfigError(f"the job has no {name}: name it in the file of --config, or --set it")
    return place
