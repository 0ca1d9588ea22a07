"""Which clip is seen when, and how large: an order that depends on seed and epoch alone."""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

_SIDES: Final = range(16, 1025)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One clip's place in an epoch."""

    sample: int
    """Number of the clip."""
    counts: bool
    """False for what only fills the last step, so that it is as long as the others."""


def epoch_plan(num_samples: int, clips_per_step: int, *, seed: int, epoch: int) -> list[Step]:
    """Returns the clips of an epoch in order: each once, and fillers to whole steps.

    Of a step worker r of n takes every n-th from the r-th on (`share_of`), so that it holds the
    same clips however many workers there are.

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


def share_of(
    plan: list[Step], clips_per_step: int, rank: int, num_workers: int
) -> list[list[Step]]:
    """Returns what worker ``rank`` of ``num_workers`` does of every step of a plan.

    Of each step as many: one more than other workers where the step cannot be divided evenly.
    """
    return [
        plan[start + rank : start + clips_per_step : num_workers]
        for start in range(0, len(plan), clips_per_step)
    ]


def side_at(resolutions: Sequence[str], epoch: int) -> int | None:
    """Returns the side that pictures are trained on at in an epoch; None for their own.

    Args:
        resolutions: ``EPOCH:SIDE`` each, from this epoch on; the first epoch is 0.
        epoch: from 0.

    Raises:
        ValueError: one is of another form, they do not start at 0 or do not rise.
    """
    found = None
    before = -1
    for text in resolutions:
        first, _, side = text.partition(":")
        if not (first.isdecimal() and side.isdecimal() and int(side) in _SIDES):
            raise ValueError(
                f"got {text!r}; must be EPOCH:SIDE with a side of {_SIDES[0]} to {_SIDES[-1]}, "
                "such as 0:128"
            )
        if int(first) <= before or (before < 0 and int(first)):
            raise ValueError(f"got {text!r}; epochs start at 0 and rise")
        before = int(first)
        if before <= epoch:
            found = int(side)
    return found
