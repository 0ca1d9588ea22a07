"""What workers publish as Ray metrics, for its dashboard and Prometheus, as ``ray_<name>``.

Counters count work as it is done, also work that is lost with a worker and done again; what an
output holds, only its ledger says.
"""

import functools
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter

from effnet_batch.stages.lanes import WAIT, StageClock

RECORDS: Final = "effnet_batch_records"
WRITTEN_BYTES: Final = "effnet_batch_written_bytes"
STAGE_SECONDS: Final = "effnet_batch_stage_seconds"
MODEL_CALLS: Final = "effnet_batch_model_calls"
MODEL_FRAMES: Final = "effnet_batch_model_frames"
MODEL_WAIT_SECONDS: Final = "effnet_batch_model_wait_seconds"

_DESCRIPTIONS: Final = {
    RECORDS: ("Finished records.", ("status",)),
    WRITTEN_BYTES: ("Bytes of committed parts.", ()),
    STAGE_SECONDS: ("Seconds that threads spent in a stage.", ("stage",)),
    MODEL_CALLS: ("Runs of the model.", ()),
    MODEL_FRAMES: ("Frames that it ran over; frames over runs show how full batches are.", ()),
    MODEL_WAIT_SECONDS: (
        "Seconds that models, of actors that do not decode, had no frame to run over.",
        (),
    ),
}


def publish_records(rows: pa.Table) -> None:
    """Counts finished rows by their status."""
    for each in pc.value_counts(rows["status"]).to_pylist():
        _counter(RECORDS).inc(each["counts"], {"status": each["values"]})


def publish_clock(clock: StageClock, stages: tuple[str, ...]) -> None:
    """Counts what these stages took, and what the model ran over."""
    for stage in stages:
        _add(STAGE_SECONDS, clock.seconds[stage], stage=stage)
    _add(MODEL_CALLS, clock.num_batches)
    _add(MODEL_FRAMES, clock.num_frames)
    _add(MODEL_WAIT_SECONDS, clock.seconds[WAIT])


def publish_written(size_bytes: int) -> None:
    """Counts the bytes of committed parts."""
    _add(WRITTEN_BYTES, size_bytes)


def _add(name: str, value: float, **tags: str) -> None:
    if value > 0:  # a counter refuses 0
        _counter(name).inc(value, tags)


@functools.cache
def _counter(name: str) -> Counter:
    """Returns the process's counter of this name."""
    description, tags = _DESCRIPTIONS[name]
    return Counter(name, description=description, tag_keys=tags)
