"""The train loop that Ray Train runs on every worker."""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import ray.train
import torch
import torch.distributed as dist

from effnet_batch.config import AugmentationSettings, NetworkSettings, OptimisationSettings
from effnet_batch.evaluation.metrics import Detections
from effnet_batch.models.aggregation import score_of
from effnet_batch.models.checkpoint_file import checkpoint_bytes
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage, StorageOptions, join
from effnet_batch.training.feed import Feed, FeedClock
from effnet_batch.training.network import build_network
from effnet_batch.training.plan import Step, epoch_plan, share_of
from effnet_batch.training.prepared import PreparedClips
from effnet_batch.training.stored import StoredClips, StoredFrames
from effnet_batch.training.trainer import Batch, Trainer, class_weights

METRICS_FILE: Final = "metrics.jsonl"
BEST_FILE: Final = "best.safetensors"
_STATES_KEPT: Final = 2
_SECONDS_BETWEEN_MESSAGES: Final = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Everything a training worker needs to know; plain values, no secret and no open file."""

    network: NetworkSettings
    optimisation: OptimisationSettings
    augmentation: AugmentationSettings
    storage: StorageOptions
    info: CheckpointInfo
    """How the classifier is run: with the user's sampling and faces."""
    view: View
    """What it is shown."""
    folder: str
    """Where states, metrics and the best checkpoint are written."""
    fingerprint: str
    """Of the run; states of another one are not taken up."""
    samples: pa.Table
    """Clips to train on, of `feed.SAMPLES_SCHEMA`."""
    validation: pa.Table
    """Videos to validate on: ``uri`` of the file with their clips, ``record_id``, ``label``."""
    frames: StoredFrames | None
    """Stored embeddings that a head alone is trained on; None trains on pictures."""
    messages: Any
    """Handle of the actor that shows messages to the user: ``tell(text)``."""


@dataclasses.dataclass
class _History:
    """What earlier epochs came to."""

    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def aucs(self) -> list[float]:
        return [line["val_auc"] for line in self.lines if "val_auc" in line]

    @property
    def epochs_since_best(self) -> int:
        aucs = self.aucs
        return len(aucs) - 1 - aucs.index(max(aucs)) if aucs else 0


class Clips(Protocol):
    """What is trained and validated on: `prepared.PreparedClips`, `stored.StoredClips`."""

    def batches(
        self,
        steps: Sequence[Step],
        weights: Mapping[int, float],
        *,
        epoch: int,
        batch_size: int,
        clock: FeedClock,
    ) -> Iterator[Batch]:
        """Yields a worker's batches in the order of its steps."""
        ...

    def judge(self, model: SequenceClassifier, videos: pa.Table, *, device: str) -> list[float]:
        """Returns the logit of every video, as scoring finds it."""
        ...


def open_clips(task: TrainTask, storage: Storage) -> Clips:
    """Opens what a task trains and validates on."""
    if task.frames is not None:
        return StoredClips(
            task.frames,
            info=task.info,
            view=task.view,
            samples=task.samples,
            validation=task.validation,
            storage=storage,
        )
    feed = Feed(
        storage=task.storage,
        augmentation=task.augmentation,
        self_blended=task.optimisation.self_blended,
        seed=task.optimisation.training_seed,
        epoch=0,
    )
    return PreparedClips(
        info=task.info, view=task.view, feed=feed, samples=task.samples, storage=storage
    )


