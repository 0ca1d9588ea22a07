"""What a clip's logits cost."""

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

ALL_STEPS: Final = "all_steps"
LAST_STEP: Final = "last_step"
MEAN: Final = "mean"
FRAMES: Final = "frames"
LOSSES: Final = (ALL_STEPS, LAST_STEP, MEAN, FRAMES)
"""Binary cross-entropy summed over all time steps (DeeperForensics-1.0), of the last step, of the
mean logit, and averaged over the steps."""


def clip_losses(
    logits: torch.Tensor,
    lengths: Sequence[int],
    labels: torch.Tensor,
    *,
    loss: str,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Returns the loss of every clip, float [B].

    Args:
        logits: float [B, T].
        lengths: time steps of each clip; what is beyond does not count.
        labels: float [B], 1 for fake.
        loss: one of `LOSSES`.
        label_smoothing: a label of 1 becomes 1 - s/2, one of 0 becomes s/2.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
    steps = torch.as_tensor(list(lengths), device=logits.device)
    is_real = torch.arange(logits.shape[1], device=logits.device) < steps[:, None]
    logits = logits.float()
    if loss in (LAST_STEP, MEAN):
        kept = logits.masked_fill(~is_real, 0)
        chosen = (
            logits.gather(1, steps[:, None] - 1)[:, 0]
            if loss == LAST_STEP
            else kept.sum(dim=1) / steps
        )
        return binary_cross_entropy_with_logits(chosen, targets, reduction="none")
    each = binary_cross_entropy_with_logits(
        logits, targets[:, None].expand_as(logits), reduction="none"
    )
    summed = each.masked_fill(~is_real, 0).sum(dim=1)
    return summed / steps if loss == FRAMES else summed
