"""The console draws numbers it is given; no job, no clock and no terminal is needed to see how."""

import datetime
import io
import json
import re

import pytest

from effnet_batch.cli_console import (
    Console,
    format_duration,
    format_rate,
    format_size,
    format_table,
    printable,
    progress_line,
)

NOW = datetime.datetime(2026, 3, 1, 12, 0, 5, tzinfo=datetime.UTC)


class FakeClock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def plain_console(clock: FakeClock, **options: bool) -> tuple[Console, io.StringIO, io.StringIO]:
    stream, results = io.StringIO(), io.StringIO()
    console = Console(stream=stream, results=results, clock=clock, now=lambda: NOW, **options)
    return console, stream, results


def shown_on_terminal(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_log_gets_dated_lines_at_growing_intervals() -> None:
    clock = FakeClock()
    console, stream, _ = plain_console(clock)
    seconds = []
    for second in range(3600):
        clock.seconds = second
        before = stream.tell()
        console.progress(done=second, total=10_000, records_per_second=1.0, eta_seconds=60)
        if stream.tell() > before:
            seconds.append(second)
    assert seconds == [
        0,
        5,
        15,
        35,
        75,
        155,
        315,
        615,
        915,
        1215,
        1515,
        1815,
        2115,
        2415,
        2715,
        3015,
        3315,
    ]
    assert stream.getvalue().splitlines()[1] == (
        "2026-03-01 12:00:05+00:00  5 of 10,000 records · 1.0/s · 1 min left"
    )
    assert "\x1b" not in stream.getvalue()


def test_the_last_line_is_never_left_out_and_never_written_twice() -> None:
    console, stream, _ = plain_console(FakeClock())
    console.progress(done=1, total=3)
    console.progress(done=2, total=3)
    console.progress(done=2, failed=1, total=3)
    console.progress(done=2, failed=1, total=3)
    lines = [line.split("  ")[1] for line in stream.getvalue().splitlines()]
    assert lines == ["1 of 3 records", "3 of 3 records · 1 failed"]


def test_a_terminal_gets_one_line_that_is_drawn_over() -> None:
    stream, results = io.StringIO(), io.StringIO()
    with Console(stream=stream, results=results, is_terminal=True, unit="images") as console:
        for done in range(0, 1001, 100):
            console.progress(
                done=done, failed=2, total=1002, records_per_second=81.2, eta_seconds=47
            )
        console.message("a message in between [bold]as it is[/bold]")
        console.summary("Complete", {"done": 1000, "failed": 2})
    text = shown_on_terminal(stream.getvalue())
    assert "502 of 1,002 images · 2 failed · 81/s · 47 s left" in text
    assert "1,002 of 1,002 images · 2 failed · 81/s" in text.splitlines()[-1]
    assert "a message in between [bold]as it is[/bold]" in text
    assert stream.getvalue().count("\x1b[2K") >= 10  # erased and drawn again, not added below
    assert results.getvalue() == "Complete\n  done    1,000\n  failed  2\n"


def test_a_hostile_name_cannot_steer_the_terminal() -> None:
    for is_terminal in (False, True):
        stream = io.StringIO()
        Console(stream=stream, is_terminal=is_terminal).message("bad\x1b]0;title\x07\rname.jpg")
        assert r"bad\x1b]0;title\x07\rname.jpg" in shown_on_terminal(stream.getvalue())
    assert printable("Grüße/写真 1.jpg") == "Grüße/写真 1.jpg"
    name = "a.jpg\nok  0 failures"
    assert format_table(["uri"], [[name]]) == "uri\na.jpg\\nok  0 failures\n"


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ({"done": 0, "failed": 0, "total": None}, "0 records"),
        ({"done": 12_345, "failed": 0, "total": None}, "12,345 records"),
        ({"done": 9, "failed": 1, "total": 10, "eta_seconds": 0.0}, "10 of 10 records · 1 failed"),
        ({"done": 0, "failed": 0, "total": 0}, "0 of 0 records"),
    ],
)
def test_progress_line(numbers: dict[str, int | None], line: str) -> None:
    missing = {"records_per_second": None, "eta_seconds": None}
    assert progress_line(**{**missing, **numbers}) == line


def test_numbers_are_short() -> None:
    assert [format_rate(rate) for rate in (0.423, 8.14, 81.2, 1234.5)] == [
        "0.42",
        "8.1",
        "81",
        "1,234",
    ]
    seconds = (0.4, 47, 60, 200, 3599.6, 7260, 190_800)
    assert [format_duration(each) for each in seconds] == [
        "0 s",
        "47 s",
        "1 min",
        "3 min 20 s",
        "1 h",
        "2 h 1 min",
        "2 d 5 h",
    ]
    sizes = (0, 640, 999, 1500, 12_000_000, 999_600_000, 5e15)
    assert [format_size(each) for each in sizes] == [
        "0 B",
        "640 B",
        "999 B",
        "1.5 kB",
        "12 MB",
        "1.0 GB",
        "5,000 TB",
    ]


def test_a_table_is_aligned() -> None:
    rows = [("efficientnet_b0", 5_288_548, 0.39), ("resnet50", 25_557_032, None)]
    assert format_table(("model", "parameters", "GMACs"), rows) == (
        "model            parameters  GMACs\n"
        "efficientnet_b0   5,288,548   0.39\n"
        "resnet50         25,557,032      –\n"
    )


def test_json_lines_say_the_same_to_log_collectors():
    stream, results = io.StringIO(), io.StringIO()
    console = Console(stream=stream, results=results, is_json=True, now=lambda: NOW)
    console.message("two\nlines\x1b[31m")
    console.warning("odd")
    console.progress(done=3, failed=1, total=8, records_per_second=2.0)
    console.summary("Complete", {"records": 4, "gone": None})
    console.table(("name", "number"), [("a", 1), ("b", None)])
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"time": NOW.isoformat(), "level": "info", "message": "two\nlines\\x1b[31m"},
        {"time": NOW.isoformat(), "level": "warning", "message": "odd"},
        {
            "time": NOW.isoformat(),
            "level": "info",
            "message": "4 of 8 records · 1 failed · 2.0/s",
            "done": 3,
            "failed": 1,
            "total": 8,
            "records_per_second": 2.0,
        },
    ]
    assert [json.loads(line) for line in results.getvalue().splitlines()] == [
        {"title": "Complete", "records": 4},
        {"name": "a", "number": 1},
        {"name": "b"},
    ]
