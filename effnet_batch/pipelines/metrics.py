"""What workers publish as Ray metrics, for its dashboard and Prometheus, as ``ray_<name>``.

Counters count work as it is done, also work that is lost with a worker and done again; what an
output holds, only its ledger says.
"""

import functools
from collections.abc import Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter

RECORDS: Final = "effnet_batch_records"
WRITTEN_BYTES: Final = "effnet_batch_written_bytes"
STAGE_SECONDS: Final = "effnet_batch_stage_seconds"
MODEL_CALLS: Final = "effnet_batch_model_calls"
MODEL_WAIT_SECONDS: Final = "effnet_batch_model_wait_seconds"

_DESCRIPTIONS: Final = {
    RECORDS: ("Finished records.", ("status",)),
    WRITTEN_BYTES: ("Bytes of committed parts.", ()),
    STAGE_SECONDS: ("Seconds that threads spent in a stage.", ("stage",)),
    MODEL_CALLS: (
        "Runs of the model; records over calls show how full batches are.",
        (),
    ),
    MODEL_WAIT_SECONDS: ("Seconds that model actors waited for decoded frames.", ()),
}


def publish_records(rows: pa.Table) -> None:
    """Counts finished rows by their status."""
    for each in pc.value_counts(rows["status"]).to_pylist():
        _counter(RECORDS).inc(each["counts"], {"status": each["values"]})


def publish_receipt(seconds: Mapping[str, float], size_bytes: int, num_model_calls: int) -> None:
    """Counts what a unit took, when it is committed.

    Args:
        seconds: by stage.
        size_bytes: of its parts.
        num_model_calls: runs of the model over a batch.
    """
    for stage, value in seconds.items():
        _add(STAGE_SECONDS, value, stage=stage)
    _add(WRITTEN_BYTES, size_bytes)
    _add(MODEL_CALLS, num_model_calls)


def publish_model_call(seconds: float, wait_seconds: float) -> None:
    """Counts one call of an actor that only runs the model, and how long it had waited for it."""
    _add(STAGE_SECONDS, seconds, stage="model")
    _add(MODEL_WAIT_SECONDS, wait_seconds)
    _add(MODEL_CALLS, 1)


def _add(name: str, value: float, **tags: str) -> None:
    if value > 0:  # a counter refuses 0
        _counter(name).inc(value, tags)


@functools.cache
def _counter(name: str) -> Counter:
    """Returns the process's counter of this name."""
    description, tags = _DESCRIPTIONS[name]
    return Counter(name, description=description, tag_keys=tags)
