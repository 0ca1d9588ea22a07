"""One run at a time into one output: a lock file with a heartbeat.

The lock saves work. That every record is there once rests on the names of the parts and on the
ledger's rules, so a lock that was taken over wrongly costs time and nothing else.
"""

import contextlib
import dataclasses
import json
import logging
import socket
import threading
import time
from typing import Any, Final, Self

import psutil

from effnet_batch.errors import EffnetBatchError, FetchError, LockedError
from effnet_batch.storage import Storage

HEARTBEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0
"""A lock whose heartbeat is older than this was left behind."""

WATCH_SECONDS: Final = 2.0
"""How often a lock is looked at whose heartbeat lies in the future."""

_LOG = logging.getLogger(__name__)


class OutputLock:
    """Context manager that holds ``_lock.json`` of an output.

    Raises:
        LockedError: on entering, when another live run holds it.
    """

    def __init__(self, storage: Storage, uri: str, run_id: str) -> None:
        self.storage = storage
        self.uri = uri
        self.run_id = run_id
        self.was_lost = False
        """True once another run has taken the lock over, as it does after a long silence."""
        self._version: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._version = self.storage.create(self.uri, self._content())
        except FileExistsError:
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self.was_lost:
            try:
                self.storage.delete_many([self.uri])
            except EffnetBatchError as error:
                _LOG.warning("cannot remove the lock %s: %s", self.uri, error)

    def _take_over(self) -> None:
        holder, version = Holder(), None
        with contextlib.suppress(EffnetBatchError):  # gone since: its owner has just ended
            content, version = self.storage.read_with_version(self.uri)
            holder = _parse(content)
        if not holder.is_stale() and (not holder.is_ahead() or self._is_renewed(version)):
            raise LockedError(
                f"{self.uri} is held by run {holder.run_id} on {holder.host} "
                f"(process {holder.pid}, last sign of life {holder.age_seconds():.0f} s ago); "
                f"wait for it or stop it, "
                f"or delete the file if you know that it is dead"
            )
        try:
            if version is None:
                self._version = self.storage.create(self.uri, self._content())
            else:
                self._version = self.storage.replace(self.uri, self._content(), version)
        except FileExistsError as error:
            self._version = self._own_version()
            if self._version is None:
                raise LockedError(f"{self.uri} was taken by another run just now") from error
        _LOG.warning("took over the lock of run %s, which is gone", holder.run_id)

    def _is_renewed(self, version: str | None) -> bool:
        """Tells whether a lock changes within the time in which a live one does.

        Where the holder's clock is ahead of ours, its heartbeat's age says nothing: it would look
        fresh until we catch up, however long its run is dead.
        """
        _LOG.warning("the heartbeat of the lock %s lies in the future; watching it", self.uri)
        stop_at = time.monotonic() + STALE_SECONDS
        while time.monotonic() < stop_at:
            time.sleep(WATCH_SECONDS)
            if self.storage.read_with_version(self.uri)[1] != version:
                return True
        return False

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._renew()
            except EffnetBatchError as error:
                _LOG.warning("cannot renew the lock %s: %s", self.uri, error)
            if self.was_lost:
                _LOG.warning("the lock %s was taken over by another run", self.uri)
                return

    def _renew(self) -> None:
        try:
            self._version = self.storage.replace(self.uri, self._content(), self._version or "")
        except FileExistsError:
            version = self._own_version()
            self.was_lost = version is None
            self._version = version or self._version

    def _own_version(self) -> str | None:
        """Returns the version of the lock if it is ours all the same, else None.

        A request that is sent again, since the answer to the first was lost, is refused because of
        what the first has written.
        """
        try:
            content, version = self.storage.read_with_version(self.uri)
        except FetchError as error:
            if error.error_type == "FileNotFoundError":
                return None
            raise
        return version if _parse(content).run_id == self.run_id else None

    def _content(self) -> bytes:
        me = psutil.Process()
        holder = Holder(
            run_id=self.run_id,
            host=socket.gethostname(),
            pid=me.pid,
            process_started=me.create_time(),
            heartbeat=time.time(),
        )
        return json.dumps(dataclasses.asdict(holder)).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    run_id: str = "unknown"
    host: str = ""
    pid: int = 0
    process_started: float = 0.0
    """Seconds since the epoch; tells a process from a later one of the same number."""
    heartbeat: float = 0.0
    """Seconds since the epoch."""

    def age_seconds(self) -> float:
        """Returns how long the holder has been silent."""
        return max(0.0, time.time() - self.heartbeat)

    def is_ahead(self) -> bool:
        """Returns whether the holder's clock must be wrong, or ours."""
        return self.heartbeat - time.time() > STALE_SECONDS

    def is_stale(self) -> bool:
        """Returns whether the holder is gone: its process here, or its heartbeat elsewhere."""
        if self.host == socket.gethostname() and not _is_alive(self.pid, self.process_started):
            return True
        return self.age_seconds() > STALE_SECONDS


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A killed process stays as a zombie until its parent looks at it.
        is_same = abs(process.create_time() - started) < 1
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _parse(content: bytes) -> Holder:
    """Reads a lock file; a damaged one reads as a holder that is long gone."""
    try:
        values: dict[str, Any] = json.loads(content)
        kinds: dict[str, Any] = {
            field.name: type(field.default) for field in dataclasses.fields(Holder)
        }
        return Holder(**{name: kinds[name](value) for name, value in values.items()})
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        return Holder()
