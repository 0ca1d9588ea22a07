"""What a job says while it runs: a live line on a terminal, plain dated lines in a log.

The console is given numbers and draws them; it asks nobody and starts no thread, so what it shows
can be tested without a job. Progress, messages and warnings go to standard error, results (the
summary, tables) to standard output, so that ``effnet-batch status OUTPUT > file`` keeps only them.
"""

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

FIRST_INTERVAL_SECONDS: Final = 5.0
"""In a log, the second progress line comes this long after the first."""

LAST_INTERVAL_SECONDS: Final = 300.0
"""Each interval is twice the one before, up to this; a day's job writes some 300 lines."""

_LEVELS: Final = {
    "info": ("", ""),
    "warning": ("Warning: ", "yellow"),
    "error": ("Error: ", "bold red"),
}
"""What a line begins with, and its style on a terminal."""


class Console:
    """Draws the progress and the summary of one job.

    Use it as a context manager, so that the live line is left behind in one piece::

        with Console() as console:
            console.message("1,000 images in s3://bucket/images")
            console.progress(done=250, failed=1, total=1000, records_per_second=80.5)
            console.summary("Complete", {"done": 999, "failed": 1})
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        results: TextIO | None = None,
        is_terminal: bool | None = None,
        is_json: bool = False,
        unit: str = "records",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now().astimezone(),
    ) -> None:
        """Opens the console; nothing is written yet.

        Args:
            stream: where progress, messages and warnings go; standard error by default.
            results: where summaries and tables go; standard output by default.
            is_terminal: whether ``stream`` can move its cursor; asked of the stream by default.
            is_json: every line, result and row of a table is a JSON object, for log collectors.
            unit: what is counted, in the plural.
            clock: seconds that only grow, for the intervals of the plain lines.
            now: the wall clock, for the dates of the plain lines.
        """
        self._stream = sys.stderr if stream is None else stream
        self._results = sys.stdout if results is None else results
        if is_terminal is None:
            is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._is_terminal = is_terminal and not is_json
        self._is_json = is_json
        self._unit = unit
        self._clock = clock
        self._now = now
        self._bar: Progress | None = None
        self._interval_seconds = FIRST_INTERVAL_SECONDS
        self._next_line_seconds = -math.inf
        self._last_line: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the live line, leaving its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def progress(
        self,
        *,
        done: int,
        failed: int = 0,
        total: int | None = None,
        records_per_second: float | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Shows how far the job is; call it as often as there are numbers.

        Args:
            done: records written with status ok.
            failed: records written with any other status.
            total: records to write in all; None while shards hide how many they hold.
            records_per_second: current rate; None before there is one.
            eta_seconds: expected remaining time; None where nobody can know.
        """
        line = progress_line(
            done=done,
            failed=failed,
            total=total,
            records_per_second=records_per_second,
            eta_seconds=eta_seconds,
            unit=self._unit,
        )
        if self._is_terminal:
            self._draw(line, done + failed, total)
            return
        is_last = total is not None and done + failed >= total
        if (self._clock() < self._next_line_seconds and not is_last) or line == self._last_line:
            return
        if self._last_line is not None:
            self._interval_seconds = min(2 * self._interval_seconds, LAST_INTERVAL_SECONDS)
        self._next_line_seconds = self._clock() + self._interval_seconds
        self._last_line = line
        rates = {"records_per_second": records_per_second, "eta_seconds": eta_seconds}
        self._write(line, facts={"done": done, "failed": failed, "total": total, **rates})

    def _draw(self, line: str, completed: int, total: int | None) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            terminal = Terminal(file=self._stream, force_terminal=True, highlight=False)
            bar = BarColumn(bar_width=24)
            # Drawn only when there are new numbers: no thread, and nothing flickers.
            self._bar = Progress(
                bar, TextColumn("{task.description}"), console=terminal, auto_refresh=False
            )
            self._bar.add_task("", total=None)
            self._bar.start()
        task = self._bar.task_ids[0]
        # A bar with nothing to do is full, not empty.
        self._bar.update(
            task,
            description=line,
            completed=completed if total != 0 else 1,
            total=total if total != 0 else 1,
            refresh=True,
        )

    def message(self, text: str) -> None:
        """Says something worth knowing, such as where the job runs."""
        self._write(text)

    def warning(self, text: str) -> None:
        """Says something that deserves attention although the job goes on."""
        self._write(text, level="warning")

    def error(self, text: str) -> None:
        """Says why the command failed."""
        self._write(text, level="error")

    def _write(
        self, text: str, *, level: str = "info", facts: Mapping[str, object] | None = None
    ) -> None:
        """Writes one line; ``facts`` are for readers of JSON only."""
        text, stamp = printable(text), self._now()
        if self._is_json:
            line = {"time": stamp.isoformat(), "level": level, "message": text, **(facts or {})}
            self._write_json(self._stream, line)
            return
        label, style = _LEVELS[level]
        text = f"{label}{text}"
        if not self._is_terminal:
            self._stream.write(f"{stamp.isoformat(sep=' ', timespec='seconds')}  {text}\n")
            self._stream.flush()
            return
        from rich.console import Console as Terminal
        from rich.text import Text

        # While a live line stands on the screen, its own console has to write above it.
        if self._bar is None:
            terminal = Terminal(file=self._stream, force_terminal=True, highlight=False)
        else:
            terminal = self._bar.console
        terminal.print(Text(text, style=style), soft_wrap=True)

    @staticmethod
    def _write_json(stream: TextIO, values: Mapping[str, object]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        stream.write(json.dumps(known, default=str) + "\n")
        stream.flush()

    def summary(self, title: str, facts: Mapping[str, object]) -> None:
        """Ends the live line and prints named facts below a title, one a line.

        Args:
            title: one line, such as ``Complete``.
            facts: name to value; an int is printed with thousands separators, None left out.
        """
        self.close()
        if self._is_json:
            self._write_json(self._results, {"title": title, **facts})
            return
        rows = [(name, _cell(value)) for name, value in facts.items() if value is not None]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [title, *(f"  {name:<{width}}  {value}" for name, value in rows)]
        self._results.write("".join(f"{printable(line)}\n" for line in lines))
        self._results.flush()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Prints a table as aligned plain text, numbers to the right."""
        self.close()
        if self._is_json:
            for row in rows:
                self._write_json(self._results, dict(zip(header, row, strict=True)))
            return
        self._results.write(format_table(header, rows))
        self._results.flush()


def progress_line(
    *,
    done: int,
    failed: int,
    total: int | None,
    records_per_second: float | None,
    eta_seconds: float | None,
    unit: str = "records",
) -> str:
    """Returns one line such as ``1,200 of 5,000 records · 3 failed · 81/s · 47 s left``."""
    written = f"{done + failed:,}"
    parts = [f"{written} {unit}" if total is None else f"{written} of {total:,} {unit}"]
    if failed:
        parts.append(f"{failed:,} failed")
    if records_per_second is not None:
        parts.append(f"{format_rate(records_per_second)}/s")
    is_over = total is not None and done + failed >= total
    if eta_seconds is not None and not is_over:
        parts.append(f"{format_duration(eta_seconds)} left")
    return " · ".join(parts)


def format_rate(rate: float) -> str:
    """Returns a rate with the digits that mean something: ``0.42``, ``8.1``, ``81``, ``1,234``."""
    if rate < 1:
        return f"{rate:.2f}"
    return f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}"


def format_duration(seconds: float) -> str:
    """Returns a duration in its two largest units: ``47 s``, ``3 min 20 s``, ``2 d 5 h``."""
    whole = round(seconds)
    for size, name, small_size, small_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            large, rest = divmod(whole, size)
            small = rest // small_size
            return f"{large:,} {name} {small} {small_name}" if small else f"{large:,} {name}"
    return f"{whole} s"


def format_size(size_bytes: float) -> str:
    """Returns a size in decimal units: ``640 B``, ``1.5 MB``, ``12 GB``."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if size < 9.95 and unit != "B" else f"{size:,.0f} {unit}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table as aligned text; a column of numbers is set to the right."""
    cells = [list(header), *([printable(_cell(value)) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    numeric = [
        all(isinstance(row[column], int | float | None) for row in rows)
        for column in range(len(header))
    ]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # A name may hold a line break; what it says after it must not pass for a line of ours.
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "\\n")


def printable(text: str) -> str:
    r"""Returns text with control characters as ``\x1b``: no file's name may steer a terminal."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
