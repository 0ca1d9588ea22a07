"""A cluster of this machine: what is started for a run, and what is not."""

import contextlib
import socket
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
