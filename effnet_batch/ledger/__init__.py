"""What is done: the committed parts themselves, read back.

*Live rows* are those of a source's highest complete attempt, else of its highest; where a record
stands twice in an attempt, the part of the smallest name wins. A source is done when its live
attempt holds as many distinct records as its last record says, none of them failed for a passing
reason, and its version is unchanged.
"""

from effnet_batch.ledger.frames import read_frames_of
from effnet_batch.ledger.parts import Part, ids_from_hex, list_parts, reading
from effnet_batch.ledger.scan import Ledger, LedgerPass
from effnet_batch.ledger.states import SourceStates, find_repeated

__all__ = [
    "Ledger",
    "LedgerPass",
    "Part",
    "SourceStates",
    "find_repeated",
    "ids_from_hex",
    "list_parts",
    "read_frames_of",
    "reading",
]
