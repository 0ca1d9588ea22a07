"""What the Ray Data graphs of all jobs share: the pool of actors, and how units go through."""

import warnings
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from effnet_batch.pipelines.placement import Placement
from effnet_batch.pipelines.progress import ProgressBoard, poll_board
from effnet_batch.pipelines.run import Run
from effnet_batch.pipelines.units import Task

RETRIES: Final = 2
"""A task is tried three times: as it is, then twice with its sources isolated."""
_ACTOR_RETRIES: Final = 10
"""The same for a unit in an actor, where one death may cost several tries: those of the units that
wait behind it, and those that Ray sends to the actor before it knows that it is dead."""

Graph = Callable[[ray.data.Dataset, ProgressBoard], ray.data.Dataset]
"""From a dataset of units, a block each, and the progress board to one of receipts."""


def actor_arguments(placement: Placement, num_calls: int = 1) -> dict[str, Any]:
    """Returns the arguments of `map_batches` for the pool of model actors.

    Args:
        placement: size of the pool and of its actors.
        num_calls: how often an actor is called at once.
    """
    return {
        "batch_size": None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "compute": ray.data.ActorPoolStrategy(
            size=placement.num_actors,
            max_concurrent_calls_per_actor=num_calls,
            enable_true_multi_threading=num_calls > 1,
        ),
        "num_cpus": placement.cpus_per_actor,
        # Beside `num_gpus` Ray insists on a number of rows per call, to which it cuts and joins
        # blocks; here a call takes a block as it was made.
        "ray_remote_args_fn": lambda: {"num_gpus": placement.gpus_per_actor},
        # Restarts are free, so that many bad sources may kill an actor each; tries of one unit
        # are not, so that one bad source cannot do it for ever.
        "max_restarts": -1,
        "max_task_retries": _ACTOR_RETRIES,
    }


def actor_graph(worker: type, task: Task, placement: Placement, *, num_calls: int = 1) -> Graph:
    """Returns the graph of one step: an actor does, or has done, all there is to do with a unit."""

    def graph(units: ray.data.Dataset, board: ProgressBoard) -> ray.data.Dataset:
        return units.map_batches(
            worker,
            fn_constructor_kwargs={"task": task, "board": board},
            **actor_arguments(placement, num_calls),
        )

    return graph


def run_units(run: Run, units: list[pa.Table], graph: Graph) -> None:
    """Runs the units of a pass through a graph; the run takes a receipt for every one committed.

    Nothing is collected in the driver: a receipt is a dozen numbers.

    Raises:
        ray.exceptions.RayError: a worker raised or died too often.
    """
    board = ProgressBoard()
    run.num_units += len(units)
    total, before = run.num_pending_records(), run.num_taken()
    with poll_board(board, run.reporter, total, run.take_incomplete, before):
        with warnings.catch_warnings():
            # Retries have no named parameter yet.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Of blocks Ray Data knows the sizes without starting a worker to look at them.
            receipts = graph(ray.data.from_blocks(units), board)
        for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            for receipt in batch.to_pylist():
                run.take(receipt)
