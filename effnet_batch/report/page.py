"""The page: one HTML file that needs no server, no other file and no script to be read.

Everything that comes from the output is escaped by the template, nothing of it stands in a script,
and a policy in the page itself lets no other script run and nothing be fetched.
"""

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import jinja2
import markupsafe
import pyarrow as pa

from effnet_batch.report import evidence
from effnet_batch.report.evidence import Evidence, score_height, stretch_text, time_text
from effnet_batch.report.tally import NUM_BINS, Tally

_VERDICTS: Final = {
    "fake": "fake",
    "undecided": "undecided",
    "no_forgery_found": "no forgery found",
}
"""Every verdict and how a person reads it, in the page's order."""

_BAR_HEIGHT: Final = 140.0
_BAR_WIDTH: Final = 712 / NUM_BINS


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where scores became verdicts."""

    fake: float
    """Lowest score of ``fake``."""
    no_forgery_found: float
    """Scores below this one are ``no_forgery_found``."""


def render_page(
    tally: Tally,
    evidence_by_record: Mapping[str, Evidence],
    *,
    output: str,
    facts: Mapping[str, object],
    thresholds: Thresholds,
) -> bytes:
    """Returns the page, UTF-8.

    Args:
        tally: of all videos.
        evidence_by_record: of the videos that the tally picked, by record id.
        output: where the output lies.
        facts: name to value, shown in this order.
        thresholds: drawn where scores are.
    """
    style, script = _asset("page.css"), _asset("page.js")
    page = _template().render(
        output=output,
        name=_last_part(output),
        facts=facts,
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'",
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        tally=tally,
        verdicts=_VERDICTS,
        thresholds=thresholds,
        bars=list(_bars(tally)),
        failures=sorted(tally.failures.items(), key=lambda item: (-item[1].count, item[0])),
        lists=[
            {
                "id": "top",
                "title": "Highest scores",
                "text": f"The {tally.top.num_rows:,} videos with the highest scores.",
                "videos": list(_videos(tally.top, evidence_by_record)),
            },
            {
                "id": "random",
                "title": "Random videos",
                "text": f"{tally.random.num_rows:,} of all videos, drawn by chance.",
                "videos": list(_videos(tally.random, evidence_by_record)),
            },
        ],
    )
    return page.encode()


def _videos(
    table: pa.Table, evidence_by_record: Mapping[str, Evidence]
) -> Iterator[dict[str, Any]]:
    for row in table.to_pylist():
        yield {
            **row,
            "name": _last_part(row["member"] or row["uri"]),
            "outcome": row["verdict"] or row["status"],
            "evidence": evidence_by_record[row["record_id"]],
        }


def _bars(tally: Tally) -> Iterator[dict[str, Any]]:
    """Yields the bars of the histogram; one that is not empty can be seen."""
    highest = max(1, int(tally.histogram.max()))
    for number, count in enumerate(tally.histogram.tolist()):
        height = max(1.5, count / highest * _BAR_HEIGHT) if count else 0.0
        yield {
            "low": number / NUM_BINS,
            "high": (number + 1) / NUM_BINS,
            "count": count,
            "x": round(4 + number * _BAR_WIDTH + 1, 1),
            "y": round(evidence.TOP + _BAR_HEIGHT - height, 1),
            "width": round(_BAR_WIDTH - 2, 1),
            "height": round(height, 1),
        }


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path


def _digest(text: str) -> str:
    """Returns what a policy calls an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "number": lambda value: f"{value:,}",
        "score": lambda value: f"{value:.3f}",
        "share": lambda part, whole: f"{part / whole:.1%}" if whole else "–",
        "time": time_text,
        "stretch": stretch_text,
        "height": lambda score: f"{score_height(score):g}",
        "words": lambda name: _VERDICTS.get(name, name.replace("_", " ")),
    }
    environment.filters.update(filters)
    environment.globals["plot"] = evidence
    return environment.from_string(_asset("page.html"))
