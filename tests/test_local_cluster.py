"""A cluster of this machine: what is started for a run, and what is not."""

import atexit
import contextlib
import os
import socket
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.data._internal import stats
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator

from effnet_batch.pipelines.local_cluster import local_cluster
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


def are_names_of_ray() -> bool:
    names = (
        stats._StatsManager.register_dataset_to_stats_actor,
        stats._StatsManager.update_execution_metrics,
        stats._StatsManager.update_iteration_metrics,
        streaming_executor.create_cluster_autoscaler,
        actor_pool_map_operator.get_or_create_actor_location_tracker,
        actor_pool_map_operator.get_actor_locations,
    )
    are = {name.__module__.startswith("ray.") for name in names}
    assert len(are) == 1
    return are.pop()


def test_ray_data_starts_no_actors_of_its_own_where_they_serve_nobody() -> None:
    class Double:
        def __call__(self, rows: pa.Table) -> pa.Table:
            return pa.table({"id": pc.multiply(rows["id"], 2)})

    with ray_session(None):
        rows = ray.data.from_blocks([pa.table({"id": [1]}), pa.table({"id": [2]})])
        doubled = rows.map_batches(
            Double,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0.5,
        )
        assert sorted(row["id"] for row in doubled.take_all()) == [2, 4]
        actors = [actor["ActorClassName"] for actor in ray._private.state.actors().values()]
    assert actors == ["MapWorker(MapBatches(Double))"] * 2
    assert are_names_of_ray()


def test_ray_keeps_its_names_where_a_cluster_is_there_already() -> None:
    with local_cluster():
        assert not are_names_of_ray()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        with ray_session(None) as is_own:
            assert not is_own
            assert are_names_of_ray()
    finally:
        ray.shutdown()


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
