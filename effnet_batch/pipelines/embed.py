"""The embedding job: images or videos in object storage to vectors in Parquet, exactly once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from effnet_batch.config import EmbedConfig
from effnet_batch.models.engine import EngineChoice, build_engine
from effnet_batch.models.weights import check_names
from effnet_batch.pipelines.drift import (
    Drift,
    Judged,
    class_scores,
    golden_items,
    measure_drift,
)
from effnet_batch.pipelines.embed_graphs import embed_graph
from effnet_batch.pipelines.embed_workers import EmbedTask
from effnet_batch.pipelines.graphs import run_units
from effnet_batch.pipelines.open_images import open_decoder
from effnet_batch.pipelines.pending import Taper, cut_units, round_up
from effnet_batch.pipelines.placement import Placement, resolve_placement
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.resolution import Nodes, resolved_run
from effnet_batch.pipelines.resolve import Resolved, load_chosen, resolve
from effnet_batch.pipelines.run import Run, open_run
from effnet_batch.pipelines.summary import RunSummary
from effnet_batch.schema import KIND_IMAGE, KIND_VIDEO
from effnet_batch.stages.decode import decode_batch
from effnet_batch.stages.embed import run_batches
from effnet_batch.stages.records import Stamp

_MAX_ROWS_PER_PART = 5_000
_MIN_ROWS_PER_PART = 128
_UNITS_PER_ACTOR = 4
"""Between two units an actor's lanes stand still for a moment, so few let it run on; with fewer
still, the last ones would leave others idle."""


def embed(
    input: str,
    output: str,
    *,
    config: EmbedConfig | None = None,
    update: bool = False,
    retry: Sequence[str] = (),
    reporter: Reporter | None = None,
    **settings: Any,
) -> RunSummary:
    """Embeds every image, or every video, of the input and commits the vectors to the output.

    Running it again finishes what an earlier run left, and does nothing where nothing is left.

    Args:
        input: folder, glob, list of URIs, manifest, shard, image or video; a path or a URL.
            Where it holds images and videos, ``medium`` says which of them to read.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        update: list the input again and take in what is new or changed.
        retry: statuses whose sources are done again.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``model="efficientnet_b0"``.

    Returns:
        What the output holds now.

    Raises:
        ConfigError: wrong settings, unreachable storage, an output of other settings.
        JobError: the job failed; what is committed stays.
    """
    config = EmbedConfig.merged(config, settings)
    check_names(config.model.model, config.model.weights)
    with open_run(
        "embed",
        input,
        output,
        config,
        update=update,
        retry=retry,
        reporter=reporter or Silent(),
        medium=config.medium.medium,
    ) as run:
        config.check_medium(run.medium)
        # Other settings than the output's may mean other numbers, which must not pass unnoticed.
        if run.pending.num_rows or run.stored_resolution() is None:
            if run.medium == KIND_VIDEO:
                # What images do not need: the packages of the extra `video`.
                from effnet_batch.pipelines.embed_videos import embed_videos

                embed_videos(run, config)
            else:
                _embed_images(run, config)
        return run.finish()


def _embed_images(run: Run, config: EmbedConfig) -> None:
    with resolved_run(run, config, resolve, Resolved.from_dict, drift_of_images) as found:
        resolved, nodes = found
        if run.pending.num_rows:
            _embed_pending(run, config, resolved, nodes)


def _embed_pending(run: Run, config: EmbedConfig, resolved: Resolved, nodes: Nodes) -> None:
    placement = resolve_placement(
        config.cluster, resolved.engine, nodes, decodes_on_gpu=resolved.gpu_decode
    )
    # What a unit's last batch lacks is computed all the same. Batches of cards are so large that
    # units of whole ones would leave other cards without any; their engines fill up less of them.
    multiple_of = min(resolved.engine.batch_size, _MIN_ROWS_PER_PART)
    task = EmbedTask(
        config=config,
        storage=run.storage.options,
        output=run.paths.root,
        run_id=run.run_id,
        resolved=resolved,
        num_lanes=placement.num_lanes,
        rows_per_part=_rows_per_part(run.pending.num_rows, config, placement, multiple_of),
    )
    taper = None
    if config.output.rows_per_part is None and placement.num_actors > 1:
        taper = Taper(placement.num_actors, _MIN_ROWS_PER_PART, multiple_of)
    for pending in run.passes():
        units = list(cut_units(pending, task.rows_per_part, first_unit=run.num_units, taper=taper))
        bounded = placement.bounded(len(units))
        run.reporter.message(describe(resolved, bounded))
        run_units(run, units, embed_graph(task, bounded))


def drift_of_images(config: EmbedConfig, resolved: Resolved, sources: pa.Table) -> Drift:
    """Finds out how far the precision moves the vectors of some images, and their classes."""
    limits, size = config.limits, resolved.preprocessing.image_size
    items = golden_items(config, sources, medium=KIND_IMAGE, max_bytes=limits.max_image_bytes)
    # Nobody has seen these images yet, and one of them may kill its decoder.
    with open_decoder(config, resolved.preprocessing, is_suspect=True) as decode:
        frames = decode_batch(list(items), decode, Stamp("", ""), size).frames
    model = load_chosen(config, resolved)

    def judge(choice: EngineChoice) -> Judged:
        engine = build_engine(model, resolved.preprocessing, **dataclasses.asdict(choice))
        vectors = run_batches(frames, engine).embeddings
        return {"images": (vectors, class_scores(model, vectors))}

    return measure_drift(resolved.engine, judge)


def describe(resolved: Resolved, placement: Placement) -> str:
    """Returns one line that says what runs where."""
    engine = resolved.engine
    return (
        f"{resolved.architecture}, weights {resolved.weights}, {engine.name} {engine.precision} "
        f"on {engine.device}, {placement.num_actors} actor(s), {placement.mode}"
    )


def _rows_per_part(
    num_pending: int, config: EmbedConfig, placement: Placement, multiple_of: int
) -> int:
    """Returns how many sources make a part: enough to be no crumb, few enough to lose little."""
    if config.output.rows_per_part is not None:
        return config.output.rows_per_part
    share = round_up(-(-num_pending // (placement.num_actors * _UNITS_PER_ACTOR)), multiple_of)
    most = _MAX_ROWS_PER_PART // multiple_of * multiple_of
    return max(round_up(_MIN_ROWS_PER_PART, multiple_of), min(most, share))
