"""Fine-tuning: labelled videos or images to a checkpoint that inference runs as it is."""

import dataclasses
import functools
import json
from typing import Any, Final

from effnet_batch.config import ActorSettings, FinetuneConfig
from effnet_batch.errors import ConfigError
from effnet_batch.lock import OutputLock
from effnet_batch.pipelines.finetune_images import export_classifier, image_objective
from effnet_batch.pipelines.finetune_videos import export_detector, video_objective
from effnet_batch.pipelines.material import prepared_material
from effnet_batch.pipelines.prepare import prepare
from effnet_batch.pipelines.prepare_images import ResolvedImages
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import new_run_id, storage_options
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, ray_session
from effnet_batch.pipelines.stored_material import is_output, stored_material
from effnet_batch.pipelines.training_group import choose_device, train
from effnet_batch.preflight import check_nodes
from effnet_batch.storage import Storage, canonical_uri, join
from effnet_batch.training.network import build_network
from effnet_batch.training.objective import Objective
from effnet_batch.training.plan import side_at
from effnet_batch.training.tracking import check_tracker, tracked
from effnet_batch.training.videos import VideoObjective
from effnet_batch.training.worker import (
    BEST_FILE,
    METRICS_FILE,
    TrainTask,
    best_epoch,
    epochs_of,
    is_ended,
)

