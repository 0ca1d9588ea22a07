"""The manifest: one row per source, so that a listing is paid once.

A manifest comes from a folder, a glob, one file, or a list of URIs (text, CSV, JSON lines,
Parquet, or another manifest). It is kept in ``OUTPUT/manifest/`` and reused; rows hold no bytes
and no signature.
"""

from effnet_batch.manifest.build import build_manifest, fetch_uris
from effnet_batch.manifest.columns import kind_of
from effnet_batch.manifest.store import (
    ManifestSummary,
    ManifestUpdate,
    check_savable,
    has_manifest,
    read_manifest,
    replace_manifest,
    save_manifest,
    select_sources,
    source_version,
    summarize,
    write_manifest,
)

__all__ = [
    "ManifestSummary",
    "ManifestUpdate",
    "build_manifest",
    "check_savable",
    "fetch_uris",
    "has_manifest",
    "kind_of",
    "read_manifest",
    "replace_manifest",
    "save_manifest",
    "select_sources",
    "source_version",
    "summarize",
    "write_manifest",
]
