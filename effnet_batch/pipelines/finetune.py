"""Fine-tuning: labelled videos to a checkpoint that `score` runs as it is."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from effnet_batch.config import ActorSettings, FinetuneConfig
from effnet_batch.errors import ConfigError, JobError
from effnet_batch.evaluation.calibration import fit_calibration
from effnet_batch.evaluation.metrics import Detections, threshold_at_fpr
from effnet_batch.lock import OutputLock
from effnet_batch.models.checkpoint_info import Calibration, CheckpointInfo, Thresholds
from effnet_batch.models.checkpoints import load_checkpoint, save_checkpoint
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.pipelines.material import (
    Material,
    count_classes,
    prepared_material,
    samples_of,
    split_videos,
)
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import new_run_id, storage_options
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, kept_sigint, ray_session
from effnet_batch.pipelines.stored_material import is_output, stored_material
from effnet_batch.storage import Storage, canonical_uri, join, redact
from effnet_batch.training.worker import (
    BEST_FILE,
    METRICS_FILE,
    TrainTask,
    open_clips,
    train_worker,
)

MODEL_FILE: Final = "model.safetensors"
TRAINING_FOLDER: Final = "training"
_POLL_SECONDS: Final = 0.5
_WORKER_CPUS: Final = 0.25
"""What a training worker on CPUs asks for: clips are made ready beside it, by tasks of a whole
CPU each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What `finetune` made."""

    checkpoint: str
    """Canonical URI of the checkpoint; `score` and `evaluate` take it as it is."""
    sha256: str
    num_epochs: int
    """Epochs that were trained."""
    best_epoch: int
    """The one that was kept."""
    validation_auc: float
    num_train_clips: int
    num_validation_videos: int
    left_out: dict[str, int]
    """Videos that were neither trained nor validated on, by reason."""
    data_wait_share: float
    """Of the last epoch: share of the time in which a worker waited for clips."""


def finetune(
    manifest: str,
    output: str,
    *,
    config: FinetuneConfig | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Finetuned:
    """Trains a classifier on labelled videos and writes it to ``OUTPUT/model.safetensors``.

    Running it again goes on where an earlier run broke off.

    Args:
        manifest: list, manifest or folder of videos with labels ``fake`` and ``real``; with
            ``group``, so that nobody is in two splits, and ``split`` (``train``, ``val``). Or an
            output with frame embeddings, on which the head alone is trained.
        output: folder; made if missing.
        config: settings; by default those of ``settings``.
        reporter: is told what happens; by default nobody.
        **settings: single settings by name, such as ``network="resnet50_lstm"``.

    Raises:
        ConfigError: wrong settings, no labels, a class or a split without videos.
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
        if is_output(manifest, storage):
            material = stored_material(manifest, config, storage, reporter)
        else:
            material = prepared_material(manifest, root, config, storage, reporter)
        train, validation = split_videos(material.videos, config)
        samples = samples_of(train)
        for reason, count in sorted(material.left_out.items()):
            reporter.warning(f"{count:,} videos are left out: {reason}")
        what = "clips" if material.frames is None else "clips of stored frames"
        reporter.message(
            f"training on {len(samples):,} {what} of {count_classes(train)}, validating on "
            f"{count_classes(validation)}"
        )
        task = _task(config, storage, root, material, samples, validation)
        _train(config, task, reporter)
        return _export(storage, root, config, task, material.left_out, reporter)


def _check(config: FinetuneConfig) -> None:
    settings, cluster = config.optimisation, config.cluster
    if settings.clips_per_step % cluster.num_workers:
        raise ConfigError(
            f"--clips-per-step {settings.clips_per_step} must be a multiple of --num-workers "
            f"{cluster.num_workers}, so that every worker has as many"
        )


