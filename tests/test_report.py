"""The page of a scoring output: every number against the Parquet, every hostile name as text."""

import base64
import collections
import html.parser
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chromium import Chromium, find_chromium
from click.testing import CliRunner
from PIL import Image
from scored_output import FAKE_FROM, HOSTILE, NO_FORGERY_BELOW, video_row, write_output

from effnet_batch.cli import main
from effnet_batch.pipelines.maintain import compact

NUM_VIDEOS = 1_250
HOSTILE_FROM = 106
"""The first of some videos in a row that have a score."""
SECRET = "wJalrXUtnFEMI"
VOID = {"meta", "link", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """The elements of a page as a browser would see them: tag, attributes, text, children."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root: dict[str, Any] = {"tag": "", "attrs": {}, "children": [], "text": ""}
        self._open = [self.root]
        self.feed(text)
        assert len(self._open) == 1, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "children": [], "text": ""}
        self._open[-1]["children"].append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data


def find(element: dict[str, Any], tag: str, **attrs: str) -> list[dict[str, Any]]:
    found = []
    for child in element["children"]:
        if child["tag"] == tag and attrs.items() <= child["attrs"].items():
            found.append(child)
        found += find(child, tag, **attrs)
    return found


def everything(element: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in element["children"]:
        yield child
        yield from everything(child)


def texts(row: dict[str, Any]) -> list[str]:
    return [" ".join(cell["text"].split()) for cell in find(row, "td")]


def listed(page: Page, name: str) -> list[dict[str, Any]]:
    (section,) = find(page.root, "section", id=name)
    return find(section, "tbody")


def uri_of(body: dict[str, Any]) -> str:
    return str(find(body, "summary")[0]["text"])


def run_report(output: Path, html: Path, *flags: str) -> Page:
    done = CliRunner().invoke(main, ["report", str(output), "--html", str(html), *flags])
    assert done.exit_code == 0, done.output
    return Page(html.read_text())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "scores"
    names = dict(enumerate(HOSTILE, start=HOSTILE_FROM))
    rows = [video_row(number) for number in range(40)]  # superseded by what follows
    rows += [
        video_row(number, names.get(number), attempt=2 if number < 40 else 1)
        for number in range(NUM_VIDEOS)
    ]
    write_output(root, rows)
    run = json.loads((root / "run.json").read_text())
    run["config"] = {"endpoint_url": f"https://key:{SECRET}@host"}
    (root / "run.json").write_text(json.dumps(run))
    return root


@pytest.fixture(scope="module")
def expected(output: Path) -> dict[str, dict[str, Any]]:
    """The rows that a reader must see, straight from the Parquet files."""
    found: dict[str, dict[str, Any]] = {}
    for part in sorted((output / "data").iterdir()):
        for row in pq.read_table(part).to_pylist():
            if row["uri"] not in found or row["attempt"] > found[row["uri"]]["attempt"]:
                found[row["uri"]] = row
    assert len(found) == NUM_VIDEOS
    return found


@pytest.fixture(scope="module")
def written(output: Path, expected: dict[str, dict[str, Any]]) -> Path:
    path = output.parent / "page.html"
    run_report(output, path)
    return path


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text())


def test_counts_are_those_of_the_parquet(page: Page, expected: dict[str, dict[str, Any]]) -> None:
    rows = expected.values()
    outcomes = collections.Counter(row["verdict"] or row["status"] for row in rows)
    (table,) = find(page.root, "table", id="outcomes")
    found = {cells[0]: cells[1:] for cells in map(texts, find(table, "tr")[1:])}
    assert found == {
        name.replace("_", " "): [str(count), f"{count / NUM_VIDEOS:.1%}"]
        for name, count in outcomes.items()
    }
    assert len(found) == 6
    assert [tile["text"] for tile in find(page.root, "b")] == [
        f"{NUM_VIDEOS:,}",
        str(outcomes["fake"]),
        str(outcomes["undecided"]),
        str(outcomes["no_forgery_found"]),
        str(sum(row["status"] != "ok" for row in rows)),
    ]
    bins = collections.Counter(
        min(19, math.floor(row["score"] * 20)) for row in rows if row["score"] is not None
    )
    (table,) = find(page.root, "table", id="bins")
    assert [texts(row)[1] for row in find(table, "tr")[1:]] == [str(bins[i]) for i in range(20)]
    (plot,) = find(page.root, "svg", id="histogram")
    heights = [
        float(bar["attrs"]["height"])
        for bar in find(plot, "rect")
        if str(bar["attrs"]["class"]).startswith("bar")
    ]
    highest = max(bins.values())
    assert heights == [pytest.approx(bins[i] / highest * 140, abs=0.06) for i in range(20)]
    (table,) = find(page.root, "table", id="failures")
    failures = collections.Counter(row["error_type"] for row in rows if row["error_type"])
    assert {cells[1]: cells[2] for cells in map(texts, find(table, "tr")[1:])} == {
        name: str(count) for name, count in failures.items()
    }


def test_the_table_has_the_thousand_highest_scores(
    page: Page, expected: dict[str, dict[str, Any]]
) -> None:
    scored = [row for row in expected.values() if row["score"] is not None]
    scored.sort(key=lambda row: (-row["score"], -row["logit"], row["record_id"]))
    assert len(scored) > 1_000
    bodies = listed(page, "top")
    assert [uri_of(body) for body in bodies] == [row["uri"] for row in scored[:1_000]]
    for number, (body, row) in enumerate(zip(bodies, scored, strict=False), start=1):
        cells = texts(find(body, "tr")[0])
        assert cells[:5] == [
            str(number),
            f"{row['score']:.3f}",
            row["verdict"].replace("_", " "),
            row["uri"].rsplit("/", 1)[-1],
            row["label"] or "",
        ]
        assert cells[6:] == ["0.6–2.4 s", str(len(row["tracks"]))]
        values = [cell["attrs"].get("data-value") for cell in find(body, "td")]
        assert float(values[1] or 0) == row["score"]
        assert float(values[5] or 0) == row["duration_seconds"]


def test_the_random_videos_depend_on_the_seed_alone(
    output: Path, written: Path, page: Page, expected: dict[str, dict[str, Any]]
) -> None:
    first = [uri_of(body) for body in listed(page, "random")]
    assert len(set(first)) == 200
    statuses = {expected[uri]["status"] for uri in first}
    assert len(statuses) > 1, "only videos with a score were drawn"
    again = output.parent / "again.html"
    other = run_report(output, again, "--seed", "1")
    assert 0 < len(set(first) & {uri_of(body) for body in listed(other, "random")}) < 100
    assert compact(str(output))[0] > 1
    run_report(output, again)
    assert again.read_bytes() == written.read_bytes()


def test_a_timeline_shows_every_frame_or_the_highest_of_each_stretch(
    page: Page, expected: dict[str, dict[str, Any]]
) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    for body in listed(page, "top"):
        row = expected[uri_of(body)]
        (plot,) = [svg for svg in find(body, "svg") if svg["attrs"].get("class") == "timeline"]
        left, right, bottom, top = 34, 712, 140, 10
        width = (right - left) / row["duration_seconds"]
        lines = {group["children"][0]["text"]: find(group, "path") for group in find(plot, "g")}
        assert list(lines) == [f"track {track['track']}" for track in reversed(row["tracks"])]
        for track in row["tracks"]:
            frames = track["frames"]
            paths = lines[f"track {track['track']}"]
            points = [
                tuple(map(float, point.split()))
                for point in re.split("[ML]", str(paths[0]["attrs"]["d"]))[1:]
            ]
            if len(frames) > 240:
                kinds["long"] += 1
                assert len(points) == 240
                assert len(paths) == 1
                best = max(frame["score"] for frame in frames)
                assert min(y for _, y in points) == round(bottom - best * (bottom - top), 1)
                continue
            kinds["short"] += 1
            assert len(paths) == 2
            for (x, y), frame in zip(points, frames, strict=True):
                assert x == pytest.approx(left + frame["pts_seconds"] * width, abs=0.06)
                assert y == pytest.approx(bottom - frame["score"] * (bottom - top), abs=0.06)
        (span,) = find(plot, "rect")
        assert float(span["attrs"]["x"]) == pytest.approx(left + 0.6 * width, abs=0.06)
        assert float(span["attrs"]["width"]) == pytest.approx(1.8 * width, abs=0.06)
        levels = [
            float(line["attrs"]["y1"])
            for line in find(plot, "line")
            if line["attrs"]["class"] == "threshold"
        ]
        assert levels == [140 - FAKE_FROM * 130, 140 - NO_FORGERY_BELOW * 130]
    assert min(kinds["long"], kinds["short"]) >= 5


def test_stored_crops_are_shown_small(page: Page, expected: dict[str, dict[str, Any]]) -> None:
    num_with_crops = 0
    for body in listed(page, "top"):
        row, pictures = expected[uri_of(body)], find(body, "img")
        assert len(pictures) == (6 if row["crops"] else 0)
        if not row["crops"]:
            continue
        num_with_crops += 1
        assert "and 2 more in the output" in body["text"]
        assert pictures[0]["attrs"]["alt"] == "crop of track 0 at 0.0 s, score 0.900"
        head, data = str(pictures[2]["attrs"]["src"]).split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (128, 128)
            assert picture.getpixel((64, 64)) == pytest.approx((60, 90, 60), abs=4)
    assert num_with_crops > 20


def test_hostile_names_are_text_and_secrets_are_nowhere(written: Path, page: Page) -> None:
    bdis = {element["text"] for element in find(page.root, "bdi")}
    assert bdis >= {
        f"s3://archive/day {number % 7}/{name}"
        for number, name in enumerate(HOSTILE, start=HOSTILE_FROM)
    }
    assert len(find(page.root, "script")) == 1
    attributes = {name for element in everything(page.root) for name in element["attrs"]}
    assert [name for name in attributes if name.startswith(("on", "style"))] == []
    assert attributes & {"src", "href", "srcset", "action", "formaction"} == {"src", "href"}
    targets = [e["attrs"]["src"] for e in find(page.root, "img")]
    targets += [e["attrs"]["href"] for e in find(page.root, "link")]
    assert all(target.startswith("data:") for target in targets)
    assert SECRET not in written.read_text()


def test_other_outputs_are_refused_and_an_empty_one_has_a_page(
    output: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path / "empty", [])
    page = run_report(tmp_path / "empty", tmp_path / "empty.html")
    assert [tile["text"] for tile in find(page.root, "b")] == ["0"] * 4
    assert listed(page, "top") == []
    run = json.loads((output / "run.json").read_text())
    del run["resolved"]["thresholds"]
    (tmp_path / "empty" / "run.json").write_text(json.dumps({**run, "job": "embed"}))
    path = str(tmp_path / "none.html")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "empty"), "--html", path])
    assert done.exit_code == 2
    assert "holds no scores but what `embed` wrote" in capfd.readouterr().err
    assert not Path(path).exists()


def test_a_browser_sorts_and_filters_it_and_runs_nothing_else(
    written: Path, expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on PATH")
    uris = "[...document.querySelectorAll('#top tbody:not([hidden]) summary')].map(e=>e.innerText)"
    header = "document.querySelectorAll('#top th')"
    with Chromium(executable) as browser:
        (tmp_path / "control.html").write_text(f"{HOSTILE[0]}{HOSTILE[1]}<img src=http://[::1]/>")
        browser.open(tmp_path / "control.html")
        assert browser.evaluate("window.stolen") == 2
        assert "http://[::1]/" in browser.requests

        browser.open(written)
        top = browser.evaluate(uris)
        assert len(top) == 1_000
        scores = [expected[uri]["score"] for uri in top]
        assert scores == sorted(scores, reverse=True)
        browser.evaluate(f"{header}[1].querySelector('button').focus()")
        browser.press("Enter", code=13, text="\r")
        assert browser.evaluate(f"{header}[1].getAttribute('aria-sort')") == "descending"
        browser.press("Enter", code=13, text="\r")
        assert browser.evaluate(f"{header}[1].getAttribute('aria-sort')") == "ascending"
        assert browser.evaluate(uris) == top[::-1]
        browser.evaluate(f"{header}[4].querySelector('button').focus()")
        browser.press(" ", code=32, text=" ")
        labels = [expected[uri]["label"] for uri in browser.evaluate(uris)]
        assert browser.evaluate(f"{header}[1].getAttribute('aria-sort')") is None
        assert set(labels[-10:]) == {None}
        named = [label for label in labels if label]
        assert [label for label in named if label != HOSTILE[0]] == sorted(
            label for label in named if label != HOSTILE[0]
        )

        browser.evaluate("document.querySelector('#top [name=text]').focus()")
        browser.write("FAKE clip-001")
        shown = browser.evaluate(uris)
        assert set(shown) == {
            uri for uri in top if "clip-001" in uri and expected[uri]["label"] == "fake"
        }
        status = "document.querySelector('#top output').textContent"
        assert browser.evaluate(status) == f"{len(shown)} of 1,000 shown"
        browser.evaluate(
            "(f=>{f.text.value='';f.score.value='0.5';f.outcome.value='undecided';"
            "f.text.dispatchEvent(new Event('input',{bubbles:true}))})"
            "(document.querySelector('#top form').elements)"
        )
        assert set(browser.evaluate(uris)) == {
            uri for uri in top if 0.5 <= expected[uri]["score"] < FAKE_FROM
        }
        browser.evaluate("document.querySelectorAll('details').forEach(e=>{e.open=true})")
        assert browser.evaluate("window.stolen") is None
        assert {url for url in browser.requests if not url.startswith("data:")} == {
            written.as_uri()
        }
        assert browser.messages == []

        browser.open(written, scripts=False)
        assert browser.evaluate("document.querySelectorAll('th button').length") == 0
        assert browser.evaluate("document.querySelector('#top form').checkVisibility()") is False
        assert browser.evaluate(uris) == top
