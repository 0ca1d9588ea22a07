"""Fine-tuning: labelled videos or images to a checkpoint that inference runs as it is."""

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Final

import ray
import ray.train
from ray._private.worker import get_dashboard_url
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)

from effnet_batch.config import ActorSettings, FinetuneConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.lock import OutputLock
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.pipelines.finetune_images import export_classifier, image_objective
from effnet_batch.pipelines.finetune_videos import export_detector, video_objective
from effnet_batch.pipelines.material import prepared_material
from effnet_batch.pipelines.prepare import prepare
from effnet_batch.pipelines.prepare_images import ResolvedImages
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import new_run_id, storage_options
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, kept_sigint, ray_session
from effnet_batch.pipelines.stored_material import is_output, stored_material
from effnet_batch.storage import Storage, canonical_uri, join, redact
from effnet_batch.training.objective import Objective
from effnet_batch.training.plan import side_at
from effnet_batch.training.tracking import check_tracker, tracked
from effnet_batch.training.videos import VideoObjective
from effnet_batch.training.worker import (
    BEST_FILE,
    METRICS_FILE,
    TrainTask,
    best_epoch,
    epochs_of,
    is_ended,
    train_worker,
)

MODEL_FILE: Final = "model.safetensors"
PREPARED_FOLDER: Final = "prepared"
TRAINING_FOLDER: Final = "training"
_POLL_SECONDS: Final = 0.5
_CHECK_SECONDS: Final = 0.2
"""How often Ray Train looks at its workers, who wait for that at the end of every epoch."""
_WORKER_CPUS: Final = 0.25
"""What a training worker on CPUs asks for: clips are made ready beside it, by tasks of a whole
CPU each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What `finetune` made."""

    checkpoint: str
    """Canonical URI of the checkpoint: of `score`, or weights of `embed` and `load_model`."""
    sha256: str
    num_epochs: int
    """Epochs that were trained."""
    best_epoch: int
    """The one that was kept."""
    metrics: dict[str, float]
    """Of that epoch's validation: ``log_loss``, of videos ``auc`` and ``accuracy``, of images
    ``top1`` and ``top5``."""
    num_samples: int
    """Clips or images that were trained on."""
    num_validated: int
    """Videos or images that were validated on."""
    left_out: dict[str, int]
    """Records that were neither trained nor validated on, by reason."""
    data_wait_share: float
    """Of the last epoch's steps: share of the time in which the first worker waited for what it
    trains on, also for the first of it."""


