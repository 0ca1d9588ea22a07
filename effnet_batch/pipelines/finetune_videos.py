"""Fine-tuning on videos: what is trained on, and the detector that comes of it."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import FetchError
from effnet_batch.evaluation.calibration import fit_calibration
from effnet_batch.evaluation.metrics import Detections, threshold_at_fpr
from effnet_batch.models.checkpoint_info import Calibration, CheckpointInfo, Thresholds
from effnet_batch.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from effnet_batch.pipelines.material import Material, count_classes, samples_of, split_videos
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.pipelines.splits import training_fingerprint
from effnet_batch.storage import Storage, join
from effnet_batch.training.videos import VideoObjective
from effnet_batch.training.worker import BEST_FILE, JUDGED_FILE


def video_objective(
    material: Material, config: FinetuneConfig, storage: Storage, reporter: Reporter
) -> tuple[VideoObjective, dict[str, int]]:
    """Returns what is trained, and how many videos are left out, by reason.

    Raises:
        InputError: a split lacks a class that it needs.
    """
    train, validation, lost = split_videos(material.videos, config)
    samples = samples_of(train)
    what = "clips" if material.frames is None else "clips of stored frames"
    reporter.message(
        f"training on {len(samples):,} {what} of {count_classes(train)}, validating on "
        f"{count_classes(validation)}"
    )
    columns = {"clips_uri": "uri", "record_id": "record_id", "label": "label"}
    validation = validation.select(list(columns)).rename_columns(list(columns.values()))
    fingerprint = training_fingerprint(
        config, material.digest, material.start_sha256, samples, validation
    )
    objective = VideoObjective(
        network=config.network,
        optimisation=config.optimisation,
        augmentation=config.augmentation,
        storage=storage.options,
        start_sha256=material.start_sha256,
        fingerprint=fingerprint,
        samples=samples,
        validation=validation,
        info=dataclasses.replace(material.info, training_fingerprint=fingerprint),
        view=material.view,
        frames=material.frames,
    )
    return objective, material.left_out | lost


def export_detector(
    storage: Storage,
    folder: str,
    target: str,
    objective: VideoObjective,
    config: FinetuneConfig,
    reporter: Reporter,
) -> str:
    """Writes the best checkpoint with calibration and thresholds fitted to validation scores.

    Args:
        storage: reads and writes.
        folder: holds the checkpoint that training kept, and its logits.
        target: URI of the one to write.
        objective: what was trained.
        config: what is fitted.
        reporter: is told what could not be.

    Returns:
        The SHA-256 of the file.
    """
    found = load_checkpoint(join(folder, BEST_FILE), storage=storage)
    logits = np.array(_judged(storage, folder, found, objective, reporter), np.float64)
    labels = objective.validation["label"].to_numpy()
    info = _fitted(found.info, logits, labels, config, reporter)
    return save_checkpoint(target, found.model, info, storage=storage)


def _judged(
    storage: Storage,
    folder: str,
    best: Checkpoint,
    objective: VideoObjective,
    reporter: Reporter,
) -> Sequence[float]:
    """Returns the best checkpoint's logits of what is validated on, computed if none were kept."""
    with contextlib.suppress(FetchError, ValueError, KeyError, TypeError):
        kept = json.loads(storage.read(join(folder, JUDGED_FILE)))
        if kept["sha256"] == best.sha256:
            logits: list[float] = kept["judged"]
            return logits
    reporter.message("judging again what is validated on: no logits of the best epoch were kept")
    # Nothing is trained on here.
    validation = dataclasses.replace(objective, samples=objective.samples.slice(0, 0))
    clips = validation.open(storage, feed_cpus=0.0)
    return clips.judge(best.model, objective.validation, device="cpu")


def _fitted(
    info: CheckpointInfo,
    logits: np.ndarray,
    labels: np.ndarray,
    config: FinetuneConfig,
    reporter: Reporter,
) -> CheckpointInfo:
    """Returns the description with what could be fitted; a detector that knows nothing has none."""
    export = config.export
    try:
        if export.calibration != "none":
            scale, offset = fit_calibration(logits, labels, export.calibration)
            info = dataclasses.replace(info, calibration=Calibration(scale=scale, offset=offset))
        if export.target_fpr is not None:
            scores = [info.calibrated(logit)[1] for logit in logits.tolist()]
            lowest = threshold_at_fpr(Detections(labels, scores), export.target_fpr)
            thresholds = Thresholds(fake=lowest, no_forgery_found=lowest)
            info = dataclasses.replace(info, thresholds=thresholds)
    except ValueError as error:
        reporter.warning(f"the checkpoint is not calibrated: {error}")
    return info
