"""A real Ray cluster of several nodes on this machine: `ray start`, dashboard, token.

    with RayNodes(folder, server.env) as nodes:
        nodes.start_head()
        first, second = nodes.add_workers(2)
        ...
        first.kill()

The head has no CPUs, as on a cluster whose head does no work.
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_MARK = "EFFNET_TEST_NODE"
"""In the environment of every process of a node: whose it is."""
_GONE_SECONDS = 60.0
_NUM_START_TRIES = 3
_PAUSE_SECONDS = 0.05


class RayNode:
    """One node: a raylet and all that it started."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.agent_port, self.metrics_port = free_ports(2)

    def processes(self, *names: str) -> list[psutil.Process]:
        """Return what is alive of the node, or of it what has one of these names in its title."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                title = " ".join(process.cmdline())
                if process.environ().get(_MARK) == self.mark and (
                    not names or any(name in title for name in names)
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_metric(self, name: str) -> None:
        """Wait until the node tells Prometheus a value of a metric."""
        deadline = time.monotonic() + _GONE_SECONDS
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        while not re.search(rf"^{name}{{.*}} [0-9.e+]+$", _get(url), re.MULTILINE):
            assert time.monotonic() < deadline, name
            time.sleep(_PAUSE_SECONDS)

    def kill(self, *names: str) -> int:
        """Kill the node at once, or of it what has one of these names; return how many died."""
        victims = self.processes(*names)
        for process in victims:
            process.send_signal(signal.SIGSTOP)
        for process in victims:
            process.send_signal(signal.SIGKILL)
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

    def start_head(self, num_cpus: int = 0) -> RayNode:
        return self._start(
            [
                "--head",
                f"--port={self.port}",
                f"--dashboard-host={self.host}",
                f"--dashboard-port={self.dashboard_port}",
                f"--ray-client-server-port={self.client_port}",
                "--include-dashboard=true",
                f"--num-cpus={num_cpus}",
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
            *arguments,
            f"--temp-dir={disk}",
            "--num-gpus=0",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            f"--dashboard-agent-listen-port={node.agent_port}",
            f"--metrics-export-port={node.metrics_port}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        log = Path(f"{node.mark}.log")
        for _ in range(_NUM_START_TRIES):
            # Into a file: whoever waits for the end of a pipe waits for the node's end.
            with log.open("wb") as file:
                code = subprocess.call(
                    command,
                    env={**self.environment, _MARK: node.mark, **environment},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            if code == 0:
                return node
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


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
