"""The train loop that Ray Train runs on every worker."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist

from effnet_batch.errors import FetchError, FingerprintError, JobError, OutageError
from effnet_batch.storage import Storage, join
from effnet_batch.training.events import event_file, event_file_name, points_of
from effnet_batch.training.feed import feed_cpus
from effnet_batch.training.objective import Examples, Objective
from effnet_batch.training.plan import epoch_plan, share_of
from effnet_batch.training.trainer import Trainer, class_weights

METRICS_FILE: Final = "metrics.jsonl"
BEST_FILE: Final = "best.safetensors"
JUDGED_FILE: Final = "best-judged.json"
"""``judged``: what its model made of every row of what is validated on, as `Examples.judge` returns
it; ``sha256``: of that model's file, which is another one where a run broke off between the two."""
EVENTS_FOLDER: Final = "events"
"""TensorBoard's files, in a folder for each run that was trained here, named by fingerprint."""

_LOG_LOSS: Final = "val_log_loss"
_STATES_KEPT: Final = 2
_SECONDS_BETWEEN_MESSAGES: Final = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Everything a training worker needs to know; plain values, no secret and no open file."""

    objective: Objective
    """What is trained, and on what."""
    folder: str
    """Where states, metrics and the best checkpoint are written."""
    device: str
    """``cpu`` or ``cuda``. A worker cannot tell by itself: Ray leaves the GPUs of a node visible to
    those that asked for none."""
    nodes: Callable[[], Sequence[tuple[float, float]]]
    """Finds CPUs and GPUs of every node that the cluster has by now."""
    messages: Any
    """Handle of the actor that shows messages to the user, ``tell(text)``, and knows the ``reason``
    for which training was given up, ``give_up(reason)``."""


@dataclasses.dataclass
class _History:
    """What earlier epochs came to."""

    metric: str
    """As for `best_epoch`."""
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def epochs_since_best(self) -> int:
        epochs = epochs_of(self.lines)
        return epochs[-1]["epoch"] - best_epoch(epochs, self.metric)["epoch"] if epochs else 0

    def is_exhausted(self, patience: int | None) -> bool:
        return patience is not None and self.epochs_since_best >= patience


def epochs_of(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of whole epochs, without those of single steps."""
    return [line for line in lines if _LOG_LOSS in line]


