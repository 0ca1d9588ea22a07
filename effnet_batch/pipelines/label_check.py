"""What is wrong with labels: who or what stands in two splits, contradictions, missing files."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from effnet_batch.errors import FetchError
from effnet_batch.storage import Storage, redact

_Found = TypeVar("_Found")

_MAX_SHOWN: Final = 10
_NUM_THREADS: Final = 16
_CHUNK_BYTES: Final = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFile:
    """A file, and what is said of it."""

    uri: str
    label: str | None
    group: str | None
    split: str | None
    size_bytes: int | None
    """None where nobody has looked yet whether it is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What `check_labels` found."""

    counts: dict[str, int]
    """Files by split and label."""
    problems: tuple[str, ...]
    """The first ten of each kind, in words."""
    num_problems: dict[str, int]
    """All of them, by kind."""


def check_labels(
    files: Iterable[LabelledFile], storage: Storage, *, reads_contents: bool
) -> LabelReport:
    """Counts files by split and label, and finds what would make a measurement worthless.

    Args:
        files: of a dataset or a list.
        storage: finds out whether files are there, and reads them.
        reads_contents: also compare what is in files of equal size, reading those alone.

    Raises:
        FetchError: a file cannot be looked at now.
    """
    files = list(files)
    counts = collections.Counter(
        f"{file.split or 'no split'}, {file.label or 'no label'}" for file in files
    )
    seen = _in_threads(lambda file: _look(file, storage), files)
    found = {
        "groups in more than one split": _leaks(files),
        **_repeats(files),
        "missing files": [str(each) for each in seen if isinstance(each, FetchError)],
    }
    if reads_contents:
        found |= _content_problems(files, seen, storage)
    return LabelReport(
        counts=dict(sorted(counts.items())),
        problems=tuple(text for texts in found.values() for text in texts[:_MAX_SHOWN]),
        num_problems={kind: len(texts) for kind, texts in found.items() if texts},
    )


def _leaks(files: Sequence[LabelledFile]) -> list[str]:
    splits: dict[str, set[str]] = collections.defaultdict(set)
    for file in files:
        if file.split is not None and file.group is not None:
            splits[file.group].add(file.split)
    return [
        f"{group} is in {' and '.join(sorted(found))}"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]


def _repeats(files: Sequence[LabelledFile]) -> dict[str, list[str]]:
    """Compares what is said of files that are listed more than once."""
    by_uri: dict[str, list[LabelledFile]] = collections.defaultdict(list)
    for file in files:
        by_uri[file.uri].append(file)
    leaks, contradictions = [], []
    for uri, group in by_uri.items():
        splits = sorted({file.split for file in group if file.split is not None})
        labels = sorted({file.label for file in group if file.label is not None})
        if len(splits) > 1:
            leaks.append(f"{redact(uri)} is in {' and '.join(splits)}")
        if len(labels) > 1:
            contradictions.append(f"{redact(uri)} is {' and '.join(labels)}")
    return {"files in more than one split": leaks, "files with more than one label": contradictions}


def _look(file: LabelledFile, storage: Storage) -> int | FetchError | None:
    """Returns the size of a file, None where storage does not say; or why there is no file."""
    if file.size_bytes is not None:
        return file.size_bytes
    try:
        return storage.info(file.uri).size_bytes
    except FetchError as error:
        if error.is_transient:
            raise
        return error


def _content_problems(
    files: Sequence[LabelledFile], seen: Sequence[int | FetchError | None], storage: Storage
) -> dict[str, list[str]]:
    """Compares files of equal size by their SHA-256."""
    by_size: dict[int, list[LabelledFile]] = collections.defaultdict(list)
    for file, size in zip(files, seen, strict=True):
        if isinstance(size, int):
            by_size[size].append(file)
    alike = [file for group in by_size.values() if len(group) > 1 for file in group]

    def digest(file: LabelledFile) -> bytes:
        found = hashlib.sha256()
        with storage.open(file.uri) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
        return found.digest()

    by_content: dict[bytes, list[LabelledFile]] = collections.defaultdict(list)
    for file, content in zip(alike, _in_threads(digest, alike), strict=True):
        by_content[content].append(file)
    leaks, contradictions = [], []
    for group in by_content.values():
        splits = {file.split: file for file in group if file.split is not None}
        labels = {file.label: file for file in group if file.label is not None}
        if len(splits) > 1:
            leaks.append("the same content is " + _named(splits))
        if len(labels) > 1:
            contradictions.append("the same content is " + _named(labels))
    return {
        "contents in more than one split": leaks,
        "contents with more than one label": contradictions,
    }


def _named(found: dict[str, LabelledFile]) -> str:
    return " and ".join(f"{name} ({redact(found[name].uri)})" for name in sorted(found))


def _in_threads(
    work: Callable[[LabelledFile], _Found], files: Sequence[LabelledFile]
) -> list[_Found]:
    """Returns what becomes of every file, in order."""
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="labels") as threads:
        return list(threads.map(work, files))