def train_worker(config: dict[str, Any]) -> None:
    """Trains until all epochs are done, from wherever the saved state leaves off."""
    task: TrainTask = config["task"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    settings = task.optimisation
    storage = Storage(task.storage)
    model, _ = build_network(task.network, settings, storage)
    plan_size = -(-len(task.samples) // settings.clips_per_step)
    trainer = Trainer(
        model,
        task.info.preprocessing,
        settings,
        steps_per_epoch=plan_size,
        device=device,
        num_workers=num_workers,
        on_embeddings=task.frames is not None,
    )
    clips = open_clips(task, storage)
    history = _History()
    if state := _latest_state(storage, task):
        trainer.load(storage.read(state))
        history.lines = _read_lines(storage, task, trainer.epoch)
    weights = class_weights(task.samples["label"].to_pylist(), balance=settings.balance)
    while trainer.epoch < settings.epochs:
        epoch = _Epoch(task, clips, trainer, rank, num_workers, device, weights)
        history.lines += epoch.train()
        line = epoch.validate()
        history.lines.append(line)
        trainer.epoch += 1
        if rank == 0:
            _keep(storage, task, trainer, history)
            task.messages.tell.remote(_describe(line, settings.epochs))
        ray.train.report({"epoch": trainer.epoch, **line})
        if settings.patience is not None and history.epochs_since_best >= settings.patience:
            if rank == 0:
                task.messages.tell.remote(
                    f"no better validation AUC for {settings.patience} epochs: training ends"
                )
            return


class _Epoch:
    """One pass over the clips."""

    def __init__(
        self,
        task: TrainTask,
        clips: Clips,
        trainer: Trainer,
        rank: int,
        num_workers: int,
        device: str,
        weights: dict[int, float],
    ) -> None:
        self._task, self._clips, self._trainer, self._device = task, clips, trainer, device
        self._rank, self._num_workers, self._weights = rank, num_workers, weights
        self._waited_share = 0.0
        self._mean_loss = 0.0
        self._began = time.perf_counter()

    def train(self) -> list[dict[str, Any]]:
        """Takes the epoch's steps; returns a line per step."""
        task, trainer, settings = self._task, self._trainer, self._task.optimisation
        plan = epoch_plan(
            len(task.samples), settings.clips_per_step, seed=settings.training_seed,
            epoch=trainer.epoch,
        )  # fmt: skip
        labels = task.samples["label"].to_pylist()
        totals = [
            sum(
                self._weights[labels[step.sample]]
                for step in plan[start : start + settings.clips_per_step]
                if step.counts
            )
            for start in range(0, len(plan), settings.clips_per_step)
        ]
        clock = FeedClock()
        trainer.start_epoch(self._rank)
        lines = []
        told = time.perf_counter()
        for number, batch in enumerate(
            self._clips.batches(
                share_of(plan, self._rank, self._num_workers),
                self._weights,
                epoch=trainer.epoch,
                batch_size=settings.clips_per_step // self._num_workers,
                clock=clock,
            )
        ):
            if number == 0:
                clock.waited = 0.0  # until the first clips were there
                began = time.perf_counter()
            loss = self._sum(trainer.train_step(batch, totals[number]))
            lines.append({"epoch": trainer.epoch + 1, "step": number + 1, "loss": loss})
            if self._rank == 0 and time.perf_counter() - told > _SECONDS_BETWEEN_MESSAGES:
                told = time.perf_counter()
                text = f"step {number + 1}/{len(totals)}, loss {loss:.4f}"
                task.messages.tell.remote(f"epoch {trainer.epoch + 1}: {text}")
        self._waited_share = clock.waited / max(time.perf_counter() - began, 1e-9)
        self._mean_loss = sum(line["loss"] for line in lines) / len(lines)
        return lines

    def validate(self) -> dict[str, Any]:
        """Judges the validation videos, each worker its share; returns the epoch's line."""
        task = self._task
        mine = task.validation.take(
            list(range(self._rank, len(task.validation), self._num_workers))
        )
        logits = self._clips.judge(self._trainer.judged, mine, device=self._device)
        found = list(zip(mine["record_id"].to_pylist(), logits, strict=True))
        if self._num_workers > 1:
            shares: list[Any] = [None] * self._num_workers
            dist.all_gather_object(shares, found)
            found = [each for share in shares for each in share]
        by_record = dict(found)
        labels = task.validation["label"].to_pylist()
        scores = [
            score_of(by_record[record]) for record in task.validation["record_id"].to_pylist()
        ]
        metrics = Detections(labels, scores).measure()
        return {
            "epoch": self._trainer.epoch + 1,
            "mean_loss": self._mean_loss,
            "val_auc": metrics["auc"],
            "val_log_loss": metrics["log_loss"],
            "val_accuracy": metrics["accuracy"],
            "data_wait_share": self._waited_share,
            "seconds": time.perf_counter() - self._began,
        }

    def _sum(self, value: float) -> float:
        if self._num_workers == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return float(total)


def _keep(storage: Storage, task: TrainTask, trainer: Trainer, history: _History) -> None:
    """Writes the metrics, the best checkpoint and, last, the state that a restart goes on from."""
    text = "".join(json.dumps(line) + "\n" for line in history.lines)
    storage.write(join(task.folder, METRICS_FILE), text.encode())
    if history.epochs_since_best == 0:
        data = checkpoint_bytes(trainer.judged, task.info)
        storage.write(join(task.folder, BEST_FILE), data)
    storage.write(_state_uri(task, trainer.epoch), trainer.save())
    if trainer.epoch > _STATES_KEPT:
        storage.delete_many([_state_uri(task, trainer.epoch - _STATES_KEPT)])


def _state_uri(task: TrainTask, epoch: int) -> str:
    return join(task.folder, f"state-{task.fingerprint}-{epoch:06}.pt")


def _latest_state(storage: Storage, task: TrainTask) -> str | None:
    names = [info.uri for page in storage.list(task.folder) for info in page]
    ours = [name for name in names if f"/state-{task.fingerprint}-" in name]
    return max(ours, default=None)


def _read_lines(storage: Storage, task: TrainTask, epoch: int) -> list[dict[str, Any]]:
    lines = storage.read(join(task.folder, METRICS_FILE)).decode().splitlines()
    return [line for line in map(json.loads, lines) if line["epoch"] <= epoch]


def _describe(line: dict[str, Any], num_epochs: int) -> str:
    return (
        f"epoch {line['epoch']}/{num_epochs}: loss {line['mean_loss']:.4f}, validation AUC "
        f"{line['val_auc']:.4f}, log loss {line['val_log_loss']:.4f}, waited for data "
        f"{line['data_wait_share']:.0%} of the time, {line['seconds']:.0f} s"
    )
