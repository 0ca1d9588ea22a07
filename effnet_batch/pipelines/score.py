"""The scoring job: videos in object storage to verdicts with their evidence, exactly once."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from effnet_batch.config import ScoreConfig
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.drift import Drift, Judged, measure_drift
from effnet_batch.pipelines.drift_videos import EncoderKeeper, golden_rows, golden_task
from effnet_batch.pipelines.placement import resolve_placement
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.resolution import Nodes, resolved_run
from effnet_batch.pipelines.run import Run, open_run
from effnet_batch.pipelines.score_resolve import ResolvedScoring, resolve_scoring
from effnet_batch.pipelines.score_workers import ScoreTask, ScoreWorker, build_scorer
from effnet_batch.pipelines.summary import RunSummary
from effnet_batch.pipelines.videos import run_videos
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.stages.score import score_item

JOB: Final = "score"


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
        input: folder, glob, list of URIs, manifest, shard or video; a path or a URL.
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
    config = ScoreConfig.merged(config, settings)
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
            with resolved_run(
                run, config, resolve_scoring, ResolvedScoring.from_dict, drift_of_scores
            ) as found:
                if run.pending.num_rows:
                    _score_pending(run, config, *found)
        return run.finish()


def drift_of_scores(config: ScoreConfig, resolved: ResolvedScoring, sources: pa.Table) -> Drift:
    """Finds out how far the precision moves the scores of some videos, and their embeddings."""

    def judge(choice: EngineChoice) -> Judged:
        task = golden_task(ScoreTask, config, resolved, choice)
        scorer = build_scorer(task)
        encoders = [member.encoder for member in scorer.members]
        keepers = [EncoderKeeper(each, choice.precision) for each in encoders if each is not None]
        members = [
            dataclasses.replace(member, encoder=keeper)
            for member, keeper in zip(scorer.members, keepers, strict=True)
        ]
        scorer = dataclasses.replace(scorer, members=members)
        rows = golden_rows(
            task,
            sources,
            scorer.viewings,
            keepers,
            lambda item, opened, clock: score_item(item, opened, scorer, task.stamp, clock),
        )
        return {row["record_id"]: (vectors, np.array([row["score"]])) for row, vectors in rows}

    return measure_drift(resolved.engine, judge)


def _score_pending(run: Run, config: ScoreConfig, resolved: ResolvedScoring, nodes: Nodes) -> None:
    for checkpoint in resolved.checkpoints:
        for note in checkpoint.notes:
            run.reporter.warning(f"{checkpoint.info.name}: {note}")
    placement = resolve_placement(
        config.cluster, resolved.engine, nodes, decodes_on_gpu=resolved.gpu_decode
    )
    run_videos(run, config, resolved, placement, nodes, ScoreTask, ScoreWorker)
