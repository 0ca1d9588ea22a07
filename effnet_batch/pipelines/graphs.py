"""What the Ray Data graphs of all jobs share: where their actors run, and how units go through."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from effnet_batch.config import ActorSettings, ClusterSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.progress import poll_board, start_board
from effnet_batch.pipelines.run import Run

RETRIES: Final = 2
"""A task is tried three times: as it is, then twice with its sources isolated."""
_ACTOR_RETRIES: Final = 10
"""The same for a unit in an actor, where one death may cost several tries: those of the units that
wait behind it, and those that Ray sends to the actor before it knows that it is dead."""
FUSED: Final = "fused"
SPLIT: Final = "split"

_MAX_CPUS_PER_ACTOR: Final = 4
"""Beyond this, the lanes of one process wait for each other more than another model costs."""

Graph = Callable[[ray.data.Dataset, Any], ray.data.Dataset]
"""From a dataset of units, a block each, and the progress board to one of receipts."""


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

    def bounded(self, num_units: int) -> "Placement":
        """Returns the placement with no more actors than there are units."""
        return dataclasses.replace(self, num_actors=min(self.num_actors, num_units))

    def actors(self) -> dict[str, Any]:
        """Returns the arguments of `map_batches` for the pool of model actors."""
        return {
            "batch_size": None,
            "batch_format": "pyarrow",
            "zero_copy_batch": True,
            "compute": ray.data.ActorPoolStrategy(size=self.num_actors),
            "num_cpus": self.cpus_per_actor,
            "num_gpus": self.gpus_per_actor,
            # Restarts are free, so that many bad sources may kill an actor each; tries of one unit
            # are not, so that one bad source cannot do it for ever.
            "max_restarts": -1,
            "max_task_retries": _ACTOR_RETRIES,
        }


def resolve_placement(
    settings: ActorSettings,
    engine: EngineChoice,
    nodes: list[tuple[float, float]],
) -> Placement:
    """Fits the actors to the cluster.

    Args:
        settings: what the user asked for; a job that only runs fused has no ``placement``.
        engine: what runs the model; ``cuda`` needs GPUs.
        nodes: CPUs and GPUs of every node.

    Raises:
        ConfigError: no node can hold an actor; says what is missing.
    """
    uses_gpu = engine.device == "cuda"
    mode = settings.placement if isinstance(settings, ClusterSettings) else FUSED
    if mode == "auto":
        mode = SPLIT if uses_gpu else FUSED
    gpus = (settings.gpus_per_actor or 1.0) if uses_gpu else 0.0
    largest = max((cpus for cpus, node_gpus in nodes if node_gpus >= gpus), default=0.0)
    cpus = settings.cpus_per_actor
    if cpus is None:
        cpus = 1.0 if mode == SPLIT else max(1.0, min(_MAX_CPUS_PER_ACTOR, largest // 1))
    fitting = sum(_num_fitting(node, cpus, gpus) for node in nodes)
    wanted = settings.num_actors
    if mode == SPLIT and not uses_gpu and wanted is None:
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


def run_units(run: Run, units: Sequence[pa.Table], graph: Graph) -> None:
    """Runs the units through a graph; the run takes a receipt for every one that is committed.

    Nothing is collected in the driver: a receipt is a dozen numbers.

    Raises:
        ray.exceptions.RayError: a worker raised or died too often.
    """
    board = start_board()
    with poll_board(board, run.reporter, run.num_pending_records(), run.take_incomplete):
        with warnings.catch_warnings():
            # Retries have no named parameter yet.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Of blocks Ray Data knows the sizes without starting a worker to look at them.
            receipts = graph(ray.data.from_blocks(list(units)), board)
        for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            for receipt in batch.to_pylist():
                run.take(receipt)
