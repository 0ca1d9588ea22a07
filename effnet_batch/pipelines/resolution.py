"""Settling every ``auto`` once, on a worker, so that all rows of an output come from one recipe."""

import abc
import contextlib
import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import ray

from effnet_batch.config import (
    ActorSettings,
    DeviceSettings,
    EngineSettings,
    JobConfig,
    ModelActorSettings,
)
from effnet_batch.errors import ConfigError, FingerprintError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.card import CUDACard
from effnet_batch.models.engine import Engine, EngineChoice, build_engine, resolve_engine
from effnet_batch.models.engine_cuda import find_batch_size
from effnet_batch.pipelines.drift import (
    Measure,
    check_drift,
    golden_sources,
    known_drift,
    to_record,
    wants_drift,
)
from effnet_batch.pipelines.pending import first_uri
from effnet_batch.pipelines.run import Run
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, ray_session
from effnet_batch.preflight import check_nodes, check_resources

_PACKAGES: Final = (
    "effnet-batch",
    "torch",
    "torchvision",
    "openvino",
    "ray",
    "pyarrow",
    "pillow",
    "numpy",
    "av",
    "torchcodec",
    "opencv-python-headless",
)

_PLAIN_ENGINE: Final = {
    "device": "cpu",
    "engine": "torch",
    "precision": "fp32",
    "gpu_decode": False,
}

