"""The life of a run: lock, manifest, ledger, work, proof. Every job goes through it."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import ray
import ray.exceptions

from effnet_batch.config import InputSettings, JobConfig, StorageSettings
from effnet_batch.errors import (
    ConfigError,
    EffnetBatchError,
    FingerprintError,
    OutageError,
    StorageError,
)
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.ledger import Ledger
from effnet_batch.lock import OutputLock
from effnet_batch.manifest import build_manifest, has_manifest, summarize, write_manifest
from effnet_batch.pipelines.checks import changed_listing, check_retry, check_sources
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.pipelines.pending import PENDING_SCHEMA, find_pending, with_fetch_uris
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.pipelines.summary import RunSummary
from effnet_batch.pipelines.verify import (
    check,
    load_forgotten,
    load_manifest,
    load_run,
    without_forgotten,
)
from effnet_batch.prefixes import RowsByPrefix
from effnet_batch.schema import KIND_IMAGE, MANIFEST_SCHEMA
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import (
    Storage,
    StorageOptions,
    canonical_uri,
    discarding_empty,
    join,
    redact,
    split_signature,
)

STATE_RUNNING: Final = "running"
STATE_COMPLETE: Final = "complete"
STATE_INCOMPLETE: Final = "incomplete"
STATE_STOPPED: Final = "stopped"
STATE_FAILED: Final = "failed"

_NOT_IN_NUMBERS: Final = ("rows_per_part", "store_crops")
"""Settings of groups that numbers depend on, which none depends on."""


class Run:
    """One run of one job into one output."""

    def __init__(
        self,
        job: str,
        input: str,
        config: JobConfig,
        storage: Storage,
        paths: OutputPaths,
        reporter: Reporter,
        medium: str | None,
    ) -> None:
        self.job = job
        self._medium = medium
        self.input = input
        self.config = config
        self.storage = storage
        self.paths = paths
        self.reporter = reporter
        self.run_id = new_run_id()
        self.manifest = RowsByPrefix(MANIFEST_SCHEMA)
        self.pending = RowsByPrefix(PENDING_SCHEMA)
        self.num_units = 0
        self.ledger = Ledger(storage, paths.data)
        self.previous: dict[str, Any] | None = None
        self._incomplete: dict[str, str] = {}
        self._record: dict[str, Any] = {}
        self._started = time.monotonic()
        self._receipts: dict[str, float] = {}

    def prepare(self, *, update: bool, retry: Sequence[str]) -> None:
        """Finds out what is to do."""
        self.previous = self._load_previous(update=update)
        # Without run.json nobody knows what the manifest was listed from.
        if update or not self.previous or not has_manifest(self.storage, self.paths.root):
            self._list_input(update=update)
        self.manifest = load_manifest(self.storage, self.paths)
        self.ledger.refresh()
        self._set_aside_unreadable()
        self.pending = find_pending(self.manifest, self.ledger, retry)
        for pending in itertools.islice(self.passes(), 1):
            check_sources(pending, self.input, self.storage, is_resumed=bool(self.ledger.parts))
        to_do = self.pending.num_rows
        done = self.manifest.num_rows - to_do
        self.reporter.message(f"{self.manifest.num_rows:,} sources, {done:,} done, {to_do:,} to do")

    def _load_previous(self, *, update: bool) -> dict[str, Any] | None:
        if not self.storage.exists(self.paths.run):
            return None
        previous = load_run(self.storage, self.paths)
        if previous.get("job") != self.job:
            raise ConfigError(
                f"{self.paths.root} holds the output of {previous.get('job')!r}, not {self.job!r}"
            )
        if previous["input"] != canonical_uri(self.input) and not update:
            raise ConfigError(
                f"{self.paths.root} was made from {previous['input']}, not {redact(self.input)}; "
                f"use another output, or --update to take this input in as well"
            )
        medium = previous.get("medium", self._medium or KIND_IMAGE)
        if self._medium not in (None, medium):
            raise ConfigError(
                f"{self.paths.root} holds the output of {medium}s, not of {self._medium}s; use "
                "another output"
            )
        self._medium = medium
        if not update and (changed := changed_listing(previous["config"], self.config)):
            verbs = ("differs", "does") if len(changed) == 1 else ("differ", "do")
            self.reporter.warning(
                f"{', '.join(changed)} {verbs[0]} from when the input was listed and {verbs[1]} "
                f"not count; --update lists it again"
            )
        return previous

    @property
    def medium(self) -> str:
        """What is read: what was asked for, else what the output or the input holds."""
        assert self._medium is not None, "the run is not prepared"
        return self._medium

    def _list_input(self, *, update: bool) -> None:
        self.reporter.message(f"listing {redact(self.input)}")
        sources = build_manifest(
            self.input,
            self.storage,
            medium=self._medium,
            exclude=self.paths.root,
            **dataclasses.asdict(self.config.group(InputSettings)),
        )
        summary = summarize(sources)
        if summary.num_bad_lines:
            self.reporter.warning(f"{summary.num_bad_lines:,} entries are refused and left out")
        self._medium = summary.medium
        if skipped := summary.num_skipped_by_extension:
            names = ", ".join(f"{count:,} {name or '(none)'}" for name, count in skipped.items())
            self.reporter.message(f"not {self.medium}s, left out by extension: {names}")
        sources = without_forgotten(sources, load_forgotten(self.storage, self.paths))
        changes = write_manifest(self.storage, self.paths.root, sources, update=update)
        if update:
            self.reporter.message(
                f"manifest: {changes.num_added:,} new, {changes.num_changed:,} changed, "
                f"{changes.num_vanished:,} not listed any more"
            )

    def _set_aside_unreadable(self) -> None:
        """Moves damaged parts out of the way; their sources are done again."""
        for uri, why in list(self.ledger.unreadable.items()):
            name = uri.rsplit("/", 1)[-1]
            aside = join(self.paths.quarantine, name)
            self.reporter.warning(
                f"part {name} is damaged ({why}); moved to {aside}, will be redone"
            )
            self.storage.write(aside, self.storage.read(uri))
            self.storage.delete_many([uri])
            del self.ledger.unreadable[uri]

    def passes(self) -> Iterator[pa.Table]:
        """Yields the pending sources, a pass at a time, with the columns of `stages.read.Source`.

        Raises:
            InputError: the input does not have the URL of a signed source any more.
        """
        for pending in self.pending.tables():
            if pending.num_rows:
                yield with_fetch_uris(pending, self.input, self.storage, self.medium)

    def stored_resolution(self) -> dict[str, Any] | None:
        """Returns what an earlier run resolved, when it was asked for the same numbers."""
        if self.previous and self.previous.get("requested") == self._requested():
            return dict(self.previous["resolved"])
        return None

    def _requested(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in json.loads(json.dumps(_redacted(self.config.to_flat()))).items()
            if self.config.settings()[name][0] in self.config.NUMBER_GROUPS
            and name not in _NOT_IN_NUMBERS
        }

    def begin(
        self,
        fingerprint: Fingerprint,
        resolved: dict[str, Any],
        frames: dict[str, dict[str, Any]],
        drift: dict[str, Any] | None = None,
    ) -> None:
        """Writes run.json before the first row.

        ``frames`` are those of `Resolution.frames`, ``drift`` that of `drift.to_record`.

        Raises:
            FingerprintError: the output holds other numbers.
        """
        if self.previous and self.ledger.parts:
            fingerprint.check_same(self.previous["fingerprint_fields"], self.paths.root)
        if strange := self.ledger.fingerprints - {fingerprint.digest}:
            raise FingerprintError(
                f"{self.paths.root} holds rows of fingerprint {', '.join(sorted(strange))}, and "
                f"this run would write {fingerprint.digest}; use another output"
            )
        self._record = {
            "job": self.job,
            "medium": self.medium,
            "input": canonical_uri(self.input),
            "config": _redacted(self.config.to_flat()),
            "requested": self._requested(),
            "resolved": resolved,
            "fingerprint": fingerprint.digest,
            "fingerprint_fields": fingerprint.to_dict(),
            "frames": frames,
            "drift": drift,
        }
        self._started = time.monotonic()
        self.write_state(STATE_RUNNING)

    def write_state(self, state: str, **facts: Any) -> None:
        """Writes run.json, and the same under the run's own name."""
        if not self._record:
            return
        record = {
            **self._record,
            "run_id": self.run_id,
            "state": state,
            "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 3),
            "stages": {name: round(value, 3) for name, value in self._receipts.items()},
            **facts,
        }
        self._write_record(record)

    def _write_record(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2).encode()
        self.storage.write(join(self.paths.runs, f"{record['run_id']}.json"), text)
        self.storage.write(self.paths.run, text)

    def write_end(self, state: str, **facts: Any) -> None:
        """Writes how a run broke off, if storage lets it; what broke it is the error to show."""
        try:
            self.write_state(state, **facts)
        except EffnetBatchError as error:
            self.reporter.warning(f"run.json cannot say that the run {state}: {error}")

    def take(self, receipt: dict[str, Any]) -> None:
        """Adds a receipt of committed rows."""
        for name, value in receipt.items():
            self._receipts[name] = self._receipts.get(name, 0) + value

    def take_incomplete(self, shards: tuple[tuple[str, str], ...]) -> None:
        """Takes the shards that broke off in their middle, as URI and reason."""
        self._incomplete.update(shards)

    def num_taken(self) -> tuple[int, int]:
        """Returns how many records this run has committed, and how many of them failed."""
        records, failed = (self._receipts.get(name, 0) for name in ("num_records", "num_failed"))
        return int(records), int(failed)

    def num_pending_records(self) -> int | None:
        """Returns how many records are to come, or None while shards hide how many they hold."""
        tables = self.pending.tables()
        kinds = {kind.as_py() for table in tables for kind in table["kind"].unique()}
        return self.pending.num_rows if kinds <= {self.medium} else None

    def finish(self) -> RunSummary:
        """Proves the output and writes the final run.json."""
        seconds = time.monotonic() - self._started if self._record else 0.0
        try:
            self.ledger.refresh()
        except StorageError as error:  # it could be listed when the run began
            raise OutageError(str(error)) from error
        run = self._record or self.previous or {}
        report = check(self.manifest, self.ledger, run)
        state = STATE_COMPLETE if report.is_proven else STATE_INCOMPLETE
        self.write_state(state, counts=report.counts())
        if not self._record and self.previous and self.previous.get("state") != state:
            # The run that did the work was killed before it could say so.
            facts = {**self.previous, "state": state, "counts": report.counts()}
            self._write_record({k: v for k, v in facts.items() if k != "error"})
        stages = {
            name.removesuffix("_seconds"): value
            for name, value in self._receipts.items()
            if name.endswith("_seconds")
        }
        return RunSummary(
            run_id=self.run_id,
            output=self.paths.root,
            state=state,
            report=report,
            num_new_records=self.num_taken()[0],
            size_bytes=int(self._receipts.get("size_bytes", 0)),
            seconds=seconds,
            stage_seconds=stages,
            incomplete=tuple(self._incomplete.items()),
        )