def _task(
    config: FinetuneConfig,
    storage: Storage,
    root: str,
    material: Material,
    samples: pa.Table,
    validation: pa.Table,
) -> TrainTask:
    columns = {"clips_uri": "uri", "record_id": "record_id", "label": "label"}
    validation = validation.select(list(columns)).rename_columns(list(columns.values()))
    settings = {
        name: value
        for group in (config.network, config.optimisation, config.augmentation)
        for name, value in dataclasses.asdict(group).items()
        # More epochs, or other patience, go on from what is there.
        if name not in ("patience", "micro_batch")
    }
    digest = hashlib.sha256(json.dumps([settings, material.digest]).encode())
    for table in (samples, validation):
        digest.update(json.dumps(table.to_pylist()).encode())
    fingerprint = digest.hexdigest()[:16]
    return TrainTask(
        network=config.network,
        optimisation=config.optimisation,
        augmentation=config.augmentation,
        storage=storage.options,
        info=dataclasses.replace(material.info, training_fingerprint=fingerprint),
        view=material.view,
        folder=join(root, TRAINING_FOLDER),
        fingerprint=fingerprint,
        samples=samples,
        validation=validation,
        frames=material.frames,
        messages=None,
    )


class MessageBoard:
    """What workers want the user to read."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def tell(self, text: str) -> None:
        """Takes a message."""
        self._texts.append(text)

    def take(self) -> list[str]:
        """Returns what was not taken yet."""
        texts, self._texts = self._texts, []
        return texts


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


def _train(config: FinetuneConfig, task: TrainTask, reporter: Reporter) -> None:
    """Runs the train loop on the cluster.

    Raises:
        JobError: it failed more often than allowed, or for a reason that will not go away.
    """
    gpus = sum(gpus for _, gpus in cluster_cpus_and_gpus())
    use_gpu = gpus >= 1 and config.engine.device != "cpu"
    if use_gpu and gpus < config.cluster.num_workers:
        raise ConfigError(
            f"{config.cluster.num_workers} training workers need a GPU each, the cluster has "
            f"{gpus:g}; lower --num-workers"
        )
    with _messages(reporter) as board, tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
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


def _export(
    storage: Storage,
    root: str,
    config: FinetuneConfig,
    task: TrainTask,
    left_out: dict[str, int],
    reporter: Reporter,
) -> Finetuned:
    """Writes the best checkpoint with calibration and thresholds fitted to validation scores."""
    best = load_checkpoint(join(task.folder, BEST_FILE), storage=storage)
    # Only what is validated on is needed here.
    clips = open_clips(dataclasses.replace(task, samples=task.samples.slice(0, 0)), storage)
    logits = np.array(clips.judge(best.model, task.validation, device="cpu"))
    labels = task.validation["label"].to_numpy()
    info = _fitted(best.info, logits, labels, config, reporter)
    uri = join(root, MODEL_FILE)
    sha256 = save_checkpoint(uri, best.model, info, storage=storage)
    lines = storage.read(join(task.folder, METRICS_FILE)).decode().splitlines()
    epochs = [line for line in map(json.loads, lines) if "val_auc" in line]
    kept = max(epochs, key=lambda line: (line["val_auc"], -line["epoch"]))
    return Finetuned(
        checkpoint=uri,
        sha256=sha256,
        num_epochs=len(epochs),
        best_epoch=kept["epoch"],
        validation_auc=kept["val_auc"],
        num_train_clips=len(task.samples),
        num_validation_videos=len(task.validation),
        left_out=left_out,
        data_wait_share=epochs[-1]["data_wait_share"],
    )


def _fitted(
    info: CheckpointInfo,
    logits: np.ndarray,
    labels: np.ndarray,
    config: FinetuneConfig,
    reporter: Reporter,
) -> CheckpointInfo:
    """Returns the description with what could be fitted; a detector that knows nothing has none."""
    export = config.export
    try:
        if export.calibration != "none":
            scale, offset = fit_calibration(logits, labels, export.calibration)
            info = dataclasses.replace(info, calibration=Calibration(scale=scale, offset=offset))
        if export.target_fpr is not None:
            scores = [info.calibrated(logit)[1] for logit in logits.tolist()]
            lowest = threshold_at_fpr(Detections(labels, scores), export.target_fpr)
            thresholds = Thresholds(fake=lowest, no_forgery_found=lowest)
            info = dataclasses.replace(info, thresholds=thresholds)
    except ValueError as error:
        reporter.warning(f"the checkpoint is not calibrated: {error}")
    return info