Nodes = list[tuple[float, float]]
"""CPUs and GPUs of every node."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution(abc.ABC):
    """What a run really uses. Plain values; stored in run.json and taken up by a resumed run."""

    engine: EngineChoice
    versions: dict[str, str]
    """Of the libraries; recorded, but no part of the fingerprint."""
    gpu_decode: bool = False
    """Whether a card decodes what it can."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> Fingerprint:
        """What determines the numbers."""

    @property
    @abc.abstractmethod
    def model_names(self) -> str:
        """What the model is called, without secrets, for people and the parts' metadata."""

    @property
    def frames(self) -> dict[str, dict[str, Any]]:
        """What stored frame embeddings depend on, by digest; none are stored where it is empty."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return dataclasses.asdict(self)


_Config = TypeVar("_Config", bound=JobConfig)
_Resolved = TypeVar("_Resolved", bound=Resolution)
_Result = TypeVar("_Result")


@contextlib.contextmanager
def resolved_run(
    run: Run,
    config: _Config,
    resolve: Callable[[_Config], _Resolved],
    restore: Callable[[dict[str, Any]], _Resolved],
    measure: Measure | None = None,
) -> Iterator[tuple[_Resolved, Nodes]]:
    """Connects to Ray, resolves what no earlier run has, and writes run.json.

    Args:
        run: prepared.
        config: of the job.
        resolve: run on a node of the kind that will run the model.
        restore: takes back what `Resolution.to_dict` returned.
        measure: finds out on such a node how far a precision below fp32 moves the numbers.

    Yields:
        What the run uses, and the nodes.

    Raises:
        ConfigError: the settings contradict each other, or no node can run them.
        FingerprintError: the output holds other numbers.
        JobError: the precision moves scores further than the settings allow.
    """
    with ray_session(config.group(ActorSettings).address) as is_own_machine:
        nodes = cluster_cpus_and_gpus()
        if not is_own_machine:
            _check_cluster(run, config, resolve, nodes)
        stored = run.stored_resolution()
        if stored is None:
            run.reporter.message("resolving model, weights and engine")
            resolved = _run_on_worker(
                functools.partial(resolve, config), config, nodes, is_own_machine=is_own_machine
            )
        else:
            resolved = restore(stored)
        drift = known_drift(run) if stored else None
        if measure and not drift and wants_drift(run, resolved.engine.precision):
            job = functools.partial(measure, config, resolved, golden_sources(run))
            found = _run_on_worker(job, config, nodes, is_own_machine=is_own_machine)
            run.reporter.message(str(found))
            drift = to_record(run, found)
        run.begin(resolved.fingerprint, resolved.to_dict(), resolved.frames, drift)
        if drift:
            check_drift(run, drift)
        yield resolved, nodes


def _check_cluster(
    run: Run, config: _Config, resolve: Callable[[_Config], _Resolved], nodes: Nodes
) -> None:
    """Checks what would otherwise fail in the middle of the work, or wait for ever."""
    check_resources(nodes, needs_gpu=_wants_gpu(config, nodes))
    if len(nodes) < 2:
        return
    run.reporter.message("checking that every node can do this job")
    # Any node can run this engine; what is asked is whether it can read what the model needs.
    settings = config.to_flat()
    settings |= {name: value for name, value in _PLAIN_ENGINE.items() if name in settings}
    load = functools.partial(resolve, type(config).from_flat(settings))
    check_nodes(run.paths.root, first_uri(run.pending), run.storage, load, run.reporter.message)


def _wants_gpu(config: JobConfig, nodes: Nodes) -> bool:
    """Returns whether the model shall run on a GPU; without settings of a device it needs none."""
    groups = [getattr(config, field.name) for field in dataclasses.fields(config)]
    devices = {group.device for group in groups if isinstance(group, DeviceSettings)}
    return "cuda" in devices or ("auto" in devices and any(gpus for _, gpus in nodes))


def _run_on_worker(
    job: Callable[[], _Result],
    config: JobConfig,
    nodes: Nodes,
    *,
    is_own_machine: bool,
) -> _Result:
    """Runs a job on a node of the kind that will run the model: one with a GPU if there is one.

    Args:
        job: what to do there.
        config: says what the model shall run on.
        nodes: CPUs and GPUs of every node.
        is_own_machine: the cluster is this machine alone, started by this process. Without a GPU
            this process then finds the same, and saves the seconds that a worker's start takes.
    """
    has_gpu = any(gpus for _, gpus in nodes)
    if is_own_machine and not has_gpu:
        return job()
    num_gpus = int(has_gpu and _wants_gpu(config, nodes))
    task: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=2)(_call)
    result: _Result = ray.get(task.remote(job))
    return result


def _call(job: Callable[[], _Result]) -> _Result:
    return job()


def choose_engine(settings: EngineSettings) -> EngineChoice:
    """Resolves the engine for the machine that this runs on."""
    return resolve_engine(**dataclasses.asdict(settings))


def build_chosen_engine(
    model: Backbone,
    preprocessing: Preprocessing,
    choice: EngineChoice,
    *,
    num_streams: int,
    actors: ModelActorSettings,
    with_logits: bool = False,
) -> Engine:
    """Builds the engine that the run was resolved to, one thread a stream.

    An actor that has a share of a card keeps to that share of its memory.

    Raises:
        FingerprintError: this node runs another precision.
    """
    if choice.device == "cuda":
        CUDACard().limit_memory(_card_share(actors))
    engine = build_engine(
        model,
        preprocessing,
        **dataclasses.asdict(choice),
        num_threads=1,
        num_streams=num_streams,
        with_logits=with_logits,
    )
    if engine.precision != choice.precision:
        raise FingerprintError(
            f"this node runs {engine.precision}, and the run was resolved to {choice.precision}; "
            f"name a precision that every node has, such as --precision fp32"
        )
    return engine


def fit_engine(
    choice: EngineChoice,
    models: Sequence[tuple[Backbone, Preprocessing]],
    config: JobConfig,
    *,
    with_logits: bool = False,
) -> EngineChoice:
    """Finds out whether this machine can run models as chosen, and on a card in what batches.

    Args:
        choice: from `choose_engine`.
        models: what one actor runs.
        config: of the job; a batch size that it names is left alone.
        with_logits: compute logits too.

    Raises:
        ConfigError: it cannot.
    """
    if choice.device == "cuda" and config.group(EngineSettings).batch_size is None:
        share = _card_share(config.group(ModelActorSettings)) / len(models)
        sizes = [
            find_batch_size(
                model,
                preprocessing,
                precision=choice.precision,
                with_logits=with_logits,
                share=share,
            )
            for model, preprocessing in models
        ]
        return dataclasses.replace(choice, batch_size=min(sizes))
    # Any CPU runs fp32, and building takes seconds.
    if (choice.device, choice.precision) != ("cpu", "fp32"):
        for model, preprocessing in models:
            build_engine(model, preprocessing, **dataclasses.asdict(choice))
    return choice


def check_gpu_decode(choice: EngineChoice) -> None:
    """Raises ConfigError where the model does not run on a card that could decode, too."""
    if choice.device != "cuda":
        raise ConfigError(
            "gpu_decode decodes on the GPU that runs the model, and this model runs on a CPU; "
            "leave --gpu-decode out, or choose --device cuda where there is a GPU"
        )


def _card_share(actors: ModelActorSettings) -> float:
    """Returns how much of a card's memory an actor has."""
    return min(1.0, actors.gpus_per_actor or 1.0)


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that numbers may depend on."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
