"""A checkpoint whose scores agree with frequencies, and whose threshold has a known price."""

import dataclasses
from typing import Final

import numpy as np

from effnet_batch.errors import ConfigError
from effnet_batch.evaluation.calibration import METHODS, TEMPERATURE, fit_calibration
from effnet_batch.evaluation.metrics import Detections, threshold_at_fpr
from effnet_batch.models.checkpoint_info import Calibration, Thresholds
from effnet_batch.models.checkpoints import load_checkpoint, save_checkpoint
from effnet_batch.pipelines.evaluate import load_scored
from effnet_batch.storage import Storage, StorageOptions, canonical_uri

NO_CALIBRATION: Final = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What `calibrate` wrote."""

    output: str
    sha256: str
    """Of the new checkpoint."""
    num_fake: int
    num_real: int
    calibration: Calibration | None
    thresholds: Thresholds
    log_loss_before: float
    log_loss_after: float


def calibrate(
    scores: str,
    checkpoint: str,
    output: str,
    *,
    labels: str | None = None,
    split: str | None = None,
    method: str = TEMPERATURE,
    fpr: float | None = None,
    storage: StorageOptions | None = None,
) -> Calibrated:
    """Fits a checkpoint's calibration and threshold to its scores of labelled videos.

    Fit on videos that neither trained nor test the checkpoint.

    Args:
        scores: folder that `score` or `rescore` wrote to with this checkpoint alone.
        checkpoint: the checkpoint; stays as it is.
        output: file of the new one.
        labels: as `evaluate`.
        split: fit only on videos of this split, such as ``val``.
        method: ``temperature``, ``platt``, or ``none`` for a threshold alone.
        fpr: share of the reals that may count as fake; None leaves the thresholds as they are.
        storage: how storage is spoken to.

    Raises:
        ConfigError: the scores are of another checkpoint or of several, a class is missing, or
            nothing is asked for.
    """
    if method not in (*METHODS, NO_CALIBRATION):
        raise ConfigError(f"method {method!r}: allowed are {', '.join((*METHODS, NO_CALIBRATION))}")
    if method == NO_CALIBRATION and fpr is None:
        raise ConfigError("method none without a false positive rate changes nothing")
    if fpr is not None and not 0 <= fpr < 1:
        raise ConfigError(f"fpr must lie in 0..1, got {fpr:g}")
    room = Storage(storage or StorageOptions())
    root = canonical_uri(scores)
    loaded = load_checkpoint(checkpoint, storage=room)
    scored, run = load_scored(room, root, labels=labels, split=split)
    used = [each["sha256"] for each in run["resolved"]["checkpoints"]]
    if used != [loaded.sha256]:
        raise ConfigError(
            f"{root} was scored by {len(used)} checkpoint(s) of sha256 {', '.join(used)}; "
            f"{loaded.source} has {loaded.sha256}. Score with it alone first"
        )
    has_score = ~np.isnan(scored.scores)
    logits, targets = scored.logits[has_score], scored.labels[has_score]
    # The stored logits are those of the calibration that the checkpoint may already have.
    info = loaded.info
    scale, offset = 1.0, 0.0
    calibration = info.calibration
    try:
        if method != NO_CALIBRATION:
            scale, offset = fit_calibration(logits, targets, method)
            old = calibration or Calibration(scale=1.0)
            calibration = Calibration(scale=scale * old.scale, offset=scale * old.offset + offset)
        before = Detections(targets, _sigmoid(logits))
        after = Detections(targets, _sigmoid(scale * logits + offset))
        thresholds = info.thresholds
        if fpr is not None:
            lowest = threshold_at_fpr(after, fpr)
            thresholds = Thresholds(fake=lowest, no_forgery_found=lowest)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    new = dataclasses.replace(info, calibration=calibration, thresholds=thresholds)
    return Calibrated(
        output=canonical_uri(output),
        sha256=save_checkpoint(output, loaded.model, new, storage=room),
        num_fake=int((targets == 1).sum()),
        num_real=int((targets == 0).sum()),
        calibration=calibration,
        thresholds=thresholds,
        log_loss_before=before.measure()["log_loss"] or 0.0,
        log_loss_after=after.measure()["log_loss"] or 0.0,
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))
