"""From an input to a manifest: a folder, a glob, one file, or a list of URIs."""

import contextlib
import dataclasses
import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa

from effnet_batch import schema
from effnet_batch.errors import ConfigError, FetchError, InputError
from effnet_batch.manifest.columns import Columns, kind_of, path_of
from effnet_batch.manifest.lists import LIST_EXTENSIONS, Entry, look_at_parquet, read_entries
from effnet_batch.manifest.store import select_sources
from effnet_batch.prefixes import RowsByPrefix
from effnet_batch.shards import medium_of
from effnet_batch.storage import ObjectInfo, Storage, canonical_uri, redact, scheme_of
from effnet_batch.storage.hosts import is_public
from effnet_batch.storage.uris import LOCAL, WEB_SCHEMES, split_signature

_OWN_FILES: Final = re.compile(
    r"/data/part-\d{8}T\d{6}-[0-9a-f]{6}-\d{6,}-\d{4,}\.parquet$"
    r"|/manifest/part-[0-9a-f]{8}-\d{5}\.parquet$"
)
"""Parts of an output and of its manifest, which are no shards of images."""
_MAX_BAD_LINES: Final = 10
_MAX_SHOWN_CHARS: Final = 200
_PRIVATE_NAMES: Final = ("localhost", "internal", "local")


def build_manifest(
    input: str,
    storage: Storage,
    *,
    medium: str | None = schema.KIND_IMAGE,
    kind: str | None = None,
    media_column: str | None = None,
    recursive: bool = True,
    label_from: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    exclude: str | None = None,
    skip_bad_lines: bool = False,
) -> RowsByPrefix:
    """Lists an input.

    In a folder or glob, files whose extension is neither the medium's nor a shard's are skipped
    and counted; `summarize` tells. In a list every entry is a source, whatever its name.

    Args:
        input: folder, glob, one image, video or shard, or list (.txt, .lst, .csv, .tsv, .jsonl,
            .ndjson, or .parquet with a ``uri``, ``url``, ``path`` or ``file`` column and none of
            the medium); local or remote. Relative entries of a list are relative to the list's
            own folder.
        storage: how it is reached.
        medium: what the job reads, one of `schema.MEDIA`. Files of the other medium are skipped
            in a folder whatever ``kind`` says. None for what the input holds, by the names of its
            files or by what a manifest was listed for; shards alone are taken to hold images.
        kind: what sources are whose name does not say, by default ``medium``; in a folder those
            are skipped by default. ``parquet`` also makes a Parquet input a shard, whatever its
            columns.
        media_column: a Parquet input that has this column is a shard.
        recursive: also list the folders inside a folder.
        label_from: ``parent`` takes the label of a source without one from its folder's name.
        limit: keep the first ``limit`` sources; a listing stops there.
        sample: keep this many sources at random; see `select_sources`.
        seed: seed of ``sample``.
        exclude: URI of a folder, such as the output, whose files are not listed.
        skip_bad_lines: leave out entries of a list that are refused, instead of failing.

    Returns:
        Rows of `schema.MANIFEST_SCHEMA`, each URI once; in the order of the listing where they
        fit one pass.

    Raises:
        InputError: there is nothing to read, or a list has entries that are refused, such as a
            manifest's rows of the other medium; or ``kind`` is the other medium; or there are
            both and no medium is named.
        ConfigError: the input's own URI is refused.
        StorageError: the input cannot be listed.
    """
    if medium not in (None, *schema.MEDIA):
        raise ValueError(f"medium: got {medium!r}, allowed: {', '.join(schema.MEDIA)}")
    if medium is None and kind in schema.MEDIA:
        medium = kind
    _check_kind(kind, medium)
    found = _look(input, storage, medium, kind, media_column)
    medium = medium or found.medium
    columns = Columns(medium=medium, kind=kind, label_from=label_from)
    if found.form is not None:
        _add_list(columns, found, storage, medium, skip_bad_lines=skip_bad_lines)
    elif found.is_single:
        columns.add(
            found.uri,
            kind=kind or kind_of(found.uri, medium),
            is_signed=found.is_signed,
            size_bytes=found.info.size_bytes,
            etag=found.info.etag,
            mtime=found.info.mtime,
        )
    else:
        stop_at = limit if sample is None else None
        excluded = None if exclude is None else canonical_uri(exclude)
        _add_listing(columns, found.uri, storage, medium, kind, recursive, excluded, stop_at)
    if not columns.num_rows:
        skipped = ", ".join(f"{count} {name}" for name, count in columns.skipped.items())
        raise InputError(
            f"{found.uri}: no {_names(medium)} or shards found"
            + (f"; skipped: {skipped}; --kind says what unknown ones are" if skipped else "")
        )
    if medium is None:
        media = columns.num_by_medium
        if len(media) > 1:
            counts = " and ".join(f"{number:,} {name}s" for name, number in media.items())
            raise InputError(f"{found.uri}: {counts}; --medium says which of them to read")
        medium = next(iter(media), schema.KIND_IMAGE)
    return select_sources(
        columns.rows(medium), is_distinct=found.form is None, limit=limit, sample=sample, seed=seed
    )


