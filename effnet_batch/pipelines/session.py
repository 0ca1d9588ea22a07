"""Connecting to Ray quietly: this machine, or a cluster that the user names."""

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

import psutil
import ray
import ray.data
from ray._private import node, parameter, utils
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._raylet import Config, setproctitle  # type: ignore[attr-defined]

from effnet_batch.errors import ConfigError, JobError
from effnet_batch.storage import redact

LOCAL: Final = "local"
"""Address of a cluster of this machine, started for the run, whatever ``RAY_ADDRESS`` says."""
_STARTING: Final = threading.Lock()
"""Held while Ray is started, for which this process is another for a moment."""
_CONNECT_SECONDS: Final = 5.0
_LINGER_SECONDS: Final = 1.0
"""Workers end in less than this once their node has."""
_NO_REPORTS: Final = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What every process of a cluster reports each second, and nobody reads where no dashboard is."""


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Connects to Ray for the length of a run; a connection that exists is used and left alone.

    Args:
        address: of a cluster; None means ``RAY_ADDRESS``, else a cluster of this machine that ends
            with the run, as does ``local``.

    Yields:
        Whether the cluster is one of this machine that was started for the run.

    Raises:
        ConfigError: no cluster answers at the address.
        JobError: no cluster of this machine comes up.
    """
    _quieten()
    if ray.is_initialized():
        yield False
        return
    _hide_secrets_of_command_line()
    address = address or os.environ.get("RAY_ADDRESS")
    if address == LOCAL:
        address = None
    if address:
        _check_answers(address)
        try:
            with _kept_sigterm():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at {address}: {str(error).strip().splitlines()[0]}"
            ) from error
    else:
        with _STARTING:
            _use_own_token()
            _start_cluster()
    try:
        yield not address
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuses an address where nothing listens, which Ray would wait for without a word.

    Raises:
        ConfigError: nothing listens there.
    """
    host, separator, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not separator or not port.isdigit():
        return  # such as "auto", or a mistake that Ray itself names
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from error


def _start_cluster() -> None:
    """Starts a cluster of this machine.

    Raises:
        JobError: it does not come up, as on a machine that is far too busy.
    """
    before = os.environ.copy()
    os.environ.update({name: before.get(name, value) for name, value in _NO_REPORTS.items()})
    # Every worker warns of something on starting, and would not start.
    os.environ.pop("PYTHONWARNINGS", None)
    try:
        with _kept_sigterm(), _lean_node():
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:  # Ray raises nothing narrower
        raise JobError(f"Ray did not start on this machine: {error}") from error
    finally:
        for name in [*_NO_REPORTS, "PYTHONWARNINGS"]:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


class _LeanNode(node.Node):
    """Node of a cluster of this machine, that starts no more than it needs and leaves nothing."""

    def start_api_server(self, **_: Any) -> None:
        """Starts nothing: Ray would start a server of dashboards all the same, and wait for it."""
        self._webui_url = ""

    def kill_all_processes(self, *arguments: Any, **settings: Any) -> None:
        """Ends all of the node, also workers that wait for themselves for ever as they end.

        Ray's may, in the destructor of its publisher, and nobody is left then who would end them.
        """
        workers: list[psutil.Process] = []
        for raylet in self.all_processes.get(PROCESS_TYPE_RAYLET, []):
            with contextlib.suppress(psutil.Error):
                workers += psutil.Process(raylet.process.pid).children(recursive=True)
        super().kill_all_processes(*arguments, **settings)
        _, left = psutil.wait_procs(workers, timeout=_LINGER_SECONDS)
        for worker in left:
            with contextlib.suppress(psutil.Error):
                worker.kill()


@contextlib.contextmanager
def _lean_node() -> Iterator[None]:
    """Has `ray.init` start a node with no more processes than a run on this machine needs.

    There is nothing to scale, nobody to hand the workers' logs on to, and no dashboard to serve:
    the agent is the one of a Ray without the dashboard's packages. It takes any port that is free.
    The one that Ray names is taken where another cluster runs or has just ended, and every start
    would wait for seconds before it does without.
    """
    settings: dict[str, Any] = {
        "dashboard_agent_listen_port": 0,
        "include_log_monitor": False,
        "no_monitor": True,
    }
    with (
        mock.patch.object(
            parameter, "RayParams", functools.partial(parameter.RayParams, **settings)
        ),
        mock.patch.object(node, "Node", _LeanNode),
        mock.patch.object(utils, "get_dashboard_dependency_error", ImportError),
    ):
        yield


@contextlib.contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces by one that ends without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        # Ray's own handler, which stands while it starts, exits with the signal's number.
        if error.code == signal.SIGTERM:
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def kept_sigint() -> Iterator[None]:
    """Keeps the handler of SIGINT, which Ray Train replaces for good by one that needs its actor.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; Ray's own handler would end with success.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _hide_secrets_of_command_line() -> None:
    """Takes signatures out of this process's command line.

    Ray keeps it as the job's entrypoint, in its dashboard and its event files; and anyone on the
    machine reads it in the list of processes.
    """
    command = " ".join(psutil.Process().cmdline())
    if (hidden := redact(command)) != command:
        setproctitle(hidden)


def _use_own_token() -> None:
    """Gives a cluster of this machine a token of its own, with no file in the home folder.

    The variables stay: the driver needs the token for as long as it is connected.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
        Config.initialize("")  # Ray read the mode when it was imported; it reads it again here


def _quieten() -> None:
    """Leaves the console to us; Ray's own log files keep everything."""
    # Of its own settings, that is; under PYTHONWARNINGS=error they would end the run.
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A large shard is one task; hangs are ended by our own watchdog, long fetches by their timeout.
    context.execution_no_progress_timeout_s = -1


def cluster_cpus_and_gpus() -> list[tuple[float, float]]:
    """Returns the CPUs and GPUs of every live node."""
    return [
        (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
