"""What a run did."""

import dataclasses

from effnet_batch.pipelines.verify import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did and what the output holds now."""

    run_id: str
    output: str
    state: str
    """``complete``, or ``incomplete`` when sources are left for another run."""
    report: Report
    num_new_records: int
    """Records that this run committed."""
    size_bytes: int
    """Bytes that this run wrote."""
    seconds: float
    """From the first unit to the last commit."""
    stage_seconds: dict[str, float]
    """Thread seconds per stage, over all workers."""
    incomplete: tuple[tuple[str, str], ...]
    """Shards that broke off in their middle: URI and reason."""

    @property
    def records_per_second(self) -> float:
        """New records per second of work."""
        return self.num_new_records / self.seconds if self.seconds else 0.0
