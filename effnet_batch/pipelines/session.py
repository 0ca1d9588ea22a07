"""Connecting to Ray quietly: this machine, or a cluster that the user names."""

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Final

import psutil
import ray
import ray.data
from ray._raylet import setproctitle  # type: ignore[attr-defined]

from effnet_batch.errors import ConfigError
from effnet_batch.pipelines.local_cluster import local_cluster
from effnet_batch.storage import redact

LOCAL: Final = "local"
"""Address of a cluster of this machine, started for the run, whatever ``RAY_ADDRESS`` says."""
_CONNECT_SECONDS: Final = 5.0


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
    with contextlib.ExitStack() as stack:
        with _kept_sigterm():
            if address:
                _connect(address)
                stack.callback(ray.shutdown)
            else:
                stack.enter_context(local_cluster())
        yield not address


def _connect(address: str) -> None:
    """Connects to a cluster that runs.

    Raises:
        ConfigError: none answers at the address.
    """
    _check_answers(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {address}: {str(error).strip().splitlines()[0]}"
        ) from error


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
