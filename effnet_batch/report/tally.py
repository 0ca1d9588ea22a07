"""What a page says of all videos, counted table by table.

Memory does not grow with the output: counts, one example of each kind of failure, the videos of the
highest scores and a random few are all that stays.
"""

import collections
import dataclasses
import hashlib
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.schema import STATUS_OK

COLUMNS: Final = (
    "uri",
    "member",
    "label",
    "verdict",
    "score",
    "logit",
    "suspicious_start_seconds",
    "suspicious_end_seconds",
    "duration_seconds",
    "width",
    "height",
    "codec",
    "is_partial",
    "num_frames_used",
    "num_faces",
    "num_tracks",
    "aggregation",
    "error_type",
    "error_message",
    "record_id",
    "status",
)
"""Columns of `schema.videos_schema` that a tally wants."""

NUM_TOP: Final = 1_000
NUM_RANDOM: Final = 200
NUM_BINS: Final = 20
_MAX_KINDS_OF_FAILURE: Final = 100


@dataclasses.dataclass
class Failure:
    """One kind of failure: how often, and the first of them."""

    count: int
    uri: str
    member: str | None
    message: str


class Tally:
    """Counts videos and picks those that the page shows.

    Args:
        seed: another seed picks other random videos. The same videos are picked whatever the parts
            that they stand in, since a hash of seed and record id decides.
        num_top: how many videos of the highest scores are picked.
        num_random: how many random videos are picked, of all, also those without a score.
    """

    def __init__(
        self, *, seed: int = 0, num_top: int = NUM_TOP, num_random: int = NUM_RANDOM
    ) -> None:
        self.num_by_status: collections.Counter[str] = collections.Counter()
        self.num_by_verdict: collections.Counter[str] = collections.Counter()
        self.histogram = np.zeros(NUM_BINS, np.int64)
        """How many scores lie in each of `NUM_BINS` equal bins of 0..1."""
        self.failures: dict[tuple[str, str], Failure] = {}
        """By status and type of error; kinds beyond the first hundred are not listed."""
        self._seed = seed
        self._num_top = num_top
        self._num_random = num_random
        self._top: pa.Table | None = None
        self._random: pa.Table | None = None

    @property
    def num_videos(self) -> int:
        """All videos."""
        return self.num_by_status.total()

    @property
    def top(self) -> pa.Table:
        """The videos of the highest scores, highest first; of equal ones by logit, then by id."""
        return _empty() if self._top is None else self._top

    @property
    def random(self) -> pa.Table:
        """The random videos, in random order."""
        return _empty() if self._random is None else self._random.drop_columns("hash")

    def add(self, table: pa.Table) -> None:
        """Takes live rows of `COLUMNS`."""
        table = table.select(COLUMNS)
        _count(self.num_by_status, table["status"])
        _count(self.num_by_verdict, table["verdict"].drop_null())
        scores = table["score"].drop_null().to_numpy().astype(np.float64)
        self.histogram += np.histogram(scores, bins=NUM_BINS, range=(0, 1))[0]
        self._add_failures(table.filter(pc.not_equal(table["status"], STATUS_OK)))
        scored = table.filter(pc.is_valid(table["score"]))
        by_score = [("score", "descending"), ("logit", "descending"), ("record_id", "ascending")]
        self._top = _first(self._top, scored, by_score, self._num_top)
        hashes = [
            hashlib.sha256(f"{self._seed}:{record}".encode()).digest()
            for record in table["record_id"].to_pylist()
        ]
        hashed = table.append_column("hash", pa.array(hashes, pa.binary()))
        self._random = _first(self._random, hashed, [("hash", "ascending")], self._num_random)

    def _add_failures(self, failed: pa.Table) -> None:
        columns = ("status", "error_type", "uri", "member", "error_message")
        for row in failed.select(columns).to_pylist():
            kind = (row["status"], row["error_type"] or "")
            if kind in self.failures:
                self.failures[kind].count += 1
            elif len(self.failures) < _MAX_KINDS_OF_FAILURE:
                self.failures[kind] = Failure(
                    1, row["uri"], row["member"], row["error_message"] or ""
                )


def _count(counter: collections.Counter[str], values: pa.ChunkedArray) -> None:
    for pair in pc.value_counts(values).to_pylist():
        counter[pair["values"]] += pair["counts"]


def _first(
    kept: pa.Table | None, table: pa.Table, order: list[tuple[str, str]], number: int
) -> pa.Table:
    """Returns the first rows of both in some order, copied so that nothing else stays in memory."""
    both = table if kept is None else pa.concat_tables([kept, table])
    return both.take(pc.sort_indices(both, sort_keys=order)[:number]).combine_chunks()


def _empty() -> pa.Table:
    return pa.table({name: pa.nulls(0) for name in COLUMNS})
