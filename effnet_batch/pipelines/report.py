"""One HTML page of a scoring output, from its live rows."""

import dataclasses
from typing import Any

from effnet_batch.errors import InputError
from effnet_batch.ledger import Ledger
from effnet_batch.pipelines.verify import load_run
from effnet_batch.report import COLUMNS, Evidence, Tally, Thresholds, evidence_of, render_page
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, StorageOptions, canonical_uri


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """What `write_report` wrote."""

    uri: str
    size_bytes: int
    tally: Tally


def write_report(output: str, html: str, *, seed: int = 0, **storage: Any) -> Page:
    """Writes a page of what a scoring output holds.

    The parts are read twice, one after the other: once for what is said of all videos, then those
    that hold the evidence of the videos on the page. Beside a few parts and the ledger, memory
    holds the page, which is bounded.

    Args:
        output: folder that `score` wrote to.
        html: local path or URL of the page; an older one is replaced.
        seed: of the random videos.
        **storage: settings of `StorageOptions`.

    Raises:
        InputError: there is no scoring output at this place, or a part of it cannot be read.
    """
    room = Storage(StorageOptions(**storage))
    paths = OutputPaths(canonical_uri(output))
    run = load_run(room, paths)
    if "thresholds" not in run["resolved"]:
        raise InputError(
            f"{paths.root} holds no scores but what `{run['job']}` wrote; "
            f"`effnet-batch status {output}` shows what is in it"
        )
    ledger = Ledger.scan(room, paths.data)
    ledger.check_readable()
    tally = Tally(seed=seed)
    for table in ledger.live(COLUMNS):
        tally.add(table)
    uri = canonical_uri(html)
    page = render_page(
        tally,
        _evidence(ledger, tally),
        output=paths.root,
        facts=_facts(run),
        thresholds=Thresholds(**run["resolved"]["thresholds"]),
    )
    room.write(uri, page)
    return Page(uri=uri, size_bytes=len(page), tally=tally)


def _evidence(ledger: Ledger, tally: Tally) -> dict[str, Evidence]:
    """Draws the evidence of the videos that the tally picked, by record id."""
    videos = {
        row["record_id"]: row for table in (tally.top, tally.random) for row in table.to_pylist()
    }
    found = {}
    for table in ledger.live(["record_id", "tracks", "crops"], records=list(videos)):
        for number, record in enumerate(table["record_id"].to_pylist()):
            found[record] = evidence_of(table.slice(number, 1), videos[record])
    return found


def _facts(run: dict[str, Any]) -> dict[str, object]:
    resolved = run["resolved"]
    engine = resolved["engine"]
    return {
        "Input": run["input"],
        "Checkpoints": ", ".join(one["info"]["name"] for one in resolved["checkpoints"]),
        "Thresholds": f"fake from {resolved['thresholds']['fake']:g}, "
        f"no forgery found below {resolved['thresholds']['no_forgery_found']:g}",
        "Engine": f"{engine['engine']} {engine['precision']} on {engine['device']}",
        "Fingerprint": run["fingerprint"],
        "Latest run": f"{run['run_id']}, {run['state']}",
    }