def fetch_uris(
    table: pa.Table,
    input: str,
    storage: Storage,
    *,
    medium: str = schema.KIND_IMAGE,
) -> dict[str, str]:
    """Reads the signed URLs of an input again; they are never stored.

    Args:
        table: manifest; only its rows with ``is_signed`` matter.
        input: what the manifest was built from.
        storage: how it is reached.
        medium: what the manifest was built for.

    Returns:
        source_id -> URL with its signature. Keep it in memory only.

    Raises:
        InputError: the input does not have the URL of a signed source any more.
    """
    signed = set(table.filter(table["is_signed"])["source_id"].to_pylist())
    if not signed:
        return {}
    found = _look(input, storage, medium, None, None)
    urls: dict[str, str] = {}
    if found.is_signed and found.form is None:
        urls[schema.source_id(found.uri)] = input
    elif found.form is not None:
        for entry in _entries(found, storage):
            with contextlib.suppress(ConfigError):
                uri, is_signed = _resolve(entry, found, storage)
                if is_signed:
                    urls.setdefault(schema.source_id(uri), entry.text)
    urls = {source: url for source, url in urls.items() if source in signed}
    if missing := len(signed) - len(urls):
        raise InputError(
            f"{redact(input)}: {missing} sources had signed URLs, which are not kept; give the "
            "list that holds them as the input"
        )
    return urls


@dataclasses.dataclass(frozen=True)
class _Found:
    """What an input is."""

    uri: str
    info: ObjectInfo
    form: str | None = None
    """Format of the list, a value of `LIST_EXTENSIONS`; None when it is no list."""
    is_single: bool = False
    is_signed: bool = False
    fetch_uri: str | None = dataclasses.field(default=None, repr=False)
    medium: str | None = None
    """What a manifest was listed for."""


def _look(
    text: str, storage: Storage, medium: str | None, kind: str | None, media_column: str | None
) -> _Found:
    uri = canonical_uri(text)
    is_web = scheme_of(uri) in WEB_SCHEMES
    is_signed = is_web and split_signature(text)[1]
    fetch_uri = text if is_signed else None
    info = ObjectInfo(uri)
    is_object = is_web
    # A name that ends with a slash is a folder, even where an empty object marks it.
    if not is_signed and path_of(uri).strip("/") and not path_of(uri).endswith("/"):
        try:
            info = storage.info(uri)
            is_object = True
        except FetchError:
            # A folder or a glob; or nothing, which its empty listing will say. What is wrong
            # with one web object becomes its record.
            is_object = is_web
    found = _Found(uri, info, None, is_object, is_signed, fetch_uri)
    extension = "." + path_of(uri).rpartition("/")[2].lower().rpartition(".")[2]
    form = LIST_EXTENSIONS.get(extension)
    if not is_object or form is None or (form == "parquet" and kind == schema.KIND_PARQUET):
        return found
    if form == "parquet":
        try:
            with storage.open(uri, fetch_uri=fetch_uri) as stream:
                media = schema.MEDIA if medium is None else (medium,)
                is_list, listed_for = look_at_parquet(stream, media, media_column)
        except FetchError as error:
            raise InputError(str(error)) from None
        if not is_list:
            return found
        found = dataclasses.replace(found, medium=listed_for)
    return dataclasses.replace(found, form=form)


