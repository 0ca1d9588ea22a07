"""The Ray Data graph that every job on videos runs: sources in, rows per video out."""

from typing import Final

from effnet_batch.config import JobConfig
from effnet_batch.pipelines.graphs import actor_graph, run_units
from effnet_batch.pipelines.pending import Taper, cut_units
from effnet_batch.pipelines.placement import SPLIT, Placement, num_decoding_lanes
from effnet_batch.pipelines.resolution import Nodes, Resolution
from effnet_batch.pipelines.run import Run
from effnet_batch.pipelines.video_workers import VideoTask, VideoWorker
from effnet_batch.schema import KIND_VIDEO

_MAX_VIDEOS_PER_PART: Final = 64
_UNITS_PER_ACTOR: Final = 4
_UNITS_AT_ONCE: Final = 2
"""Of an actor whose videos are decoded elsewhere: while the last videos of one unit are awaited,
the next unit's keep the model busy."""


def run_videos(
    run: Run,
    config: JobConfig,
    resolved: Resolution,
    placement: Placement,
    nodes: Nodes,
    task_type: type[VideoTask],
    worker: type[VideoWorker],
) -> None:
    """Works through the pending videos of a run.

    Args:
        run: prepared and begun.
        config: of the job.
        resolved: what it was resolved to.
        placement: where its actors run.
        nodes: CPUs and GPUs of every node.
        task_type: what its workers are told.
        worker: takes such a task.

    Raises:
        ray.exceptions.RayError: a worker raised or died too often.
    """
    wanted = config.to_flat().get("rows_per_part")
    rows_per_part = wanted or _MAX_VIDEOS_PER_PART
    lanes = num_decoding_lanes(placement, nodes) if placement.mode == SPLIT else placement.num_lanes
    taper = Taper(placement.num_actors, lanes) if not wanted and placement.num_actors > 1 else None
    share = -(-run.pending.num_rows // (placement.num_actors * _UNITS_PER_ACTOR))
    for pending in run.passes():
        first = run.num_units
        units = list(
            cut_units(pending, min(rows_per_part, share), KIND_VIDEO, first_unit=first, taper=taper)
        )
        bounded = placement.bounded(len(units))
        is_split = bounded.mode == SPLIT
        num_lanes = num_decoding_lanes(bounded, nodes) if is_split else bounded.num_lanes
        task = task_type(
            config=config,
            storage=run.storage.options,
            output=run.paths.root,
            run_id=run.run_id,
            resolved=resolved,
            num_lanes=num_lanes,
            rows_per_part=rows_per_part,
            is_split=is_split,
        )
        engine = resolved.engine
        run.reporter.message(
            f"{resolved.model_names}, {engine.name} {engine.precision} on {engine.device}, "
            f"{bounded.num_actors} actor(s) of {num_lanes} videos at once, {bounded.mode}"
        )
        graph = actor_graph(worker, task, bounded, num_calls=_UNITS_AT_ONCE if is_split else 1)
        run_units(run, units, graph)
