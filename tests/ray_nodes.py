"""A real Ray cluster of several nodes on this machine: `ray start`, dashboard, token.

    with RayNodes(folder, server.env) as nodes:
        nodes.start_head()
        first, second = nodes.add_workers(2)
        ...
        first.kill()

The head has no CPUs, as on a cluster whose head does no work. Nodes end with the thread that
started them: a test run that is killed leaves none behind.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from s3_server import die_with_parent, free_ports

_MARK = "EFFNET_TEST_NODE"
"""In the environment of every process of a node: whose it is."""
_GONE_SECONDS = 60.0
_NUM_START_TRIES = 3
_PAUSE_SECONDS = 0.05
_STARTED = b"Ray runtime started."
_METRIC = re.compile(r"^ray_effnet_batch_(\w+)_total\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)


class RayNode:
    """One node: a raylet and all that it started."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.starter: subprocess.Popen[bytes] | None = None
        self.agent_port, self.metrics_port = free_ports(2)

    def processes(self, *names: str) -> list[psutil.Process]:
        """Return what is alive of the node, or of it what has one of these names in its title."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                title = " ".join(process.cmdline())
                if self._owns(process) and (not names or any(name in title for name in names)):
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def _owns(self, process: psutil.Process) -> bool:
        # Drivers of jobs leave the session; Ray's agents write their title over the mark.
        in_session = self.starter is not None and os.getsid(process.pid) == self.starter.pid
        return in_session or process.environ().get(_MARK) == self.mark

    def metrics(self) -> dict[str, float]:
        """Return what the node tells Prometheus of ours: name, with its tag if it has one."""
        text = _get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        found: Counter[str] = Counter()
        for name, tags, value in _METRIC.findall(text):
            tag = re.search(r'\b(?:stage|status)="(\w+)"', tags)
            found[f"{name} {tag[1]}" if tag else name] += float(value)
        return dict(found)

    def kill(self, *names: str) -> int:
        """Kill the node at once, or of it what has one of these names; return how many died."""
        victims = self.processes(*names)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        if not names and self.starter is not None:
            self.starter.wait()
        return len(victims)


class RayNodes:
    """A cluster; leaving ends every process of every node."""

    def __init__(self, folder: Path, environment: dict[str, str], host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.host = host
        self.port, self.dashboard_port, self.client_port = free_ports(3)
        self.nodes: list[RayNode] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
            **environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": os.environ["RAY_TMPDIR"],
            "RAY_metrics_report_interval_ms": "1000",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    @property
    def address(self) -> str:
        """Of the Jobs API."""
        return f"http://{self.host}:{self.dashboard_port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a client of the cluster has in its environment."""
        return {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def start_head(self, *flags: str) -> RayNode:
        return self._start(
            [
                "--head",
                *flags,
                f"--port={self.port}",
                f"--dashboard-host={self.host}",
                f"--dashboard-port={self.dashboard_port}",
                f"--ray-client-server-port={self.client_port}",
                "--include-dashboard=true",
                "--num-cpus=0",
            ]
        )

    def add_workers(
        self, number: int, *flags: str, prefix: Sequence[str] = (), **environment: str
    ) -> list[RayNode]:
        """Start nodes with one CPU each, unless flags say otherwise; a prefix starts the start."""
        # One after the other: of several that start at once on one host, Ray loses some.
        address = f"--address={self.host}:{self.port}"
        return [
            self._start([address, *(flags or ["--num-cpus=1"])], prefix, **environment)
            for _ in range(number)
        ]

    def _start(
        self, arguments: Sequence[str], prefix: Sequence[str] = (), **environment: str
    ) -> RayNode:
        node = RayNode(f"{self.folder}/node-{len(self.nodes)}-{secrets.token_hex(4)}")
        self.nodes.append(node)
        # Each its own disk, as machines have: a new node unpacks a job's code over what is there.
        disk = tempfile.mkdtemp(dir=self.environment["RAY_TMPDIR"])
        command = [
            *prefix,
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--num-gpus=0",
            *arguments,
            f"--temp-dir={disk}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            f"--dashboard-agent-listen-port={node.agent_port}",
            f"--metrics-export-port={node.metrics_port}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--block",
        ]
        log = Path(f"{node.mark}.log")
        for _ in range(_NUM_START_TRIES):
            # Into a file: whoever waits for the end of a pipe waits for the node's end.
            with log.open("wb") as file:
                node.starter = subprocess.Popen(
                    command,
                    env={**self.environment, _MARK: node.mark, **environment},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            while node.starter.poll() is None:
                if _STARTED in log.read_bytes():
                    return node
                time.sleep(_PAUSE_SECONDS)
            node.kill()  # Ray gives a node half a minute to start, which a busy machine exceeds
        raise RuntimeError(log.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        while sum(node.kill() for node in self.nodes):
            assert time.monotonic() < deadline
            time.sleep(_PAUSE_SECONDS)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_GONE_SECONDS) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
