"""Which clip is seen when: an order that depends on seed and epoch alone."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One clip's place in an epoch."""

    sample: int
    """Number of the clip."""
    counts: bool
    """False for what only fills the last step, so that every worker has as many clips."""


def epoch_plan(num_samples: int, clips_per_step: int, *, seed: int, epoch: int) -> list[Step]:
    """Returns the clips of an epoch in order: each once, and fillers to whole steps.

    Worker r of n takes every n-th from the r-th on (`share_of`), so that a step holds the same
    clips however many workers there are.

    Args:
        num_samples: clips there are, at least one.
        clips_per_step: clips of a step over all workers.
        seed: of the run.
        epoch: from 0.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    num_filled = -(-num_samples // clips_per_step) * clips_per_step
    return [
        Step(int(order[place % num_samples]), place < num_samples) for place in range(num_filled)
    ]


def share_of(plan: list[Step], rank: int, num_workers: int) -> list[Step]:
    """Returns what worker ``rank`` of ``num_workers`` does of a plan."""
    return plan[rank::num_workers]
