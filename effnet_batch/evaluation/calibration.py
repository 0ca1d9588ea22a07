"""Making scores agree with frequencies: temperature and Platt scaling of logits."""

from typing import Final

import numpy as np
import numpy.typing as npt

TEMPERATURE: Final = "temperature"
PLATT: Final = "platt"
METHODS: Final = (TEMPERATURE, PLATT)

_MAX_STEPS: Final = 100
_TOLERANCE: Final = 1e-10


def fit_calibration(
    logits: npt.ArrayLike, labels: npt.ArrayLike, method: str
) -> tuple[float, float]:
    """Fits ``sigmoid(scale * logit + offset)`` to labels by maximum likelihood.

    Temperature scaling (Guo et al., 2017) has no offset; Platt's scaling (1999) has both. Both use
    Platt's targets, (F + 1) / (F + 2) for the F fakes and 1 / (R + 2) for the R reals, which keep
    the result finite where the scores separate the classes.

    Args:
        logits: [N], finite.
        labels: [N], 1 for fake and 0 for real; both must stand in it.
        method: one of `METHODS`.

    Returns:
        Scale, which is positive, and offset.

    Raises:
        ValueError: a class is missing, or higher logits do not go with fakes.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    x = np.asarray(logits, np.float64)
    y = np.asarray(labels, np.float64)
    num_fakes, num_reals = int((y == 1).sum()), int((y == 0).sum())
    if not (num_fakes and num_reals):
        raise ValueError(
            f"calibration needs videos of both classes, got {num_fakes} fake and {num_reals} real"
        )
    targets = np.where(y == 1, (num_fakes + 1) / (num_fakes + 2), 1 / (num_reals + 2))
    # Newton's method on a unit scale; the likelihood is concave.
    unit = max(float(np.abs(x).max()), 1e-12)
    columns = [x / unit, np.ones_like(x)] if method == PLATT else [x / unit]
    design = np.stack(columns, axis=1)
    beta = np.zeros(design.shape[1])
    loss = _loss(design @ beta, targets)
    for _ in range(_MAX_STEPS):
        chance = 1 / (1 + np.exp(-(design @ beta)))
        gradient = design.T @ (chance - targets)
        curvature = design.T @ (design * (chance * (1 - chance))[:, None])
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        # As long as a step does not lower the loss it is halved.
        while (after := _loss(design @ (beta - step), targets)) > loss:
            step = step / 2
            if np.abs(step).max() < _TOLERANCE:
                break
        beta = beta - step
        if np.abs(step).max() < _TOLERANCE * max(1.0, float(np.abs(beta).max())):
            break
        loss = after
    scale = float(beta[0] / unit)
    if scale <= 0:
        raise ValueError(
            "higher scores do not go with fakes here: the labels may be swapped, or the detector "
            "knows nothing of these videos"
        )
    return scale, float(beta[1]) if method == PLATT else 0.0


def _loss(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())
