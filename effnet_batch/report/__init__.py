"""One HTML page of what a scoring output holds: counted, drawn and written without a server."""

from effnet_batch.report.evidence import Evidence, evidence_of
from effnet_batch.report.page import Thresholds, render_page
from effnet_batch.report.tally import COLUMNS, Failure, Tally

__all__ = [
    "COLUMNS",
    "Evidence",
    "Failure",
    "Tally",
    "Thresholds",
    "evidence_of",
    "render_page",
]
