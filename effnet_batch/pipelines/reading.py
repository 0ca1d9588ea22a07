"""Reading an output back: only live rows."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from effnet_batch.errors import InputError
from effnet_batch.ledger import Ledger, read_frames_of
from effnet_batch.schema import STATUS_OK, STATUSES
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, StorageOptions, canonical_uri


def read_embeddings(
    output: str, *, columns: Sequence[str] | None = None, storage: StorageOptions | None = None
) -> pa.Table:
    """Reads the records of an output that are ok, each once.

    Rows that a later attempt replaces are left out, which a plain Parquet reader would show.

    Args:
        output: the folder that `embed` wrote to.
        columns: which columns, in this order; all when None.
        storage: how storage is spoken to.

    Returns:
        A table of `schema.embeddings_schema`, or, of videos, of
        `schema.video_embeddings_schema`; `embedding_matrix` gives its vectors as an array.

    Raises:
        InputError: nothing is committed there, or a part cannot be read.
    """
    return _read_live(output, columns, storage, statuses=[STATUS_OK])


def iter_embeddings(
    output: str, *, columns: Sequence[str] | None = None, storage: StorageOptions | None = None
) -> Iterator[pa.Table]:
    """Returns what `read_embeddings` reads part by part: outputs of any size need little memory.

    Args:
        output: the folder that `embed` wrote to.
        columns: which columns, in this order; all when None.
        storage: how storage is spoken to.

    Returns:
        An iterator of tables of `schema.embeddings_schema`, of some thousand rows each.

    Raises:
        InputError: nothing is committed there, or a part cannot be read.
    """
    return _ledger(output, storage).live(columns, statuses=[STATUS_OK])


def read_scores(
    output: str, *, columns: Sequence[str] | None = None, storage: StorageOptions | None = None
) -> pa.Table:
    """Reads every video of an output once, also those without a score; ``status`` says why not.

    Rows that a later attempt replaces are left out, which a plain Parquet reader would show.

    Args:
        output: the folder that `score` wrote to.
        columns: which columns, in this order; all when None.
        storage: how storage is spoken to.

    Returns:
        A table of `schema.videos_schema`.

    Raises:
        InputError: nothing is committed there, or a part cannot be read.
    """
    return _read_live(output, columns, storage, statuses=STATUSES)


def read_frames(
    output: str, *, columns: Sequence[str] | None = None, storage: StorageOptions | None = None
) -> pa.Table:
    """Reads the embedding of every frame, or face, of every video that is ok.

    Frames of rows that a later attempt replaces, and those that a killed run left, are left out,
    which a plain Parquet reader would show. What is read is held in memory: leave ``embedding`` out
    where it is not needed.

    Args:
        output: written by ``score`` with ``embeddings``, or by ``embed`` with ``frames``.
        columns: which columns, in this order; all when None.
        storage: how storage is spoken to.

    Returns:
        A table of `schema.frames_schema`; `embedding_matrix` gives its vectors as an array, where
        one encoder made them (``fingerprint``).

    Raises:
        InputError: no frames are committed there, or a part cannot be read.
    """
    room = Storage(storage or StorageOptions())
    root = canonical_uri(output)
    ledger = Ledger.scan(room, OutputPaths(root).data)
    ledger.check_readable()
    if not ledger.frames:
        raise InputError(
            f"{root} holds no frames; `score --embeddings` and `embed --frames` store them"
        )
    tables: list[pa.Table] = []
    for part, records in ledger.live_parts(["record_id"], statuses=[STATUS_OK]):
        wanted = records["record_id"].combine_chunks()
        frames = ledger.frames.get(part, ())
        tables += read_frames_of(room, frames, records=wanted, columns=columns)
    if tables:
        return pa.concat_tables(tables, promote_options="default")
    found = next(iter(ledger.frames.values()))
    schema = pq.read_schema(pa.BufferReader(room.read(found[0])))
    return schema.empty_table().select(columns or schema.names)


def _read_live(
    output: str,
    columns: Sequence[str] | None,
    storage: StorageOptions | None,
    *,
    statuses: Sequence[str],
) -> pa.Table:
    ledger = _ledger(output, storage)
    tables = list(ledger.live(columns, statuses=statuses))
    if tables:
        # An output may have been begun by a release that knew fewer columns.
        return pa.concat_tables(tables, promote_options="default")
    return next(iter(ledger.live(columns))).slice(0, 0)


def _ledger(output: str, storage: StorageOptions | None) -> Ledger:
    root = canonical_uri(output)
    ledger = Ledger.scan(Storage(storage or StorageOptions()), OutputPaths(root).data)
    if not ledger.parts:
        raise InputError(f"{root} holds no committed parts")
    ledger.check_readable()
    return ledger


def embedding_matrix(table: pa.Table, column: str = "embedding") -> npt.NDArray[np.floating]:
    """Returns the vectors of a table as one array.

    Args:
        table: from `read_embeddings`; no vector may be null.
        column: ``embedding`` or ``logits``.

    Returns:
        Array [N, D] of the stored number format; a view of the table's memory where the column is
        of one chunk, which ``table.combine_chunks()`` sees to.

    Raises:
        ValueError: a vector is null, or their lengths differ.
    """
    vectors = table[column]
    if vectors.null_count:
        raise ValueError(f"{vectors.null_count} of {len(vectors)} vectors are null")
    if not len(vectors):
        return np.empty((0, 0), vectors.type.value_type.to_pandas_dtype())
    array = vectors.chunk(0) if vectors.num_chunks == 1 else vectors.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more than 2^31 values do not fit one list array
        return np.concatenate([_matrix(chunk) for chunk in array.chunks])
    return _matrix(array)


def _matrix(array: pa.ListArray) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating] = array.flatten().to_numpy(zero_copy_only=True)
    lengths = np.diff(array.offsets.to_numpy())
    if (lengths != lengths[0]).any():
        raise ValueError(f"vectors of different lengths: {lengths.min()} to {lengths.max()}")
    return values.reshape(len(array), lengths[0])
