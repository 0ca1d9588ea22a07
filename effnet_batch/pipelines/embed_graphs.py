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
_CPUS_BESIDE_GPU: Final = 0.25
"""What an actor that runs a GPU asks of its node's CPUs by default: decoders need the others."""
_GRAINS: Final = 10_000
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
        ConfigError: the actors do not fit, or leave nothing to decode with; says what is missing.
    """
    uses_gpu = engine.device == "cuda"
    gpus = _gpus_per_actor(settings) if uses_gpu else 0.0
    cpus = settings.cpus_per_actor
    split_cpus = cpus or (_CPUS_BESIDE_GPU if uses_gpu else 1.0)
    mode = settings.placement
    if mode == "auto":
        can_split = uses_gpu and _num_beside_decoding(nodes, split_cpus, gpus) > 0
        mode = "split" if can_split else "fused"
    if mode == "split":
        cpus = split_cpus
    elif cpus is None:
        largest = max((cpus for cpus, node_gpus in nodes if node_gpus >= gpus), default=0.0)
        cpus = max(1.0, min(_MAX_CPUS_PER_ACTOR, largest // 1))
    elif cpus < 1:
        raise ConfigError(
            f"a fused actor decodes beside the model and needs a whole CPU, got {cpus:g}; raise "
            "--cpus-per-actor, or use --placement split"
        )
    fitting = sum(_num_fitting(node, cpus, gpus) for node in nodes)
    room = _num_beside_decoding(nodes, cpus, gpus) if mode == "split" else fitting
    wanted = settings.num_actors
    if wanted is None:
        # On CPUs alone, decoding takes about as many as the model.
        wanted = max(1, room if uses_gpu or mode == "fused" else min(room, fitting // 2))
    if wanted > room:
        cluster = ", ".join(f"{c:g} CPUs and {g:g} GPUs" for c, g in nodes)
        asked = f"{wanted} model actor(s) of {cpus:g} CPUs and {gpus:g} GPUs"
        if wanted > fitting:
            raise ConfigError(
                f"{asked} do not fit: the cluster has room for {fitting} (nodes: {cluster}); lower "
                "--num-actors, --cpus-per-actor or --gpus-per-actor, or add nodes"
            )
        raise ConfigError(
            f"{asked} may leave no whole CPU of any node for decoding: split placement has room "
            f"for {room} (nodes: {cluster}); lower --num-actors or --cpus-per-actor, use "
            "--placement fused, or add CPUs"
        )
    return Placement(mode, wanted, cpus, gpus)


def _gpus_per_actor(settings: ClusterSettings) -> float:
    """Returns the GPUs of one actor: a share of one, or whole ones, as Ray lends them."""
    gpus = 1.0 if settings.gpus_per_actor is None else settings.gpus_per_actor
    if gpus > 1 and gpus % 1:
        raise ConfigError(f"--gpus-per-actor above 1 must be a whole number, got {gpus:g}")
    return gpus


def _num_fitting(node: tuple[float, float], cpus: float, gpus: float) -> int:
    """Returns how many actors a node holds; a share of a GPU is a share of a single one."""
    by_cpu = _grains(node[0]) // _grains(cpus)
    if not gpus:
        return by_cpu
    if gpus < 1:
        return min(by_cpu, int(node[1]) * (_GRAINS // _grains(gpus)))
    return min(by_cpu, int(node[1] // gpus))


def _num_beside_decoding(nodes: list[tuple[float, float]], cpus: float, gpus: float) -> int:
    """Returns how many actors leave a whole CPU of some node, wherever Ray puts them.

    Decoding needs one, or the graph waits for ever.
    """
    num_exhausting = 0
    for node in nodes:
        spare = _grains(node[0]) - _GRAINS
        exhausting = spare // _grains(cpus) + 1 if spare >= 0 else 0
        if exhausting > _num_fitting(node, cpus, gpus):  # something always stays free here
            return sum(_num_fitting(node, cpus, gpus) for node in nodes)
        num_exhausting += exhausting
    return max(0, num_exhausting - 1)


def _grains(amount: float) -> int:
    """Returns a resource in the ten-thousandths that Ray counts in, free of rounding."""
    return round(amount * _GRAINS)


def run_graph(
    units: list[pa.Table], task: EmbedTask, placement: Placement, board: Any
) -> Iterator[dict[str, Any]]:
    """Runs the units and yields a receipt for every one as it is committed.

    Nothing is collected in the driver: a receipt is a dozen numbers.

    Raises:
        ray.exceptions.RayError: a worker raised or died too often.
    """
    # Of blocks Ray Data knows the sizes without starting a worker to look at them.
    source = ray.data.from_blocks(units)
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
        # Beside `num_gpus` Ray insists on a number of rows per call, to which it cuts and joins
        # blocks; here a call takes a block as it was made.
        "ray_remote_args_fn": lambda: {"num_gpus": placement.gpus_per_actor},
        # Restarts are free, so that many bad images may kill an actor each; tries of one unit
        # are not, so that one bad image cannot do it for ever.
        "max_restarts": -1,
        "max_task_retries": _ACTOR_RETRIES,
    }
