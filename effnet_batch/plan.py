"""What a job will cost: a sample is run, and its costs per record are laid over a cluster.

One actor with one thread works through the sample, so that a thread's seconds in a stage are what
a record costs there. A cluster of ``C`` CPUs and ``G`` GPUs then does ``min(C / c, G / g)`` records
per second, ``c`` being the seconds of decoding and writing and ``g`` those of the model; without
GPUs the model takes CPUs as well, and it is ``C / (c + g)``. Left out are waiting for storage, that
overlaps with work as long as the network is wide enough, and the start of the workers.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from effnet_batch.config import EmbedConfig, InputSettings, JobConfig, ScoreConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.manifest import build_manifest, save_manifest
from effnet_batch.manifest.store import select_sources
from effnet_batch.pipelines.embed import embed
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import storage_options
from effnet_batch.pipelines.score import score
from effnet_batch.pipelines.session import LOCAL, cluster_cpus_and_gpus, ray_session
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.storage import Storage, canonical_uri

DEFAULT_SAMPLE: Final = 64
_ONE_THREAD: Final = {"num_actors": 1, "cpus_per_actor": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What the sample took."""

    num_sources: int
    num_records: int
    stage_seconds: dict[str, float]
    """Seconds of one thread per record, by stage; ``read`` is waiting for storage."""
    bytes_per_record: float
    """Of the output."""
    uses_gpu: bool
    """Whether the model ran on one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machines:
    """A cluster."""

    cpus: float
    gpus: float = 0.0
    price_per_hour: float | None = None
    """Of all of it, in whatever currency."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a cluster will need for all sources."""

    bottleneck: str
    """``decode`` or ``model``, whichever its machines run out of first."""
    records_per_second: float
    hours: float
    price: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Costs of a job, before it is run."""

    num_sources: int
    """Of the whole input."""
    costs: Costs

    @property
    def num_records(self) -> int:
        """Records to expect: shards hold as many as those of the sample."""
        return round(self.num_sources * self.costs.num_records / self.costs.num_sources)

    @property
    def output_bytes(self) -> float:
        """Size of the output to expect."""
        return self.num_records * self.costs.bytes_per_record

    def on(self, machines: Machines) -> Forecast:
        """Returns what a cluster needs.

        Raises:
            ConfigError: it has GPUs and the sample's model ran on a CPU, or the reverse.
        """
        check_kind(machines, uses_gpu=self.costs.uses_gpu)
        seconds = self.costs.stage_seconds
        decode, model = seconds["decode"] + seconds["write"], seconds["model"]
        if machines.gpus:
            rates = {"decode": machines.cpus / decode, "model": machines.gpus / model}
            bottleneck = min(rates, key=lambda stage: rates[stage])
            rate = rates[bottleneck]
        else:
            bottleneck = "decode" if decode > model else "model"
            rate = machines.cpus / (decode + model)
        hours = self.num_records / rate / 3600
        price = None if machines.price_per_hour is None else hours * machines.price_per_hour
        return Forecast(bottleneck=bottleneck, records_per_second=rate, hours=hours, price=price)


def samples_on_gpu(config: JobConfig) -> bool:
    """Returns whether the model of a sample that is run here runs on a GPU."""
    return config.to_flat()["device"] != "cpu" and torch.cuda.is_available()


def check_kind(machines: Machines, *, uses_gpu: bool) -> None:
    """Refuses machines of another kind than the one that a sample runs on.

    Args:
        machines: that a forecast is wanted for.
        uses_gpu: whether the sample's model runs on a GPU.

    Raises:
        ConfigError: they have GPUs and the model runs on a CPU, or the reverse.
    """
    if bool(machines.gpus) != uses_gpu:
        runs_on, has = ("a GPU", "none") if uses_gpu else ("a CPU", "GPUs")
        raise ConfigError(
            f"the sample's model runs on {runs_on} and the cluster has {has}, of which nothing is "
            f"known; plan on a machine of the cluster's kind"
        )


def plan(
    input: str,
    *,
    config: JobConfig,
    sample: int = DEFAULT_SAMPLE,
    reporter: Reporter | None = None,
) -> Plan:
    """Lists an input, runs a sample of it on this machine, and returns what the whole would cost.

    Args:
        input: of the job.
        config: of the job; where it says how many actors work and how wide, one thread does.
        sample: sources to run, taken at random.
        reporter: is told what happens; by default nobody.

    Raises:
        ConfigError: wrong settings, or the input cannot be listed.
        JobError: the sample has no record that the model saw.
    """
    storage = Storage(storage_options(config))
    chosen = config.group(InputSettings)
    sources = build_manifest(input, storage, medium=_medium(config), **dataclasses.asdict(chosen))
    taken = select_sources(sources, sample=sample, seed=chosen.seed)
    with tempfile.TemporaryDirectory(prefix="effnet-batch-plan-") as folder:
        manifest = str(Path(folder, "sample.parquet"))
        save_manifest(storage, canonical_uri(manifest), taken)
        costs = _run_sample(manifest, str(Path(folder, "output")), config, reporter or Silent())
    return Plan(num_sources=sources.num_rows, costs=costs)


def local_machines(costs: Costs) -> Machines:
    """Returns this machine; its GPUs only where the sample ran on one."""
    gpus = torch.cuda.device_count() if costs.uses_gpu else 0
    return Machines(cpus=len(psutil.Process().cpu_affinity()), gpus=gpus)


def cluster_machines(address: str) -> Machines:
    """Returns the machines of a Ray cluster, with all their GPUs.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    with ray_session(address):
        nodes = cluster_cpus_and_gpus()
    return Machines(cpus=sum(cpus for cpus, _ in nodes), gpus=sum(gpus for _, gpus in nodes))


def _medium(config: JobConfig) -> str | None:
    return config.medium.medium if isinstance(config, EmbedConfig) else KIND_VIDEO


def _run_sample(manifest: str, output: str, config: JobConfig, reporter: Reporter) -> Costs:
    changes: dict[str, Any] = {**_ONE_THREAD, "limit": None, "sample": None, "address": LOCAL}
    if isinstance(config, EmbedConfig):
        changes["placement"] = "fused"
    settings = {**config.to_flat(), **changes}
    if isinstance(config, ScoreConfig):
        summary = score(manifest, output, config=ScoreConfig.from_flat(settings), reporter=reporter)
    else:
        summary = embed(manifest, output, config=EmbedConfig.from_flat(settings), reporter=reporter)
    num_records = summary.num_new_records
    if not summary.stage_seconds.get("model") or not num_records:
        raise JobError(f"none of the sample's {num_records} records reached the model")
    return Costs(
        num_sources=summary.report.num_sources,
        num_records=num_records,
        stage_seconds={name: each / num_records for name, each in summary.stage_seconds.items()},
        bytes_per_record=summary.size_bytes / num_records,
        uses_gpu=samples_on_gpu(config),
    )
