# ruff: noqa: D301  click reads \b in a docstring as "keep these lines as they are"
"""The command ``effnet-batch plan``: what a job will cost, before it is run."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from effnet_batch.cli_command import command
from effnet_batch.cli_console import Console, format_duration, format_rate, format_size
from effnet_batch.cli_options import CONFIGS, changes_option, parse_change
from effnet_batch.config import load_toml

if TYPE_CHECKING:
    from effnet_batch.plan import Costs, Forecast


_JOBS = ("embed", "score")


@click.command()
@click.argument("input", required=False)
@click.option("--config", metavar="FILE.toml", help="Settings of the job.")
@changes_option
@click.option(
    "--job",
    type=click.Choice(_JOBS),
    help="Which job; default: the file's, else score where a checkpoint is named, else embed.",
)
@click.option(
    "--sources", type=click.IntRange(min=1), default=64, show_default=True, help="Sources to run."
)
@click.option("--cpus", type=click.FloatRange(min=1), help="CPUs of a cluster without GPUs.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of a cluster.")
@click.option("--cpus-per-gpu", type=click.FloatRange(min=1), help="Its CPUs for each GPU.")
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="Of that whole cluster.")
@command
def plan(
    input: str | None,
    config: str | None,
    changes: tuple[str, ...],
    job: str | None,
    sources: int,
    cpus: float | None,
    gpus: int | None,
    cpus_per_gpu: float | None,
    price_per_hour: float | None,
    console: Console,
) -> None:
    """Run a sample of INPUT here, and say what the whole job takes on this machine and elsewhere.

    Elsewhere is the Ray cluster at `address`, a setting, or RAY_ADDRESS, and a cluster that is
    described. Nothing is written. Where the model shall run on GPUs, this machine must have one of
    their kind: without one, --gpus is refused, and those of the cluster at `address` do not count.

    \b
    effnet-batch plan photos/ --set model=efficientnet_b4 --cpus 64 --price-per-hour 2.50
    effnet-batch plan --config jobs/score_videos.toml --gpus 8 --cpus-per-gpu 12
    """
    if (gpus is None) != (cpus_per_gpu is None) or (gpus and cpus):
        raise click.UsageError("a cluster is described by --cpus, or by --gpus and --cpus-per-gpu")
    settings = {**(load_toml(config) if config else {}), **dict(map(parse_change, changes))}
    settings.pop("output", None)
    place = settings.pop("input", None) if input is None else input
    if not isinstance(place, str):
        raise click.UsageError("INPUT is missing; name it on the command line or in the file")
    named = settings.pop("job", None)
    job = job or named or ("score" if settings.get("checkpoint") else "embed")
    if job not in _JOBS or named not in (None, job):
        raise click.UsageError(
            f"these are settings of {named}; plan tells of {' and '.join(_JOBS)}"
        )
    parsed = CONFIGS[job].from_flat(settings)
    from effnet_batch.plan import (
        Machines,
        check_kind,
        cluster_machines,
        local_machines,
        plan as run_plan,
        samples_on_gpu,
    )

    described = None
    if gpus is not None and cpus_per_gpu is not None:
        described = Machines(cpus=gpus * cpus_per_gpu, gpus=gpus, price_per_hour=price_per_hour)
    elif cpus is not None:
        described = Machines(cpus=cpus, price_per_hour=price_per_hour)
    address = str(settings.get("address") or os.environ.get("RAY_ADDRESS") or "")
    cluster = cluster_machines(address) if address else None
    uncounted = ""
    if cluster is not None and cluster.gpus and not samples_on_gpu(parsed):
        uncounted = f"; its {cluster.gpus:g} GPUs are not counted: the sample ran on a CPU"
        cluster = dataclasses.replace(cluster, gpus=0)
    for machines in (cluster, described):
        if machines is not None:
            check_kind(machines, uses_gpu=samples_on_gpu(parsed))  # before a sample is run in vain
    found = run_plan(place, config=parsed, sample=sources, reporter=console)
    facts: dict[str, Any] = {
        "sources": found.num_sources,
        "records": found.num_records,
        "output": format_size(found.output_bytes),
        **_cost_facts(found.costs),
        **_facts("this machine", found.on(local_machines(found.costs))),
    }
    if cluster is not None:
        ((name, text),) = _facts(f"the cluster, {cluster.cpus:g} CPUs", found.on(cluster)).items()
        facts[name] = text + uncounted
    if described is not None:
        facts |= _facts(f"{described.cpus:g} CPUs, {described.gpus:g} GPUs", found.on(described))
    console.summary(f"{job} of {place}, from {found.costs.num_sources:,} sources", facts)


def _cost_facts(costs: "Costs") -> dict[str, str]:
    """Returns what a record costs in each stage."""
    model = "GPU" if costs.uses_gpu else "CPU"
    units = {"read": "waiting", "decode": "CPU", "model": model, "write": "CPU"}
    return {
        f"  {stage} per record": f"{1000 * costs.stage_seconds[stage]:.1f} ms {unit}"
        for stage, unit in units.items()
    }


def _facts(name: str, forecast: "Forecast") -> dict[str, str]:
    price = "" if forecast.price is None else f", price {forecast.price:,.2f}"
    return {
        name: f"{format_rate(forecast.records_per_second)} records/s, "
        f"{format_duration(forecast.hours * 3600)}{price}; the bottleneck is {forecast.bottleneck}"
    }
