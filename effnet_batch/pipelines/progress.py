"""What workers tell the driver while they work. Nothing that must be right rests on it."""

import collections
import dataclasses
from typing import Any

import ray


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counts for the console."""

    num_records: int
    num_failed: int
    incomplete: tuple[tuple[str, str], ...]
    """Shards that broke off in their middle: URI and reason."""


class ProgressBoard:
    """Counts per unit; a unit that starts again counts from zero."""

    def __init__(self) -> None:
        self._tries: collections.Counter[int] = collections.Counter()
        self._counts: dict[int, tuple[int, int]] = {}
        self._finished = [0, 0]
        self._incomplete: dict[str, str] = {}

    def start(self, unit: int) -> int:
        """Notes that a unit starts; returns how often it has started by now."""
        self._tries[unit] += 1
        self._counts[unit] = (0, 0)
        return self._tries[unit]

    def count(self, unit: int, num_records: int, num_failed: int) -> None:
        """Takes a unit's counts so far."""
        self._counts[unit] = (num_records, num_failed)

    def finish(self, unit: int) -> None:
        """Notes that a unit is committed."""
        records, failed = self._counts.pop(unit, (0, 0))
        self._finished[0] += records
        self._finished[1] += failed

    def incomplete(self, uri: str, reason: str) -> None:
        """Notes a shard that broke off in its middle."""
        if len(self._incomplete) < 100:
            self._incomplete[uri] = reason

    def snapshot(self) -> Snapshot:
        """Returns the counts of this moment."""
        records = self._finished[0] + sum(records for records, _ in self._counts.values())
        failed = self._finished[1] + sum(failed for _, failed in self._counts.values())
        return Snapshot(records, failed, tuple(self._incomplete.items()))


def start_board() -> Any:
    """Returns the handle of a board that lives with the run and needs no CPU of its own."""
    actor = ray.remote(num_cpus=0, max_restarts=-1)(ProgressBoard)
    return actor.remote()