def finetune(
    manifest: str,
    output: str,
    *,
    config: FinetuneConfig | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Finetuned:
    """Trains a classifier of videos or images and writes it to ``OUTPUT/model.safetensors``.

    Running it again goes on where an earlier run broke off.

    Args:
        manifest: list, manifest or folder of videos with labels ``fake`` and ``real``; with
            ``group``, so that nobody is in two splits, and ``split`` (``train``, ``val``). Or the
            same of images of any classes, also in shards. Or an output with frame embeddings, on
            which the head alone is trained.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``network="resnet50_lstm"``.

    Raises:
        ConfigError: wrong settings, no labels, a class or a split without records.
        JobError: training failed; what was saved stays.
    """
    if config is None:
        config = FinetuneConfig.from_flat(settings)
    elif settings:
        config = FinetuneConfig.from_flat({**config.to_flat(), **settings})
    _check(config)
    reporter = reporter or Silent()
    storage = Storage(storage_options(config))
    root = canonical_uri(output)
    storage.check_writable(root)
    with (
        OutputLock(storage, join(root, "_lock.json"), new_run_id()),
        ray_session(config.group(ActorSettings).address),
    ):
        device = _choose_device(config)
        objective, left_out = _objective(manifest, root, config, storage, reporter)
        for reason, count in sorted(left_out.items()):
            reporter.warning(f"{count:,} {objective.NOUN}s are left out: {reason}")
        folder = join(root, TRAINING_FOLDER)
        with tracked(
            config.tracking.track,
            storage,
            join(folder, METRICS_FILE),
            fingerprint=objective.fingerprint,
            settings={"manifest": manifest, "output": root, **config.to_flat()},
            warn=reporter.warning,
        ):
            task = TrainTask(objective=objective, folder=folder, device=device, messages=None)
            if is_ended(storage, task):
                reporter.message("all is trained already")
            else:
                _train(config, task, reporter)
        best, target = join(folder, BEST_FILE), join(root, MODEL_FILE)
        if isinstance(objective, VideoObjective):
            sha256 = export_detector(storage, best, target, objective, config, reporter)
        else:
            sha256 = export_classifier(storage, best, target)
        return _finetuned(storage, folder, objective, target, sha256, left_out)


def _objective(
    manifest: str, root: str, config: FinetuneConfig, storage: Storage, reporter: Reporter
) -> tuple[Objective, dict[str, int]]:
    """Returns what is trained, prepared in ``OUTPUT/prepared``, and what is left out, by reason."""
    if is_output(manifest, storage):
        material = stored_material(manifest, config, storage, reporter)
        return video_objective(material, config, storage, reporter)
    prepared = join(root, PREPARED_FOLDER)
    resolved = prepare(manifest, prepared, config, reporter)
    if isinstance(resolved, ResolvedImages):
        return image_objective(prepared, resolved, config, storage, reporter)
    material = prepared_material(prepared, resolved, config, storage)
    return video_objective(material, config, storage, reporter)


def _finetuned(
    storage: Storage,
    folder: str,
    objective: Objective,
    checkpoint: str,
    sha256: str,
    left_out: dict[str, int],
) -> Finetuned:
    lines = storage.read(join(folder, METRICS_FILE)).decode().splitlines()
    epochs = epochs_of(map(json.loads, lines))
    kept = best_epoch(epochs, objective.METRIC)
    return Finetuned(
        checkpoint=checkpoint,
        sha256=sha256,
        num_epochs=len(epochs),
        best_epoch=kept["epoch"],
        metrics={
            name.removeprefix("val_"): value
            for name, value in kept.items()
            if name.startswith("val_")
        },
        num_samples=len(objective.samples),
        num_validated=len(objective.validation),
        left_out=left_out,
        data_wait_share=epochs[-1]["data_wait_share"],
    )


def _check(config: FinetuneConfig) -> None:
    check_tracker(config.tracking.track)
    settings, cluster = config.optimisation, config.cluster
    if settings.clips_per_step % cluster.num_workers:
        raise ConfigError(
            f"--clips-per-step {settings.clips_per_step} must be a multiple of --num-workers "
            f"{cluster.num_workers}, so that every worker has as many"
        )
    if settings.mixup and settings.clips_per_step % (2 * cluster.num_workers):
        raise ConfigError(
            f"--mixup mixes the images of a worker in pairs: --clips-per-step "
            f"{settings.clips_per_step} must be a multiple of {2 * cluster.num_workers}"
        )
    try:
        side_at(settings.resolutions, 0)
    except ValueError as error:
        raise ConfigError(f"--resolutions: {error}") from None


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


def _choose_device(config: FinetuneConfig) -> str:
    """Returns what the cluster's training workers run on, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: it has too few GPUs.
    """
    gpus = sum(gpus for _, gpus in cluster_cpus_and_gpus())
    device, num_workers = config.device.device, config.cluster.num_workers
    if device == "cpu" or (device == "auto" and gpus < 1):
        return "cpu"
    if gpus < num_workers:
        raise ConfigError(
            f"{num_workers} training workers need a GPU each, the cluster has {gpus:g}; lower "
            "--num-workers, or use --device cpu"
        )
    return "cuda"


class _Trainer(TorchTrainer):
    """Trainer that does without what waits for a dashboard where there is none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if get_dashboard_url():  # type: ignore[no-untyped-call]
            return callbacks
        # It asks the dashboard whether the controller lives, and ends only when that was answered.
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def _train(config: FinetuneConfig, task: TrainTask, reporter: Reporter) -> None:
    """Runs the train loop on the cluster.

    Raises:
        JobError: it failed more often than allowed, or for a reason that will not go away.
    """
    use_gpu = task.device == "cuda"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_CHECK_SECONDS))
    with _messages(reporter) as board, tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            train_worker,
            train_loop_config={"task": dataclasses.replace(task, messages=board)},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.cluster.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": _WORKER_CPUS, **({"GPU": 1} if use_gpu else {})},
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
            with kept_sigint():
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
