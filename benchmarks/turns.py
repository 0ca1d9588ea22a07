"""Contestants that do one job in turns, each twice a turn: few items and many.

The steady state is the slope between the two, so that start-up, which users pay once a job, is
shown but decides nothing. Ratios are taken within a turn; the table shows medians.
"""

import dataclasses
import json
import os
import secrets
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from process_tree import Cost, measure

LEAN = "lean"
"""The contestant that the others are compared with."""
OURS = "effnet-batch"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the job."""

    name: str
    command: list[str]
    """The folders of input and output follow, then ``arguments``."""
    arguments: tuple[str, ...] = ()
    share: float = 1.0
    """Of the items that the others get; a slow one needs fewer for an equally long run."""
    parts: str = "*.parquet"
    """Pattern of its files in the output folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What one contestant needed in one turn."""

    items_per_second: float
    """Between the run of few items and the run of many."""
    cpu_seconds_per_item: float
    """The same of the whole process tree."""
    start_up_seconds: float
    """What is left of the run of few items when its items are taken off."""
    first_part_seconds: float
    """Until the first file was committed, in the run of many."""
    start_up_cpu_seconds: float
    peak_pss_bytes: int
    agreement: float
    """How near its results are to the lean process's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """One job and those who do it."""

    contestants: Sequence[Contestant]
    items: str
    """What an item is, in the plural."""
    counts: tuple[int, int]
    """Items of the run of few and of the run of many."""
    make_input: Callable[[Path, int], None]
    """Makes a folder of so many items."""
    read_results: Callable[[list[str]], dict[str, Any]]
    """Parquet files to each item's result by its name."""
    agree: Callable[[Any, Any], float]
    """Compares a result with the lean one; the worst is kept."""
    worst: Callable[[list[float]], float]
    agreement: str
    """The name of what ``agree`` gives."""

    def run(self, folder: Path, repeats: int) -> dict[str, list[Turn]]:
        """Runs all turns, printing each."""
        turns: dict[str, list[Turn]] = {each.name: [] for each in self.contestants}
        for repeat in range(repeats):
            # Each turn begins with another contestant, so that none always comes first.
            first = repeat % len(self.contestants)
            results: dict[str, dict[str, Any]] = {}
            costs = {}
            for each in [*self.contestants[first:], *self.contestants[:first]]:
                costs[each.name] = self._run_twice(each, folder, results)
            for each in self.contestants:
                turn = self._turn(each, costs[each.name], results)
                turns[each.name].append(turn)
                print(f"turn {repeat + 1}: {each.name}: {self._line(turn)}", flush=True)
        return turns

    def print_table(self, turns: dict[str, list[Turn]]) -> None:
        """Prints the medians in Markdown."""
        one = self.items.removesuffix("s")
        print(
            f"\n| contestant | {self.items}/s | × lean | CPU ms/{one} | × lean | start-up s "
            f"| CPU s | first part s | peak PSS MB | {self.agreement} |\n"
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        )

        def median(name: str, field: str, *, over_lean: bool = False) -> float:
            values = [getattr(turn, field) for turn in turns[name]]
            if over_lean:
                base = [getattr(turn, field) for turn in turns.get(LEAN, [])]
                values = [a / b for a, b in zip(values, base, strict=False)]
            return statistics.median(values) if values else float("nan")

        for name in turns:
            print(
                f"| {name} | {median(name, 'items_per_second'):.4g} "
                f"| {median(name, 'items_per_second', over_lean=True):.2f} "
                f"| {1e3 * median(name, 'cpu_seconds_per_item'):.4g} "
                f"| {median(name, 'cpu_seconds_per_item', over_lean=True):.2f} "
                f"| {median(name, 'start_up_seconds'):.1f} "
                f"| {median(name, 'start_up_cpu_seconds'):.1f} "
                f"| {median(name, 'first_part_seconds'):.1f} "
                f"| {median(name, 'peak_pss_bytes') / 1e6:.0f} "
                f"| {median(name, 'agreement'):.5f} |"
            )
        print(f"\n{len(next(iter(turns.values())))} turns, {os.cpu_count()} CPUs, medians")

    def _counts(self, each: Contestant) -> tuple[int, int]:
        few, many = (max(1, int(count * each.share)) for count in self.counts)
        return few, many

    def _run_twice(
        self, each: Contestant, folder: Path, results: dict[str, dict[str, Any]]
    ) -> list[Cost]:
        costs = []
        for count in self._counts(each):
            items = folder / f"first-{count}"
            if not items.exists():
                self.make_input(items, count)
            output = folder / f"out-{secrets.token_hex(4)}"
            costs.append(
                measure(
                    [*each.command, str(items), str(output), *each.arguments],
                    env=_environment(),
                    first_file=(output, each.parts),
                    log=folder / "log",
                )
            )
            files = [str(path) for path in output.glob(each.parts)]
            results[each.name] = self.read_results(files)
            if len(results[each.name]) != count:
                got = len(results[each.name])
                raise RuntimeError(f"{each.name}: {got} results of {count} {self.items}")
        return costs

    def _turn(
        self, each: Contestant, costs: list[Cost], results: dict[str, dict[str, Any]]
    ) -> Turn:
        few, many = self._counts(each)
        seconds = (costs[1].wall_seconds - costs[0].wall_seconds) / (many - few)
        cpu = (costs[1].cpu_seconds - costs[0].cpu_seconds) / (many - few)
        lean = results.get(LEAN, {})
        compared = [
            self.agree(result, lean[name])
            for name, result in results[each.name].items()
            if name in lean
        ]
        assert costs[1].first_file_seconds is not None
        return Turn(
            items_per_second=1 / seconds,
            cpu_seconds_per_item=cpu,
            start_up_seconds=costs[0].wall_seconds - few * seconds,
            first_part_seconds=costs[1].first_file_seconds,
            start_up_cpu_seconds=costs[0].cpu_seconds - few * cpu,
            peak_pss_bytes=max(cost.peak_pss_bytes for cost in costs),
            agreement=self.worst(compared) if compared else float("nan"),
        )

    def _line(self, turn: Turn) -> str:
        return (
            f"{turn.items_per_second:.4g} {self.items}/s, "
            f"{1e3 * turn.cpu_seconds_per_item:.4g} CPU ms each, "
            f"start-up {turn.start_up_seconds:.1f} s, peak {turn.peak_pss_bytes / 1e6:.0f} MB"
        )


def write_json(path: str, turns: dict[str, list[Turn]]) -> None:
    """Writes every turn's figures."""
    rows = {name: [dataclasses.asdict(turn) for turn in kept] for name, kept in turns.items()}
    Path(path).write_text(json.dumps(rows, indent=1))


def _environment() -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent / "peers"), os.environ.get("PYTHONPATH")])
        ),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray 2.60 writes a token into the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
