"""Committed parts from plain rows, for tests of what reads them back; no pipeline involved."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from effnet_batch import schema
from effnet_batch.errors import FetchError, RecordError
from effnet_batch.ledger import Ledger
from effnet_batch.sink import part_bytes
from effnet_batch.storage import ObjectInfo, ReadRequest

DATA = "memory://output/data"


@dataclasses.dataclass(frozen=True)
class Row:
    """One committed row; ``record`` numbers the records of a source from 0."""

    source: str
    record: int
    attempt: int = 1
    version: str | None = "v1"
    status: str = "ok"
    need: int | None = None
    """``num_source_records``."""

    @property
    def record_id(self) -> str:
        return schema.record_id(self.source, f"m{self.record}", 0)


def part(rows: Sequence[Row], *, vector: float = 0.0, **metadata: object) -> bytes:
    """Return a part as the sink writes it."""
    columns = schema.embeddings_schema()
    table = pa.Table.from_pylist(
        [
            {
                "uri": row.source,
                "member": f"m{row.record}",
                "embedding": [vector, 1.0] if row.status == "ok" else None,
                "run_id": "run",
                "fingerprint": "f",
                "source_id": schema.source_id(row.source),
                "record_id": row.record_id,
                "source_version": row.version,
                "attempt": row.attempt,
                "status": row.status,
                "num_source_records": row.need,
            }
            for row in rows
        ],
        columns,
    )
    return part_bytes(table, {"fingerprint": "f", **metadata})


def manifest(versions: dict[str, str | None]) -> pa.Table:
    """Return a manifest of tar shards with these etags."""
    return pa.Table.from_pylist(
        [
            {
                "uri": uri,
                "source_id": schema.source_id(uri),
                "kind": schema.KIND_TAR,
                "size_bytes": 1_000 if etag else None,
                "etag": etag,
                "is_signed": False,
            }
            for uri, etag in versions.items()
        ],
        schema.MANIFEST_SCHEMA,
    )


class MemoryStorage:
    """The reads of `Storage`, on a dict; counts whole reads."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.num_read_whole = 0

    def put(self, name: str, data: bytes) -> str:
        uri = f"{DATA}/{name}"
        self.objects[uri] = data
        return uri

    def read(self, uri: str) -> bytes:
        self.num_read_whole += 1
        if uri not in self.objects:
            raise FetchError(f"{uri} is missing", error_type="FileNotFoundError")
        return self.objects[uri]

    def read_many(self, requests: Iterable[ReadRequest]) -> list[bytes | RecordError]:
        return [self.read(request.uri) for request in requests]

    def read_tails(self, uris: Sequence[str], num_bytes: int) -> list[bytes | FetchError]:
        return [self.objects[uri][-num_bytes:] for uri in uris]

    def list(self, uri: str) -> Iterator[list[ObjectInfo]]:
        for name, data in self.objects.items():
            if name.startswith(f"{uri}/"):
                yield [ObjectInfo(name, len(data))]


def ledger_of(parts: dict[str, Sequence[Row]]) -> Ledger:
    """Return the ledger of parts, by name."""
    storage = MemoryStorage()
    for name, rows in parts.items():
        storage.put(name, part(rows))
    return Ledger.scan(storage, DATA)  # type: ignore[arg-type]
