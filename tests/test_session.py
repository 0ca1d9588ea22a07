"""A cluster of this machine: what is started for a run, and what is not."""

import atexit
import contextlib
import os
import socket
import time
from pathlib import Path

import psutil
import ray
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from effnet_batch.pipelines.session import ray_session

NOT_NEEDED = {"dashboard.py", "log_monitor.py", "monitor.py"}


def test_a_cluster_of_this_machine_has_what_it_needs_and_waits_for_no_port() -> None:
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # another cluster has it already, which is as good
            other.bind(("", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT))
            other.listen()
        with ray_session(None) as is_own_machine:
            assert is_own_machine
            assert ray.get(ray.put(7)) == 7
            children = psutil.Process().children(recursive=True)
            started = {Path(word).name for child in children for word in child.cmdline()}
            logs = Path(ray._private.worker._global_node.get_logs_dir_path())
            told = (logs / "dashboard_agent.log").read_text()
    assert {"gcs_server", "raylet"} <= started
    assert not NOT_NEEDED & started
    assert "Failed to bind" not in told


def test_a_worker_that_cannot_end_ends_with_its_cluster() -> None:
    @ray.remote
    class Worker:
        def hang_at_the_end(self) -> int:
            atexit.register(time.sleep, 3600)
            return os.getpid()

    with ray_session(None):
        actor = Worker.remote()
        worker = psutil.Process(ray.get(actor.hang_at_the_end.remote()))
        ray.wait([actor.__ray_terminate__.remote()], timeout=5)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(timeout=30)
    assert not worker.is_running()
