"""The Ray Data graphs of the embedding job, and where their pieces run."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from effnet_batch.config import ClusterSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.embed_workers import (
    EmbedTask,
    EncodeWorker,
    FusedWorker,
    commit_rows,
    decode_unit,
)

_MAX_CPUS_PER_ACTOR: Final = 4
"""Beyond this, the lanes of one process wait for each other more than another model costs."""
_COMMITS_PER_ACTOR: Final = 2
"""Parts that are written at once while an actor makes the next."""
_RETRIES: Final = 2
"""A task is tried three times: as it is, then twice with its sources isolated."""
_ACTOR_RETRIES: Final = 10
"""The same for a unit in an actor, where one death may cost several tries: those of the units that
wait behind it, and those that Ray sends to the actor before it knows that it is dead."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the work runs, with every ``auto`` resolved."""

    mode: str
    """``fused`` or ``split``."""
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float

    @property
    def num_lanes(self) -> int:
        """Threads of a fused actor that decode and run the model."""
        return max(1, int(self.cpus_per_actor))


def resolve_placement(
    settings: ClusterSettings, engine: EngineChoice, nodes: list[tuple[float, float]]
) -> Placement:
    """Fits the actors to the cluster.

    Args:
        settings: what the user asked for.
        engine: what runs the model; ``cuda`` needs GPUs.
        nodes: CPUs and GPUs of every node.

    Raises:
        ConfigError: no node can hold an actor; says what is missing.
    """
    uses_gpu = engine.device == "cuda"
    mode = settings.placement
    if mode == "auto":
        mode = "split" if uses_gpu else "fused"
    gpus = (settings.gpus_per_actor or 1.0) if uses_gpu else 0.0
    largest = max((cpus for cpus, node_gpus in nodes if node_gpus >= gpus), default=0.0)
    cpus = settings.cpus_per_actor
    if cpus is None:
        cpus = 1.0 if mode == "split" else max(1.0, min(_MAX_CPUS_PER_ACTOR, largest // 1))
    fitting = sum(_num_fitting(node, cpus, gpus) for node in nodes)
    wanted = settings.num_actors
    if mode == "split" and not uses_gpu and wanted is None:
        # Decoding needs CPUs of its own, or the graph waits for ever.
        wanted = max(1, fitting // 2)
    if fitting < (wanted or 1):
        raise ConfigError(
            f"{wanted or 1} model actors of {cpus:g} CPUs and {gpus:g} GPUs do not fit: the "
            f"cluster has room for {fitting} (nodes: "
            + ", ".join(f"{c:g} CPUs and {g:g} GPUs" for c, g in nodes)
            + "); lower num_actors, cpus_per_actor or gpus_per_actor, or add nodes"
        )
    return Placement(mode, wanted or fitting, cpus, gpus)


def _num_fitting(node: tuple[float, float], cpus: float, gpus: float) -> int:
    by_cpu = int(node[0] // cpus)
    return min(by_cpu, int(node[1] // gpus)) if gpus else by_cpu


def run_graph(
    units: Iterator[pa.Table], task: EmbedTask, placement: Placement, board: Any
) -> Iterator[dict[str, Any]]:
    """Runs the units and yields a receipt for every one as it is committed.

    Nothing is collected in the driver: a receipt is a dozen numbers.

    Raises:
        ray.exceptions.RayError: a worker raised or died too often.
    """
    # Of blocks Ray Data knows the sizes without starting a worker to look at them.
    source = ray.data.from_blocks(list(units))
    graph = _fused if placement.mode == "fused" else _split
    with warnings.catch_warnings():
        # Retries have no named parameter yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        receipts = graph(source, task, placement, board)
    for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        yield from batch.to_pylist()


def _fused(
    source: ray.data.Dataset, task: EmbedTask, placement: Placement, board: Any
) -> ray.data.Dataset:
    return source.map_batches(
        FusedWorker,
        fn_constructor_kwargs={"task": task, "board": board},
        **_actors(placement),
    )


def _split(
    source: ray.data.Dataset, task: EmbedTask, placement: Placement, board: Any
) -> ray.data.Dataset:
    # Order is part of a re-execution repeating itself: parts are cut from consecutive rows.
    source.context.execution_options.preserve_order = True
    # A block of decoded rows is larger than this and not half as large again, so Ray passes it on
    # as it was yielded, cut by rows.
    block_bytes = task.rows_per_block * task.frame_bytes
    source.context.target_max_block_size = block_bytes * 4 // 5
    decoded = source.map_batches(
        cast("Any", decode_unit),
        fn_kwargs={"task": task, "board": board},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        max_retries=_RETRIES,
    )
    encoded = decoded.map_batches(
        EncodeWorker, fn_constructor_kwargs={"task": task}, **_actors(placement)
    )
    return encoded.map_batches(
        cast("Any", commit_rows),
        fn_kwargs={"task": task},
        batch_size=task.rows_per_part,
        batch_format="pyarrow",
        # Without a bound, Ray starts a process for every part that waits.
        compute=ray.data.TaskPoolStrategy(size=_COMMITS_PER_ACTOR * placement.num_actors),
        # Any share of a CPU would wait until no unit is left to decode: nothing would be committed.
        num_cpus=0,
        max_retries=_RETRIES,
    )


def _actors(placement: Placement) -> dict[str, Any]:
    """Returns the arguments of `map_batches` for the pool of model actors."""
    return {
        "batch_size": None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "compute": ray.data.ActorPoolStrategy(size=placement.num_actors),
        "num_cpus": placement.cpus_per_actor,
        "num_gpus": placement.gpus_per_actor,
        # Restarts are free, so that many bad images may kill an actor each; tries of one unit
        # are not, so that one bad image cannot do it for ever.
        "max_restarts": -1,
        "max_task_retries": _ACTOR_RETRIES,
    }