@contextlib.contextmanager
def open_run(
    job: str,
    input: str,
    output: str,
    config: JobConfig,
    *,
    update: bool,
    retry: Sequence[str],
    reporter: Reporter,
    medium: str | None = KIND_IMAGE,
) -> Iterator[Run]:
    """Opens and holds a run that lists its input; None reads the medium that is found there."""
    storage = Storage(storage_options(config))
    paths = OutputPaths(canonical_uri(output))
    run = Run(job, input, config, storage, paths, reporter, medium)
    with hold(run, update=update, retry=retry):
        yield run


@contextlib.contextmanager
def hold(run: Run, *, update: bool, retry: Sequence[str]) -> Iterator[None]:
    """Checks storage, takes the lock and prepares a run; on leaving, says how it ended.

    Raises:
        ConfigError: something is wrong before any work has started.
        JobError: the work failed.
    """
    storage, source, root = run.storage, canonical_uri(run.input), run.paths.root
    if source == root:
        raise ConfigError(f"INPUT and OUTPUT are the same folder: {root}")
    check_retry(retry)
    with contextlib.ExitStack() as stack:
        stack.enter_context(discarding_empty(root))
        storage.check_writable(root)
        if not storage.exists(run.paths.run) or update:
            storage.check_readable(run.input if split_signature(run.input)[1] else source)
        lock = stack.enter_context(OutputLock(storage, run.paths.lock, run.run_id))
        run.prepare(update=update, retry=retry)
        try:
            yield
        except KeyboardInterrupt:
            run.write_end(STATE_STOPPED)
            raise
        except Exception as error:
            cause = cause_of(error) if isinstance(error, ray.exceptions.RayError) else error
            if isinstance(cause, OutageError):  # it was waited for long enough
                briefly = dataclasses.replace(storage.options, num_attempts=2)
                run.storage = lock.storage = Storage(briefly)
            run.write_end(STATE_FAILED, error=redact(str(cause)) or type(cause).__name__)
            if cause is error:
                raise
            raise cause from error


def storage_options(config: JobConfig) -> StorageOptions:
    """Returns the storage room's options of a configuration."""
    return StorageOptions(**dataclasses.asdict(config.group(StorageSettings)))


def _redacted(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without the signatures that URLs of weights may carry."""

    def clean(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(clean(item) for item in value)
        return redact(value) if isinstance(value, str) else value

    return {name: clean(value) for name, value in flat.items()}


def new_run_id() -> str:
    """Returns a name for a run; names sort by time."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
