"""Reading frame embeddings back: those of the records of a part, a little at a time."""

from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effnet_batch.ledger.parts import check_columns, reading
from effnet_batch.storage import Storage

_ROWS_PER_TABLE: Final = 4_096
"""Some 20 MB of embeddings of 1,280 numbers."""


def read_frames_of(
    storage: Storage,
    uris: Sequence[str],
    *,
    records: pa.Array | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Yields the frames of a part in order, holding one file of them and a few thousand rows.

    Args:
        storage: where from.
        uris: `Ledger.frames` of the part.
        records: ids (hex) of the records whose frames are wanted; None for all.
        columns: which columns, in this order; all when None.

    Raises:
        RecordError: a file vanished since the scan, or is damaged.
    """
    for uri in uris:
        data = pa.BufferReader(storage.read(uri))
        with reading(uri):
            file = pq.ParquetFile(data)
            check_columns(uri, file.schema_arrow, columns)
            read = file.schema_arrow.names if columns is None else list(columns)
            wanted = [*read, *({"record_id"} - set(read))]
            batches = file.iter_batches(_ROWS_PER_TABLE, columns=wanted, use_threads=False)
        while True:
            with reading(uri):
                batch = next(batches, None)
            if batch is None:
                break
            table = pa.Table.from_batches([batch])
            if records is not None:
                table = table.filter(pc.is_in(table["record_id"], value_set=records))
            if len(table):
                yield table.select(read)
