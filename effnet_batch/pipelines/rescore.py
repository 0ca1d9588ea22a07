"""The rescoring job: stored frame embeddings to new verdicts, with no decoding."""

from typing import Any, Final

from effnet_batch.config import RescoreConfig
from effnet_batch.errors import InputError
from effnet_batch.pipelines.graphs import actor_graph, run_units
from effnet_batch.pipelines.placement import resolve_placement
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.rescore_resolve import ResolvedRescoring, resolve_rescoring
from effnet_batch.pipelines.rescore_run import RescoreRun, cut_units
from effnet_batch.pipelines.rescore_workers import RescoreTask, RescoreWorker
from effnet_batch.pipelines.resolution import Nodes, resolved_run
from effnet_batch.pipelines.run import hold, storage_options
from effnet_batch.pipelines.summary import RunSummary
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, canonical_uri

JOB: Final = "rescore"

_MAX_VIDEOS_PER_PART: Final = 1_024


def rescore(
    embeddings: str,
    output: str,
    *,
    config: RescoreConfig | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> RunSummary:
    """Judges the videos of an output again by the frame embeddings that were stored with it.

    The verdicts are those of a full run with the same settings of sampling and faces. Videos that
    are not ok keep their status. Running it again finishes what an earlier run left, takes in what
    has come since, and does nothing where nothing is left.

    Args:
        embeddings: folder that a job wrote to with ``embeddings``; a path or a URL.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``checkpoint=["head.safetensors"]``.

    Returns:
        What the output holds now.

    Raises:
        ConfigError: wrong settings, no stored frames, unreachable storage.
        FingerprintError: a checkpoint would see other embeddings than those stored.
        JobError: the job failed; what is committed stays.
    """
    config = RescoreConfig.merged(config, settings)
    storage = Storage(storage_options(config))
    paths = OutputPaths(canonical_uri(output))
    run = RescoreRun(JOB, embeddings, config, storage, paths, reporter or Silent(), KIND_VIDEO)
    with hold(run, update=False, retry=()):
        # Other settings than the output's may mean other numbers, which must not pass unnoticed.
        if run.pending.num_rows or run.stored_resolution() is None:
            stored = run.stored

            def resolve(config: RescoreConfig) -> ResolvedRescoring:
                return resolve_rescoring(
                    config,
                    root=canonical_uri(embeddings),
                    settings=stored["config"],
                    frames=stored["frames"],
                )

            with resolved_run(run, config, resolve, ResolvedRescoring.from_dict) as found:
                if run.pending.num_rows:
                    _rescore_pending(run, config, *found)
        return run.finish()


def _rescore_pending(
    run: RescoreRun, config: RescoreConfig, resolved: ResolvedRescoring, nodes: Nodes
) -> None:
    if not set(resolved.stored) <= run.stored["frames"].keys():
        raise InputError(
            f"{run.input} holds other embeddings than those that {run.paths.root} was begun with; "
            "use another output"
        )
    for checkpoint in resolved.checkpoints:
        for note in checkpoint.notes:
            run.reporter.warning(f"{checkpoint.info.name}: {note}")
    placement = resolve_placement(config.cluster, resolved.engine, nodes)
    task = RescoreTask(
        config=config,
        storage=run.storage.options,
        output=run.paths.root,
        run_id=run.run_id,
        resolved=resolved,
        num_lanes=1,
        rows_per_part=_MAX_VIDEOS_PER_PART,
    )
    for pending in filter(len, run.pending.tables()):
        units = list(cut_units(pending, run.num_units))
        bounded = placement.bounded(len(units))
        run.reporter.message(f"{resolved.model_names}, {bounded.num_actors} actor(s)")
        run_units(run, units, actor_graph(RescoreWorker, task, bounded))
