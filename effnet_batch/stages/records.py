"""The columns that every record has, whatever its job."""

import dataclasses
from typing import Any, Final

from effnet_batch.errors import FetchError, RecordError
from effnet_batch.schema import STATUS_OK, record_id
from effnet_batch.stages.read import Item

_MAX_MESSAGE: Final = 500


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What every row of a run carries."""

    run_id: str
    fingerprint: str


def record_columns(item: Item, error: RecordError | None, stamp: Stamp) -> dict[str, Any]:
    """Returns the values of a record's own columns; ``ok`` without an error."""
    source = item.source
    row: dict[str, Any] = {
        "uri": source.uri,
        "member": item.member,
        "label": source.label if item.label is None else item.label,
        "group": source.group,
        "split": source.split,
        "size_bytes": item.size_bytes,
        "run_id": stamp.run_id,
        "fingerprint": stamp.fingerprint,
        "source_id": source.source_id,
        "record_id": record_id(source.uri, item.member, item.occurrence),
        "source_version": source.source_version,
        "attempt": source.attempt,
        "status": STATUS_OK,
        "num_source_records": item.num_source_records,
    }
    return row if error is None else {**row, **error_columns(error)}


def error_columns(error: RecordError) -> dict[str, str]:
    """Returns the columns that say why a record failed."""
    kind = error.error_type if isinstance(error, FetchError) else type(error).__name__
    return {
        "status": error.status,
        "error_type": kind,
        "error_message": str(error)[:_MAX_MESSAGE],
    }