def _add_listing(
    columns: Columns,
    uri: str,
    storage: Storage,
    medium: str | None,
    kind: str | None,
    recursive: bool,
    excluded: str | None,
    stop_at: int | None,
) -> None:
    for page in storage.list(uri, recursive=recursive):
        for info in page:
            if excluded is not None and info.uri.startswith(f"{excluded.rstrip('/')}/"):
                continue
            if _OWN_FILES.search(info.uri):  # of another output in the same folder
                columns.skip(info.uri)
                continue
            is_other = medium not in (None, medium_of(path_of(info.uri)) or medium)
            found = None if is_other else kind_of(info.uri, medium) or kind
            if found is None:
                columns.skip(info.uri)
                continue
            columns.add(
                info.uri,
                kind=found,
                size_bytes=info.size_bytes,
                etag=info.etag,
                mtime=info.mtime,
            )
            if columns.num_rows == stop_at:
                return


def _entries(found: _Found, storage: Storage) -> Iterator[Entry]:
    assert found.form is not None
    try:
        with storage.open(found.uri, fetch_uri=found.fetch_uri) as stream:
            yield from read_entries(stream, found.uri, found.form)
    except FetchError as error:
        raise InputError(str(error)) from None


def _add_list(
    columns: Columns, found: _Found, storage: Storage, medium: str | None, *, skip_bad_lines: bool
) -> None:
    problems: list[str] = []
    for entry in _entries(found, storage):
        try:
            uri, is_signed = _resolve(entry, found, storage)
            _check_kind(entry.kind, medium)
        except ConfigError as error:
            columns.num_bad_lines += 1
            if len(problems) < _MAX_BAD_LINES:
                reason = redact(str(error)).encode("utf-8", "backslashreplace").decode()
                problems.append(f"  line {entry.line}: {reason[: 2 * _MAX_SHOWN_CHARS]}")
            continue
        columns.add(
            uri,
            kind=entry.kind,
            size_bytes=entry.size_bytes,
            etag=entry.etag,
            mtime=entry.mtime,
            label=entry.label,
            group=entry.group,
            split=entry.split,
            is_signed=is_signed or entry.is_signed,
        )
    if problems and not skip_bad_lines:
        raise InputError(
            f"{found.uri}: {columns.num_bad_lines} entries are refused, the first:\n"
            + "\n".join(problems)
        )


def _check_kind(kind: str | None, medium: str | None) -> None:
    others = [name for name in schema.MEDIA if medium not in (None, name)]
    allowed = [name for name in schema.KINDS if name not in others]
    if kind is not None and kind not in allowed:
        raise InputError(f"kind: got {kind!r}, allowed for {_names(medium)}: {', '.join(allowed)}")


def _names(medium: str | None) -> str:
    return ", ".join(f"{name}s" for name in schema.MEDIA if medium in (None, name))


def _resolve(entry: Entry, found: _Found, storage: Storage) -> tuple[str, bool]:
    """Returns (canonical URI, whether its URL is signed) of an entry.

    Raises:
        ConfigError: the entry is refused.
    """
    if entry.problem is not None:
        raise InputError(entry.problem)
    base = found.uri.rpartition("/")[0] or "/"
    try:
        uri = canonical_uri(entry.text, base=base)
    except ValueError as error:  # such as a bracket left open in a URL
        raise InputError(f"{entry.text[:_MAX_SHOWN_CHARS]!r} is no URI: {error}") from None
    scheme = scheme_of(uri)
    if scheme == LOCAL and scheme_of(found.uri) != LOCAL:
        raise InputError(
            f"{entry.text[:_MAX_SHOWN_CHARS]!r} is a local file, but the list is not; only a "
            "local list may name local files"
        )
    if scheme not in WEB_SCHEMES:
        return uri, False
    host = urlsplit(uri).hostname or ""
    if not storage.options.allow_private_hosts and _is_private(host):
        raise InputError(
            f"{redact(uri)[:_MAX_SHOWN_CHARS]!r} names a loopback, link-local or private host; "
            "--allow-private-hosts permits it"
        )
    return uri, split_signature(entry.text)[1]


def _is_private(host: str) -> bool:
    """Returns whether a host is private by its spelling; what a name leads to is checked later."""
    try:
        return not is_public(str(ipaddress.ip_address(host)))
    except ValueError:
        pass
    try:
        # The short, octal and hexadecimal spellings of IPv4 addresses.
        return not is_public(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return host.rstrip(".").rpartition(".")[2] in _PRIVATE_NAMES
