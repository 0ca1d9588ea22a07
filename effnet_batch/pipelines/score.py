"""The scoring job: videos in object storage to verdicts with their evidence, exactly once."""

from collections.abc import Sequence
from typing import Any, Final

import ray.data

from effnet_batch.config import ScoreConfig
from effnet_batch.pipelines.graphs import Graph, actor_arguments, run_units
from effnet_batch.pipelines.pending import cut_units
from effnet_batch.pipelines.placement import Placement, resolve_placement
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.resolution import Nodes, resolved_run
from effnet_batch.pipelines.run import Run, open_run
from effnet_batch.pipelines.score_resolve import ResolvedScoring, resolve_scoring
from effnet_batch.pipelines.score_workers import ScoreTask, ScoreWorker
from effnet_batch.pipelines.summary import RunSummary
from effnet_batch.schema import KIND_VIDEO

JOB: Final = "score"

_MAX_VIDEOS_PER_PART: Final = 64
_UNITS_PER_ACTOR: Final = 4


def score(
    input: str,
    output: str,
    *,
    config: ScoreConfig | None = None,
    update: bool = False,
    retry: Sequence[str] = (),
    reporter: Reporter | None = None,
    **settings: Any,
) -> RunSummary:
    """Judges every video of the input and commits one row each to the output.

    Running it again finishes what an earlier run left, and does nothing where nothing is left.

    Args:
        input: folder, glob, list of URIs, manifest, shard or video; local or any fsspec URL.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        update: list the input again and take in what is new or changed.
        retry: statuses whose sources are done again.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``checkpoint=["model.safetensors"]``.

    Returns:
        What the output holds now.

    Raises:
        ConfigError: wrong settings, unreachable storage, an output of other settings.
        JobError: the job failed; what is committed stays.
    """
    if config is None:
        config = ScoreConfig.from_flat(settings)
    elif settings:
        config = ScoreConfig.from_flat({**config.to_flat(), **settings})
    with open_run(
        JOB,
        input,
        output,
        config,
        update=update,
        retry=retry,
        reporter=reporter or Silent(),
        medium=KIND_VIDEO,
    ) as run:
        # Other settings than the output's may mean other numbers, which must not pass unnoticed.
        if run.pending.num_rows or run.stored_resolution() is None:
            with resolved_run(run, config, resolve_scoring, ResolvedScoring.from_dict) as found:
                if run.pending.num_rows:
                    _score_pending(run, config, *found)
        return run.finish()


def _score_pending(run: Run, config: ScoreConfig, resolved: ResolvedScoring, nodes: Nodes) -> None:
    placement = resolve_placement(config.cluster, resolved.engine, nodes)
    share = -(-run.pending.num_rows // (placement.num_actors * _UNITS_PER_ACTOR))
    task = ScoreTask(
        config=config,
        storage=run.storage.options,
        output=run.paths.root,
        run_id=run.run_id,
        resolved=resolved,
        num_lanes=placement.num_lanes,
        rows_per_part=config.output.rows_per_part or _MAX_VIDEOS_PER_PART,
    )
    units = list(cut_units(run.pending, min(task.rows_per_part, share), KIND_VIDEO))
    placement = placement.bounded(len(units))
    for checkpoint in resolved.checkpoints:
        for note in checkpoint.notes:
            run.reporter.warning(f"{checkpoint.info.name}: {note}")
    engine = resolved.engine
    run.reporter.message(
        f"{resolved.model_names}, {engine.engine} {engine.precision} on {engine.device}, "
        f"{placement.num_actors} actor(s) of {placement.num_lanes} videos at once"
    )
    run_units(run, units, _graph(task, placement))


def _graph(task: ScoreTask, placement: Placement) -> Graph:
    def graph(units: ray.data.Dataset, board: Any) -> ray.data.Dataset:
        return units.map_batches(
            ScoreWorker,
            fn_constructor_kwargs={"task": task, "board": board},
            **actor_arguments(placement),
        )

    return graph
