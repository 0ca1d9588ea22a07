"""A look at the sources before any cluster is started: what cannot work is said at once."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import InputSettings, JobConfig
from effnet_batch.errors import ConfigError, FetchError, OutageError, StorageError
from effnet_batch.schema import STATUS_OK, STATUSES
from effnet_batch.storage import Storage, canonical_uri, scheme_of
from effnet_batch.storage.uris import LOCAL, WEB_SCHEMES

_MAX_CHECKED: Final = 10_000
_MAX_PLACES: Final = 16
_MAX_LOCAL: Final = 3
_ANSWERS: Final = ("HTTPError", "PermissionError")
"""Errors of one object that show that its bucket or host answers."""


def check_retry(statuses: Sequence[str]) -> None:
    """Checks what a caller wants to be done again.

    Raises:
        ConfigError: a status is unknown or no failure.
    """
    failed = [name for name in STATUSES if name != STATUS_OK]
    if isinstance(statuses, str):
        raise ConfigError(f"retry must be a list of statuses, got {statuses!r}")
    for name in statuses:
        if name not in failed:
            raise ConfigError(f"unknown status {name!r}; allowed are {', '.join(failed)}")


def changed_listing(before: dict[str, Any], config: JobConfig) -> list[str]:
    """Returns the settings of the listing that are not those the input was listed with."""
    names = [field.name for field in dataclasses.fields(InputSettings)]
    now = config.to_flat()
    return [name for name in names if name in before and before[name] != now[name]]


def check_sources(pending: pa.Table, input: str, storage: Storage, *, is_resumed: bool) -> None:
    """Touches one pending source of every bucket or host.

    Args:
        pending: sources to do.
        input: what they were listed from.
        storage: how they are reached.
        is_resumed: an earlier run has committed something.

    Raises:
        StorageError: a bucket is missing or refuses us, a host does not answer, or a local input is
            gone with its files.
    """
    uris = pending["uri"].slice(0, _MAX_CHECKED).to_pylist()
    firsts: dict[str, str] = {}
    for uri in uris:
        if "://" in uri:
            firsts.setdefault("/".join(uri.split("/", 3)[:3]), uri)
    places = list(firsts.values())[:_MAX_PLACES]
    try:
        results = storage.read_tails(places, 1)
    except OutageError as error:
        raise StorageError(str(error)) from error
    silent = [
        (uri, result)
        for uri, result in zip(places, results, strict=True)
        if isinstance(result, FetchError)
        and result.is_transient
        and result.error_type not in _ANSWERS
    ]
    # One dead web host among several is a record, and one that an earlier run met stays one.
    is_tolerable = all(scheme_of(uri) in WEB_SCHEMES for uri, _ in silent) and (
        len(silent) < len(places) or is_resumed
    )
    if silent and not is_tolerable:
        raise StorageError(f"the first source cannot be read: {silent[0][1]}")
    _check_mount([uri for uri in uris if "://" not in uri][:_MAX_LOCAL], input, storage)


def _check_mount(uris: list[str], input: str, storage: Storage) -> None:
    """Refuses a local input that is gone with its files: a mount that is missing, most likely."""
    source = canonical_uri(input)
    if not uris or scheme_of(source) != LOCAL:
        return
    is_gone = all(
        isinstance(result, FetchError) and result.error_type == "FileNotFoundError"
        for result in storage.read_tails(uris, 1)
    )
    if is_gone:
        storage.check_readable(source)
