"""A Ray cluster of this machine with no more processes than a run needs.

Every idle process of Ray wakes a hundred times a second, and what wakes takes the core from an
actor. Ray has no settings for what is left out here, so some of its own names stand for others
while the cluster runs; the project's versions of Ray are bounded for it.
"""

import contextlib
import functools
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from typing import Any, Final

import psutil
import ray
from ray._private import node, parameter, utils
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data._internal.execution.operators import actor_pool_map_operator

from effnet_batch.errors import JobError

_STARTING: Final = threading.Lock()
"""Held while Ray is started, for which this process is another for a moment."""
_LINGER_SECONDS: Final = 1.0
"""Workers end in less than this once their node has."""
_NO_REPORTS: Final = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What every process of a cluster reports each second, and nobody reads where no dashboard is."""


@contextlib.contextmanager
def local_cluster() -> Iterator[None]:
    """Runs a cluster of this machine.

    Raises:
        JobError: it does not come up, as on a machine that is far too busy.
    """
    with _without_helper_actors():
        _start()
        try:
            yield
        finally:
            ray.shutdown()


def _start() -> None:
    with _STARTING:
        _use_own_token()
        before = os.environ.copy()
        os.environ.update({name: before.get(name, value) for name, value in _NO_REPORTS.items()})
        # Every worker warns of something on starting, and would not start.
        os.environ.pop("PYTHONWARNINGS", None)
        try:
            with _lean_node():
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


def _use_own_token() -> None:
    """Gives a cluster of this machine a token of its own, with no file in the home folder.

    The variables stay: the driver needs the token for as long as it is connected.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
        Config.initialize("")  # Ray read the mode when it was imported; it reads it again here


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
        _replaced(parameter, "RayParams", functools.partial(parameter.RayParams, **settings)),
        _replaced(node, "Node", _LeanNode),
        _replaced(utils, "get_dashboard_dependency_error", ImportError),
    ):
        yield


@contextlib.contextmanager
def _without_helper_actors() -> Iterator[None]:
    """Has Ray Data start no actors of its own for the datasets of this process.

    One keeps statistics for the dashboard, one asks for nodes, one says on which node an actor of
    a pool is: here is no dashboard, and no node but this one. Workers that train make datasets of
    their own, and Ray Train asks for nodes itself; both keep what they need.
    """
    manager, pools = stats._StatsManager, actor_pool_map_operator
    with (
        _replaced(manager, "register_dataset_to_stats_actor", staticmethod(_ignore)),
        _replaced(manager, "update_execution_metrics", staticmethod(_ignore)),
        _replaced(manager, "update_iteration_metrics", staticmethod(_ignore)),
        _replaced(streaming_executor, "create_cluster_autoscaler", _FixedCluster),
        _replaced(pools, "get_or_create_actor_location_tracker", _NoTracker),
        _replaced(pools, "get_actor_locations", lambda _: {}),
    ):
        yield


class _FixedCluster(ClusterAutoscaler):
    """Cluster that stays as it is, so that nobody needs to be asked what it has."""

    def __init__(self, *_: Any, **__: Any) -> None:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._resources: ExecutionResources = ExecutionResources.from_resource_dict(resources)

    def try_trigger_scaling(self) -> None:
        """There is nothing to scale."""

    def on_executor_shutdown(self) -> None:
        """There is nothing to give back."""

    def get_total_resources(self) -> ExecutionResources:
        """Returns all there is."""
        return self._resources


class _NoTracker:
    """Stands for the actor that actors of a pool tell where they are."""

    @property
    def update_actor_location(self) -> "_NoTracker":
        """The method that they call."""
        return self

    def remote(self, *_: Any) -> None:
        """Forgets it: of one node everybody knows."""


def _ignore(*_: Any, **__: Any) -> None:
    """Takes what nobody reads."""


@contextlib.contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(place)[name]
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
