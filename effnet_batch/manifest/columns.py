"""Building a manifest's columns page by page, and what a source's name says about it."""

import json
import os
from collections import Counter
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch import schema
from effnet_batch.prefixes import RowsByPrefix
from effnet_batch.shards import medium_of
from effnet_batch.storage import local_path, scheme_of
from effnet_batch.storage.uris import LOCAL, WEB_SCHEMES

METADATA_KEY: Final = b"effnet_batch.manifest"
"""Schema metadata by which a Parquet file is known as a manifest; JSON of its `Notes`."""

_SHARD_EXTENSIONS: Final = {
    ".tar": schema.KIND_TAR,
    ".tar.gz": schema.KIND_TAR,
    ".tgz": schema.KIND_TAR,
    ".tar.zst": schema.KIND_TAR,
    ".tzst": schema.KIND_TAR,
    ".tar.bz2": schema.KIND_TAR,
    ".tbz2": schema.KIND_TAR,
    ".tar.xz": schema.KIND_TAR,
    ".txz": schema.KIND_TAR,
    ".zip": schema.KIND_ZIP,
    ".parquet": schema.KIND_PARQUET,
}
_UNKNOWN: Final = ""
_KIND_FIELD: Final = schema.MANIFEST_SCHEMA.field("kind")
_PAGE_ROWS: Final = 16_384
_MAX_EXTENSIONS: Final = 50


def path_of(uri: str) -> str:
    """Returns the path of a canonical URI: without bucket or host, and without a web query."""
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return local_path(uri)
    if scheme in WEB_SCHEMES:
        return unquote(urlsplit(uri).path, errors="surrogateescape")
    return "/" + uri.partition("://")[2].partition("/")[2]


def kind_of(uri: str, medium: str | None = schema.KIND_IMAGE) -> str | None:
    """Returns what the extension of a canonical URI says it is to a job of a medium, or None.

    Args:
        uri: canonical URI.
        medium: one of `schema.MEDIA`; the other's extensions are nothing to the job. None takes
            those of either.
    """
    name = path_of(uri).rpartition("/")[2]
    if (found := medium_of(name)) is not None and medium in (None, found):
        return found
    lowered = name.lower()
    for extension, kind in _SHARD_EXTENSIONS.items():
        if lowered.endswith(extension) and not name.startswith("."):
            return kind
    return None


def as_utf8(text: str) -> str:
    r"""Returns text that Arrow can hold; bytes that were not UTF-8 are written as ``\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Columns:
    """Collects rows and turns each page of them into Arrow, so that few are Python objects.

    Args:
        medium: what plain sources are; None for either, which `rows` must then be told.
        kind: what sources are whose name does not say; None for the medium.
        label_from: ``parent`` labels a source without a label by its folder's name.
    """

    def __init__(self, *, medium: str | None, kind: str | None, label_from: str | None) -> None:
        self._medium = medium
        self._kind = kind or medium or _UNKNOWN
        self._label_from = label_from
        self._page: list[dict[str, Any]] = []
        self._rows = RowsByPrefix(schema.MANIFEST_SCHEMA)
        self._num_by_kind: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self.num_rows = 0
        self.num_bad_lines = 0

    def add(
        self,
        uri: str,
        *,
        kind: str | None = None,
        size_bytes: int | None = None,
        etag: str | None = None,
        mtime: datetime | None = None,
        label: str | None = None,
        group: str | None = None,
        split: str | None = None,
        is_signed: bool = False,
    ) -> None:
        """Adds one source under its canonical URI; ``kind`` overrides what its name says."""
        if label is None and self._label_from == "parent":
            label = _parent_name(uri)
        kind = kind or kind_of(uri, self._medium) or self._kind
        self._num_by_kind[kind] += 1
        self._page.append(
            {
                "uri": uri,
                "source_id": schema.source_id(uri),
                "kind": kind,
                "size_bytes": size_bytes,
                "etag": etag,
                "mtime": mtime,
                "label": label,
                "group": group,
                "split": split,
                "is_signed": is_signed,
            }
        )
        self.num_rows += 1
        if len(self._page) == _PAGE_ROWS:
            self._flush()

    def skip(self, uri: str) -> None:
        """Counts a file that is no source."""
        name = path_of(uri).rpartition("/")[2]
        stem, dot, extension = name.rpartition(".")
        key = as_utf8(f".{extension.lower()}")[:20] if dot and stem else "(none)"
        if key not in self._skipped and len(self._skipped) >= _MAX_EXTENSIONS:
            key = "(other)"
        self._skipped[key] += 1

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped files by extension."""
        return dict(sorted(self._skipped.items()))

    @property
    def num_by_medium(self) -> dict[str, int]:
        """How many sources are of each medium, of those that say it."""
        return {name: self._num_by_kind[name] for name in schema.MEDIA if name in self._num_by_kind}

    def rows(self, medium: str) -> RowsByPrefix:
        """Returns all rows, with their medium and what was skipped in the schema's metadata.

        Args:
            medium: what plain sources are that do not say it.
        """
        self._flush()
        notes = {
            "version": 1,
            "medium": medium,
            "num_skipped_by_extension": self.skipped,
            "num_bad_lines": self.num_bad_lines,
        }
        rows = self._rows
        if _UNKNOWN in self._num_by_kind:
            rows = RowsByPrefix(self._rows.schema)
            for table in self._rows.tables():
                kinds = pc.if_else(pc.equal(table["kind"], _UNKNOWN), medium, table["kind"])
                place = table.schema.get_field_index("kind")
                rows.add(table.set_column(place, _KIND_FIELD, kinds))
        rows.schema = rows.schema.with_metadata({METADATA_KEY: json.dumps(notes)})
        return rows

    def _flush(self) -> None:
        if self._page:
            self._rows.add(pa.Table.from_pylist(self._page, schema.MANIFEST_SCHEMA))
            self._page = []


def _parent_name(uri: str) -> str | None:
    return as_utf8(os.path.basename(os.path.dirname(path_of(uri)))) or None
