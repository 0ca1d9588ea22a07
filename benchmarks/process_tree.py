"""What a command costs with everything it starts: CPU seconds, memory, time to its first file.

Ray's raylet, stores and workers are not all children of the driver for good, so the whole tree is
watched in /proc, and this process adopts whatever outlives its parent.
"""

import ctypes
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.2
_MEMORY_SECONDS = 5.0
"""Seldom: the kernel counts every page of every process, and Ray's are many."""
_LINGER_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command cost."""

    wall_seconds: float
    """Until the command itself ended."""
    cpu_seconds: float
    """User and system time of every process of the tree, also of those that ended in between."""
    peak_pss_bytes: int
    """Largest sum of the proportional set sizes (shared pages counted once), sampled every 5 s.
    """
    first_file_seconds: float | None
    """Until the first file that was waited for was there."""
    root_cpu_seconds: float
    """The command's own user and system time, without its children."""
    root_peak_rss_bytes: int
    """The command's own largest resident set, without its children."""


@dataclasses.dataclass
class _Process:
    parent: tuple[int, int] | None
    """(pid, start time) of the parent as first seen; None for what this process started."""
    own_seconds: float = 0.0
    reaped_seconds: float = 0.0
    """CPU of children that it waited for, as the kernel adds it up."""
    is_alive: bool = True


def measure(
    command: Sequence[str],
    *,
    env: dict[str, str] | None = None,
    first_file: tuple[Path, str] | None = None,
    log: Path,
) -> Cost:
    """Runs a command to its end, and its orphans too.

    Args:
        command: program and arguments.
        env: variables to add.
        first_file: folder and pattern of the files of which the first is waited for.
        log: takes the command's output.

    Raises:
        RuntimeError: the command failed; the message ends with its output.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    tree = _Tree()
    start = time.perf_counter()
    with log.open("wb") as output:
        root = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        wall, first = None, None
        next_memory, deadline = 0.0, float("inf")
        while True:
            now = time.perf_counter() - start
            if first is None and first_file and any(first_file[0].glob(first_file[1])):
                first = now
            if now >= next_memory:
                tree.sample_memory(root.pid)
                next_memory = time.perf_counter() - start + _MEMORY_SECONDS
            ended = tree.sample()
            if wall is None and root.pid in ended:
                wall = time.perf_counter() - start
                deadline = wall + _LINGER_SECONDS
            for pid in ended:
                if pid == root.pid:
                    root.wait()
                else:
                    os.waitpid(pid, 0)
            if wall is not None and not tree.alive:
                break
            if now > deadline:
                for pid in tree.alive:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_SAMPLE_SECONDS)
    if root.returncode:
        text = log.read_text(errors="replace")
        raise RuntimeError(f"{' '.join(command)} ended with {root.returncode}:\n{text[-3000:]}")
    return Cost(
        wall_seconds=wall,
        cpu_seconds=tree.cpu_seconds(),
        peak_pss_bytes=tree.peak_pss_bytes,
        first_file_seconds=first,
        root_cpu_seconds=tree.own_seconds(root.pid),
        root_peak_rss_bytes=tree.root_peak_rss_bytes,
    )


class _Tree:
    """Every process that this one started, directly or not, since the tree was made."""

    def __init__(self) -> None:
        self._me = os.getpid()
        self._processes: dict[tuple[int, int], _Process] = {}
        self._keys: dict[int, tuple[int, int]] = {}
        self._foreign = _pids() - {self._me}
        self.peak_pss_bytes = 0
        self.root_peak_rss_bytes = 0

    @property
    def alive(self) -> list[int]:
        """Pids of the processes that have not ended."""
        return list(self._keys)

    def sample(self) -> list[int]:
        """Takes in the CPU times of this moment.

        Returns:
            Pids of zombies that this process has to wait for; their times are final.
        """
        pids = _pids()
        self._foreign &= pids
        self._adopt(pids)
        ended = []
        for pid, key in list(self._keys.items()):
            stat = _stat(pid) if pid in pids else None
            process = self._processes[key]
            if stat is None or stat.started != key[1]:
                process.is_alive = False
                del self._keys[pid]
                continue
            process.own_seconds = stat.own_seconds
            process.reaped_seconds = stat.reaped_seconds
            if stat.state == "Z" and stat.parent == self._me:
                process.is_alive = False
                del self._keys[pid]
                ended.append(pid)
        return ended

    def _adopt(self, pids: set[int]) -> None:
        new = sorted(pids - self._foreign - self._keys.keys() - {self._me})
        found = True
        while new and found:
            found = False
            for pid in list(new):
                stat = _stat(pid)
                if stat is None:
                    new.remove(pid)
                elif stat.parent == self._me or stat.parent in self._keys:
                    key = (pid, stat.started)
                    self._processes[key] = _Process(self._keys.get(stat.parent))
                    self._keys[pid] = key
                    new.remove(pid)
                    found = True
        self._foreign.update(new)

    def sample_memory(self, root: int) -> None:
        """Takes in the memory of this moment."""
        total = 0
        for pid in self._keys:
            total += _kib(f"/proc/{pid}/smaps_rollup", "Pss:") << 10
        self.peak_pss_bytes = max(self.peak_pss_bytes, total)
        peak = _kib(f"/proc/{root}/status", "VmHWM:") << 10
        self.root_peak_rss_bytes = max(self.root_peak_rss_bytes, peak)

    def own_seconds(self, pid: int) -> float:
        """Returns the CPU seconds of one process, its children left out."""
        return sum(each.own_seconds for key, each in self._processes.items() if key[0] == pid)

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds of the whole tree so far.

        A process that was waited for is in its parent's sum as well, and one that lived shorter
        than a sample is only there; the larger of both accounts is taken at every parent. (A parent
        that ignores SIGCHLD, as Ray's raylet does, gets no sum at all.)
        """
        children: dict[tuple[int, int] | None, list[tuple[int, int]]] = {}
        for key, process in self._processes.items():
            children.setdefault(process.parent, []).append(key)

        def total(key: tuple[int, int]) -> float:
            process = self._processes[key]
            ended = alive = 0.0
            for child in children.get(key, []):
                if self._processes[child].is_alive:
                    alive += total(child)
                else:
                    ended += total(child)
            return process.own_seconds + max(process.reaped_seconds, ended) + alive

        return sum(total(key) for key in children.get(None, []))


@dataclasses.dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    started: int
    own_seconds: float
    reaped_seconds: float


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    utime, stime, cutime, cstime = (int(value) / _TICKS for value in fields[11:15])
    return _Stat(fields[0], int(fields[1]), int(fields[19]), utime + stime, cutime + cstime)


def _kib(path: str, name: str) -> int:
    try:
        with open(path) as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return 0
