"""The group of workers that trains: whether the cluster has room for it, and its run."""

import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import ray
import ray.train
from ray._private.worker import get_dashboard_url
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2.api.config import ScalingConfig

from effnet_batch.capacity import num_fitting
from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.pipelines.run import new_run_id
from effnet_batch.pipelines.session import kept_sigint
from effnet_batch.storage import redact
from effnet_batch.training.feed import WORKER_CPUS, feed_cpus
from effnet_batch.training.worker import TrainTask, train_worker

_POLL_SECONDS: Final = 0.5
_CHECK_SECONDS: Final = 0.2
"""How often Ray Train looks at its workers, who wait for that at the end of every epoch."""
_CHECK_VARIABLE: Final = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_RESIZE_SECONDS: Final = 600.0
"""How long a group trains at least before new nodes join in, for which it repeats the epoch: nodes
that come and go must not keep it from ever ending one."""


def choose_device(config: FinetuneConfig, nodes: Sequence[tuple[float, float]]) -> str:
    """Returns what the training workers run on, ``cpu`` or ``cuda``.

    Args:
        config: of the training.
        nodes: CPUs and GPUs of every node.

    Raises:
        ConfigError: the nodes have no room for the workers and what they need beside them, so that
            Ray would wait for ever; says what is missing.
    """
    num_gpus = sum(gpus for _, gpus in nodes)
    device, num_workers = config.device.device, config.cluster.num_workers
    least = config.cluster.min_workers or num_workers
    flag = "--num-workers" if least == num_workers else "--min-workers"
    if device == "cpu" or (device == "auto" and num_gpus < 1):
        device, gpus = "cpu", 0.0
    else:
        device, gpus = "cuda", 1.0
    if num_gpus < gpus * least:
        raise ConfigError(
            f"{least} training workers need a GPU each, the cluster has {num_gpus:g}; lower "
            f"{flag}, or use --device cpu"
        )
    room = sum(num_fitting(node, WORKER_CPUS, gpus) for node in nodes)
    each = f"{WORKER_CPUS:g} CPUs and {gpus:g} GPUs"
    listed = ", ".join(f"{cpus:g} CPUs and {count:g} GPUs" for cpus, count in nodes) or "none"
    if least > room:
        raise ConfigError(
            f"{least} training workers of {each} do not fit: the cluster has room for {room} "
            f"(nodes: {listed}); lower {flag}, or add nodes"
        )
    if feed_cpus(nodes, num_started := min(num_workers, room), gpus=gpus) is None:
        raise ConfigError(
            f"{num_started} training workers of {each} leave no CPU for making ready what they "
            f"train on (nodes: {listed}); lower --num-workers, or add CPUs"
        )
    return device


class MessageBoard:
    """What workers want the user to read."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reason: str | None = None

    def tell(self, text: str) -> None:
        """Takes a message."""
        self._texts.append(text)

    def take(self) -> list[str]:
        """Returns what was not taken yet."""
        texts, self._texts = self._texts, []
        return texts

    def give_up(self, reason: str) -> None:
        """Takes the reason for which training cannot go on."""
        self._reason = reason

    def reason(self) -> str | None:
        """Returns the reason for which it was given up, if it was."""
        return self._reason


@contextlib.contextmanager
def _messages(reporter: Reporter) -> Iterator[Any]:
    """Yields the handle of a board whose messages are passed on from a thread."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(MessageBoard)
    board = actor.remote()
    stop = threading.Event()

    def pass_on() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            for text in ray.get(board.take.remote(), timeout=5):
                reporter.message(text)

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            pass_on()

    thread = threading.Thread(target=poll, name="messages", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        pass_on()


def _group_size(config: FinetuneConfig) -> Any:
    """Returns the number of workers as Ray Train takes it: one, or the least and the most."""
    least, most = config.cluster.min_workers, config.cluster.num_workers
    return most if least in (None, most) else (least, most)


@contextlib.contextmanager
def _frequent_checks() -> Iterator[None]:
    """Sets `_CHECK_SECONDS` for a run, unless the user says how often."""
    if _CHECK_VARIABLE in os.environ:
        yield
        return
    os.environ[_CHECK_VARIABLE] = str(_CHECK_SECONDS)
    try:
        yield
    finally:
        del os.environ[_CHECK_VARIABLE]


class _Trainer(TorchTrainer):
    """Trainer that does without what waits for a dashboard where there is none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if get_dashboard_url():  # type: ignore[no-untyped-call]
            return callbacks
        # It asks the dashboard whether the controller lives, and ends only when that was answered.
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def train(config: FinetuneConfig, task: TrainTask, reporter: Reporter) -> None:
    """Runs the train loop on the cluster.

    Raises:
        JobError: it failed more often than allowed, or for a reason that will not go away.
    """
    use_gpu = task.device == "cuda"
    with _messages(reporter) as board, tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            train_worker,
            train_loop_config={"task": dataclasses.replace(task, messages=board)},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=_group_size(config),
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": WORKER_CPUS, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=new_run_id(),
                # States are kept in the output by the loop itself; here lies nothing that lasts.
                storage_path=folder,
                failure_config=ray.train.FailureConfig(
                    max_failures=config.cluster.max_worker_failures
                ),
            ),
        )
        try:
            with kept_sigint(), _frequent_checks():
                trainer.fit()
        except Exception as error:
            cause = cause_of(error)
            if isinstance(cause, ConfigError | JobError):
                raise cause from error
            raise JobError(
                f"training failed: {redact(str(cause))}; what was saved stays, and the same "
                "command goes on"
            ) from error
        if (reason := ray.get(board.reason.remote())) is not None:
            raise JobError(reason)
