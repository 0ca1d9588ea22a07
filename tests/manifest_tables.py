"""The manifest room with tables for rows by prefix: what tests give it and look at is small."""

from typing import Any

import pyarrow as pa

from effnet_batch import manifest
from effnet_batch.manifest import ManifestSummary, ManifestUpdate
from effnet_batch.prefixes import RowsByPrefix
from effnet_batch.storage import Storage


def by_prefix(*tables: pa.Table) -> RowsByPrefix:
    """Return the rows of tables of one schema."""
    rows = RowsByPrefix(tables[0].schema)
    for table in tables:
        rows.add(table)
    return rows


def build_manifest(*arguments: Any, **settings: Any) -> pa.Table:
    return manifest.build_manifest(*arguments, **settings).read()


def read_manifest(storage: Storage, output: str) -> pa.Table:
    return manifest.read_manifest(storage, output).read()


def write_manifest(
    storage: Storage, output: str, table: pa.Table, *, update: bool = False
) -> ManifestUpdate:
    return manifest.write_manifest(storage, output, by_prefix(table), update=update)


def save_manifest(storage: Storage, uri: str, table: pa.Table) -> None:
    manifest.save_manifest(storage, uri, by_prefix(table))


def select_sources(table: pa.Table, **settings: Any) -> pa.Table:
    return manifest.select_sources(by_prefix(table), **settings).read()


def summarize(table: pa.Table) -> ManifestSummary:
    return manifest.summarize(by_prefix(table))
