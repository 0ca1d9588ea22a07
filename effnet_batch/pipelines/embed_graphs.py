"""The Ray Data graphs of the embedding job."""

from typing import Any, Final, cast

import ray.data

from effnet_batch.pipelines.embed_workers import (
    EmbedTask,
    EncodeWorker,
    FusedWorker,
    commit_rows,
    decode_unit,
)
from effnet_batch.pipelines.graphs import RETRIES, Graph, actor_arguments, actor_graph
from effnet_batch.pipelines.placement import FUSED, Placement
from effnet_batch.pipelines.progress import ProgressBoard

_COMMITS_PER_ACTOR: Final = 2
"""Parts that are written at once while an actor makes the next."""


def embed_graph(task: EmbedTask, placement: Placement) -> Graph:
    """Returns the graph of the placement's mode."""
    if placement.mode == FUSED:
        return actor_graph(FusedWorker, task, placement)
    return lambda units, board: _split(units, task, placement, board)


def _split(
    units: ray.data.Dataset, task: EmbedTask, placement: Placement, board: ProgressBoard
) -> ray.data.Dataset:
    # Order is part of a re-execution repeating itself: parts are cut from consecutive rows.
    units.context.execution_options.preserve_order = True
    # A block of decoded rows is larger than this and not half as large again, so Ray passes it on
    # as it was yielded, cut by rows.
    block_bytes = task.rows_per_block * task.frame_bytes
    units.context.target_max_block_size = block_bytes * 4 // 5
    decoded = units.map_batches(
        cast("Any", decode_unit),
        fn_kwargs={"task": task, "board": board},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        max_retries=RETRIES,
    )
    encoded = decoded.map_batches(
        EncodeWorker,
        fn_constructor_kwargs={"task": task},
        **actor_arguments(placement, task.calls_at_once),
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
        max_retries=RETRIES,
    )