def best_epoch(epochs: Iterable[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Returns the line of the epoch that is kept.

    It has the most of the metric. Few records to validate on soon reach the most there is, while
    their log loss goes on falling: of equals the least of it decides, then the earlier epoch.

    Args:
        epochs: lines of `epochs_of`; at least one.
        metric: `Objective.METRIC`.
    """
    return max(epochs, key=lambda line: (line[f"val_{metric}"], -line[_LOG_LOSS], -line["epoch"]))


def is_ended(storage: Storage, task: TrainTask) -> bool:
    """Returns whether an earlier run has trained all that there is to train."""
    if (state := _latest_state(storage, task)) is None:
        return False
    epoch, settings = int(state[-9:-3]), task.objective.optimisation
    history = _History(task.objective.METRIC, _read_lines(storage, task, epoch))
    return epoch >= settings.epochs or history.is_exhausted(settings.patience)


def train_worker(config: dict[str, Any]) -> None:
    """Trains until all epochs are done, from wherever the saved state leaves off.

    What would fail again the driver is told; workers that are started once more have nothing to do.
    """
    task: TrainTask = config["task"]
    if ray.get(task.messages.reason.remote()) is not None:
        return
    try:
        _train(task)
    except OutageError:
        raise  # storage may come back
    except (FingerprintError, JobError) as error:
        ray.get(task.messages.give_up.remote(str(error)))
        raise


def _train(task: TrainTask) -> None:
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    if task.device == "cpu":
        torch.set_num_threads(1)
    else:
        # For the whole process, as the engine sets them that validates: without, the first epoch
        # would be computed otherwise than those behind the first validation, or behind a restart.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    objective = task.objective
    settings = objective.optimisation
    storage = Storage(objective.storage)
    trainer = objective.make_trainer(
        storage,
        steps_per_epoch=-(-len(objective.samples) // settings.clips_per_step),
        device=task.device,
        num_workers=num_workers,
    )
    examples = objective.open(storage, feed_cpus=_feed_cpus(task, num_workers))
    history = _History(objective.METRIC)
    if state := _latest_state(storage, task):
        trainer.load(storage.read(state))
        history.lines = _read_lines(storage, task, trainer.epoch)
    weights = class_weights(objective.samples["label"].to_pylist(), balance=settings.balance)
    while trainer.epoch < settings.epochs and not history.is_exhausted(settings.patience):
        epoch = _Epoch(task, examples, trainer, rank, num_workers, weights)
        history.lines += epoch.train()
        line = epoch.validate()
        history.lines.append(line)
        trainer.epoch += 1
        if rank == 0:
            _keep(storage, task, trainer, history, epoch.judged)
            task.messages.tell.remote(_describe(line, settings.epochs))
        ray.train.report({"epoch": trainer.epoch, **line})
    if rank == 0 and trainer.epoch < settings.epochs:
        task.messages.tell.remote(f"no better epoch for {settings.patience} epochs: training ends")


def _feed_cpus(task: TrainTask, num_workers: int) -> float:
    """Returns what tasks beside the workers ask for on the cluster as it is by now.

    That is nothing where the workers fill the nodes that are left of it: they train on slowly.
    """
    share = feed_cpus(task.nodes(), num_workers, gpus=float(task.device != "cpu"))
    return 0.0 if share is None else share


class _Epoch:
    """One pass over the samples."""

    def __init__(
        self,
        task: TrainTask,
        examples: Examples,
        trainer: Trainer,
        rank: int,
        num_workers: int,
        weights: dict[int, float],
    ) -> None:
        self._objective, self._messages = task.objective, task.messages
        self._examples, self._trainer, self._device = examples, trainer, task.device
        self._rank, self._num_workers, self._weights = rank, num_workers, weights
        self._waited_share = 0.0
        self._mean_loss = 0.0
        self.judged: list[Any] = []
        """What validation made of every row."""
        self._began = time.perf_counter()

    def train(self) -> list[dict[str, Any]]:
        """Takes the epoch's steps; returns a line per step."""
        objective, trainer = self._objective, self._trainer
        settings = objective.optimisation
        plan = epoch_plan(
            len(objective.samples), settings.clips_per_step, seed=settings.training_seed,
            epoch=trainer.epoch,
        )  # fmt: skip
        labels = objective.samples["label"].to_pylist()
        totals = [
            sum(
                self._weights[labels[step.sample]]
                for step in plan[start : start + settings.clips_per_step]
                if step.counts
            )
            for start in range(0, len(plan), settings.clips_per_step)
        ]
        began = time.perf_counter()
        shares = share_of(plan, settings.clips_per_step, self._rank, self._num_workers)
        batches = self._examples.batches(
            [step for share in shares for step in share],
            self._weights,
            epoch=trainer.epoch,
            batch_size=len(shares[0]),
        )
        trainer.start_epoch(self._rank)
        lines: list[dict[str, Any]] = []
        told = time.perf_counter()
        for number, total in enumerate(totals):
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            loss = self._sum(trainer.train_step(batch, total))
            lines.append(
                {
                    "epoch": trainer.epoch + 1,
                    "step": number + 1,
                    "loss": loss,
                    "wait_seconds": waited,
                    "unix_seconds": time.time(),
                }
            )
            if self._rank == 0 and time.perf_counter() - told > _SECONDS_BETWEEN_MESSAGES:
                told = time.perf_counter()
                text = f"step {number + 1}/{len(totals)}, loss {loss:.4f}"
                self._messages.tell.remote(f"epoch {trainer.epoch + 1}: {text}")
        assert next(batches, None) is None, "a batch for each step"
        waits = sum(line["wait_seconds"] for line in lines)
        self._waited_share = waits / (time.perf_counter() - began)
        self._mean_loss = sum(line["loss"] for line in lines) / len(lines)
        return lines

    def validate(self) -> dict[str, Any]:
        """Judges what is validated on, each worker its share; returns the epoch's line."""
        self._trainer.share_statistics()
        rows = self._objective.validation
        # There may be fewer rows than workers.
        mine = rows.take(pa.array(range(self._rank, len(rows), self._num_workers), pa.int64()))
        found = self._examples.judge(self._trainer.judged, mine, device=self._device)
        shares: list[Any] = [found]
        if self._num_workers > 1:
            shares = [None] * self._num_workers
            dist.all_gather_object(shares, found)
        self.judged = [None] * len(rows)
        for rank, share in enumerate(shares):
            self.judged[rank :: self._num_workers] = share
        metrics = self._objective.measure(self.judged)
        return {
            "epoch": self._trainer.epoch + 1,
            "mean_loss": self._mean_loss,
            **{f"val_{name}": value for name, value in metrics.items()},
            "data_wait_share": self._waited_share,
            "seconds": time.perf_counter() - self._began,
            "unix_seconds": time.time(),
            "training_fingerprint": self._objective.fingerprint,
        }

    def _sum(self, value: float) -> float:
        if self._num_workers == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return float(total)


def _keep(
    storage: Storage,
    task: TrainTask,
    trainer: Trainer,
    history: _History,
    judged: Sequence[Any],
) -> None:
    """Writes the metrics, the best checkpoint and, last, the state that a restart goes on from."""
    # From here on, states of other settings would stand beside metrics and a best checkpoint that
    # are not theirs.
    storage.delete_many([uri for uri in _states(storage, task) if not _is_ours(uri, task)])
    text = "".join(json.dumps(line) + "\n" for line in history.lines)
    storage.write(join(task.folder, METRICS_FILE), text.encode())
    points = [each for each in points_of(history.lines) if each.epoch == trainer.epoch]
    events = join(task.folder, EVENTS_FOLDER, task.objective.fingerprint)
    storage.write(join(events, event_file_name(trainer.epoch)), event_file(points))
    if history.epochs_since_best == 0:
        data = task.objective.checkpoint(trainer.judged)
        said = {"sha256": hashlib.sha256(data).hexdigest(), "judged": judged}
        storage.write(join(task.folder, JUDGED_FILE), json.dumps(said).encode())
        storage.write(join(task.folder, BEST_FILE), data)
    storage.write(_state_uri(task, trainer.epoch), trainer.save())
    if trainer.epoch > _STATES_KEPT:
        storage.delete_many([_state_uri(task, trainer.epoch - _STATES_KEPT)])


def _state_uri(task: TrainTask, epoch: int) -> str:
    return join(task.folder, f"state-{task.objective.fingerprint}-{epoch:06}.pt")


def _states(storage: Storage, task: TrainTask) -> list[str]:
    listed = [info.uri for page in storage.list(task.folder) for info in page]
    return [uri for uri in listed if uri.startswith(join(task.folder, "state-"))]


def _is_ours(uri: str, task: TrainTask) -> bool:
    return f"/state-{task.objective.fingerprint}-" in uri


def _latest_state(storage: Storage, task: TrainTask) -> str | None:
    return max((uri for uri in _states(storage, task) if _is_ours(uri, task)), default=None)


def _read_lines(storage: Storage, task: TrainTask, epoch: int) -> list[dict[str, Any]]:
    """Returns the lines of the epochs that are done.

    Raises:
        JobError: a file that stands beside the saved state is damaged or gone.
    """
    uri = join(task.folder, METRICS_FILE)
    try:
        lines = storage.read(uri).decode().splitlines()
        found = [line for line in map(json.loads, lines) if line["epoch"] <= epoch]
        if epoch not in [line["epoch"] for line in epochs_of(found)]:
            raise ValueError(f"no epoch {epoch}")
        uri = join(task.folder, BEST_FILE)
        storage.info(uri)
    except (FetchError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FetchError) and error.is_transient:
            raise
        raise JobError(
            f"{uri} is damaged or gone ({error}), so that training cannot go on; delete "
            f"{task.folder} and run the same command again, which trains anew on what is prepared"
        ) from error
    return found


def _describe(line: dict[str, Any], num_epochs: int) -> str:
    metrics = ", ".join(
        f"{name.removeprefix('val_').replace('_', ' ')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("val_")
    )
    return (
        f"epoch {line['epoch']}/{num_epochs}: loss {line['mean_loss']:.4f}, validation {metrics}, "
        f"waited for data {line['data_wait_share']:.0%} of the time, {line['seconds']:.0f} s"
    )