MODEL_FILE: Final = "model.safetensors"
PREPARED_FOLDER: Final = "prepared"
TRAINING_FOLDER: Final = "training"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What `finetune` made."""

    checkpoint: str
    """Canonical URI of the checkpoint: of `score`, or weights of `embed` and `load_model`."""
    sha256: str
    num_epochs: int
    """Epochs that were trained."""
    best_epoch: int
    """The one that was kept."""
    metrics: dict[str, float]
    """Of that epoch's validation: ``log_loss``, of videos ``auc`` and ``accuracy``, of images
    ``top1`` and ``top5``."""
    num_samples: int
    """Clips or images that were trained on."""
    num_validated: int
    """Videos or images that were validated on."""
    left_out: dict[str, int]
    """Records that were neither trained nor validated on, by reason."""
    data_wait_share: float
    """Of the last epoch's steps: share of the time in which the first worker waited for what it
    trains on, also for the first of it."""


def finetune(
    manifest: str,
    output: str,
    *,
    config: FinetuneConfig | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Finetuned:
    """Trains a classifier of videos or images and writes it to ``OUTPUT/model.safetensors``.

    Running it again goes on where an earlier run broke off.

    Args:
        manifest: list, manifest or folder of videos with labels ``fake`` and ``real``; with
            ``group``, so that nobody is in two splits, and ``split`` (``train``, ``val``). Or the
            same of images of any classes, also in shards. Or an output with frame embeddings, on
            which the head alone is trained.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``network="resnet50_lstm"``.

    Raises:
        ConfigError: wrong settings, no labels, a class or a split without records.
        JobError: training failed; what was saved stays.
    """
    if config is None:
        config = FinetuneConfig.from_flat(settings)
    elif settings:
        config = FinetuneConfig.from_flat({**config.to_flat(), **settings})
    _check(config)
    reporter = reporter or Silent()
    storage = Storage(storage_options(config))
    root = canonical_uri(output)
    storage.check_writable(root)
    with (
        OutputLock(storage, join(root, "_lock.json"), new_run_id()),
        ray_session(config.group(ActorSettings).address),
    ):
        folder = join(root, TRAINING_FOLDER)
        if not storage.exists(join(folder, METRICS_FILE)):
            # Hours of preparing are not begun for a training that will be refused.
            choose_device(config, cluster_cpus_and_gpus())
        objective, left_out = _objective(manifest, root, config, storage, reporter)
        for reason, count in sorted(left_out.items()):
            reporter.warning(f"{count:,} {objective.NOUN}s are left out: {reason}")
        with tracked(
            config.tracking.track,
            storage,
            join(folder, METRICS_FILE),
            fingerprint=objective.fingerprint,
            settings={"manifest": manifest, "output": root, **config.to_flat()},
            warn=reporter.warning,
        ):
            task = TrainTask(
                objective=objective,
                folder=folder,
                device="cpu",  # chosen only where training goes on
                nodes=cluster_cpus_and_gpus,
                messages=None,
            )
            if is_ended(storage, task):
                reporter.message("all is trained already")
            else:
                device = choose_device(config, cluster_cpus_and_gpus())
                train(config, dataclasses.replace(task, device=device), reporter)
        target = join(root, MODEL_FILE)
        if isinstance(objective, VideoObjective):
            sha256 = export_detector(storage, folder, target, objective, config, reporter)
        else:
            sha256 = export_classifier(storage, join(folder, BEST_FILE), target)
        return _finetuned(storage, folder, objective, target, sha256, left_out)


def _objective(
    manifest: str, root: str, config: FinetuneConfig, storage: Storage, reporter: Reporter
) -> tuple[Objective, dict[str, int]]:
    """Returns what is trained, prepared in ``OUTPUT/prepared``, and what is left out, by reason."""
    if is_output(manifest, storage):
        material = stored_material(manifest, config, storage, reporter)
        if len(cluster_cpus_and_gpus()) > 1:
            reporter.message("checking that every node can do this job")
            load = functools.partial(build_network, config.network, config.optimisation, storage)
            part = material.videos["clips_uri"][0].as_py()
            check_nodes(root, part, storage, load, reporter.message)
        return video_objective(material, config, storage, reporter)
    prepared = join(root, PREPARED_FOLDER)
    resolved = prepare(manifest, prepared, config, reporter)
    if isinstance(resolved, ResolvedImages):
        return image_objective(prepared, resolved, config, storage, reporter)
    material = prepared_material(prepared, resolved, config, storage)
    return video_objective(material, config, storage, reporter)


def _finetuned(
    storage: Storage,
    folder: str,
    objective: Objective,
    checkpoint: str,
    sha256: str,
    left_out: dict[str, int],
) -> Finetuned:
    lines = storage.read(join(folder, METRICS_FILE)).decode().splitlines()
    epochs = epochs_of(map(json.loads, lines))
    kept = best_epoch(epochs, objective.METRIC)
    return Finetuned(
        checkpoint=checkpoint,
        sha256=sha256,
        num_epochs=len(epochs),
        best_epoch=kept["epoch"],
        metrics={
            name.removeprefix("val_"): value
            for name, value in kept.items()
            if name.startswith("val_")
        },
        num_samples=len(objective.samples),
        num_validated=len(objective.validation),
        left_out=left_out,
        data_wait_share=epochs[-1]["data_wait_share"],
    )


def _check(config: FinetuneConfig) -> None:
    check_tracker(config.tracking.track)
    settings, cluster = config.optimisation, config.cluster
    if settings.clips_per_step < cluster.num_workers:
        raise ConfigError(
            f"--clips-per-step {settings.clips_per_step} is less than --num-workers "
            f"{cluster.num_workers}: every worker needs one"
        )
    least = cluster.min_workers or cluster.num_workers
    if least > cluster.num_workers:
        raise ConfigError(f"--min-workers {least} is more than --num-workers {cluster.num_workers}")
    if settings.mixup and least < cluster.num_workers:
        raise ConfigError(
            "--mixup mixes pairs of a fixed number of workers; leave --min-workers out"
        )
    if settings.mixup and settings.clips_per_step % (2 * cluster.num_workers):
        raise ConfigError(
            f"--mixup mixes the images of a worker in pairs: --clips-per-step "
            f"{settings.clips_per_step} must be a multiple of {2 * cluster.num_workers}"
        )
    try:
        side_at(settings.resolutions, 0)
    except ValueError as error:
        raise ConfigError(f"--resolutions: {error}") from None
