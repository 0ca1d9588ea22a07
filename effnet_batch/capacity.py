"""How many processes the nodes of a cluster hold, by the CPUs and GPUs that each asks for."""

from collections.abc import Sequence
from typing import Final

_GRAINS: Final = 10_000


def num_fitting(node: tuple[float, float], cpus: float, gpus: float) -> int:
    """Returns how many processes a node holds; a share of a GPU is a share of a single one.

    Args:
        node: its CPUs and GPUs.
        cpus: of a process.
        gpus: of a process.
    """
    by_cpu = _grains(node[0]) // _grains(cpus)
    if not gpus:
        return by_cpu
    if gpus < 1:
        return min(by_cpu, int(node[1]) * (_GRAINS // _grains(gpus)))
    return min(by_cpu, int(node[1] // gpus))


def num_beside(
    nodes: Sequence[tuple[float, float]], cpus: float, gpus: float, *, spare: float
) -> int:
    """Returns how many processes leave room on some node for a task, wherever Ray puts them.

    Without it, what the task is to make would be waited for without end.

    Args:
        nodes: CPUs and GPUs of every node.
        cpus: of a process.
        gpus: of a process.
        spare: CPUs that the task asks for.
    """
    num_exhausting = 0
    for node in nodes:
        left = _grains(node[0]) - _grains(spare)
        exhausting = left // _grains(cpus) + 1 if left >= 0 else 0
        if exhausting > num_fitting(node, cpus, gpus):  # something always stays free here
            return sum(num_fitting(node, cpus, gpus) for node in nodes)
        num_exhausting += exhausting
    return max(0, num_exhausting - 1)


def _grains(amount: float) -> int:
    """Returns a resource in the ten-thousandths that Ray counts in, free of rounding."""
    return round(amount * _GRAINS)
