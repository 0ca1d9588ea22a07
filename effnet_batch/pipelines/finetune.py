"""Fine-tuning: labelled videos to a checkpoint that `score` runs as it is."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from effnet_batch.config import ActorSettings, FinetuneConfig
from effnet_batch.errors import ConfigError, InputError, JobError
from effnet_batch.evaluation.calibration import fit_calibration
from effnet_batch.evaluation.labels import FAKE, REAL, parse_label
from effnet_batch.evaluation.metrics import Detections, threshold_at_fpr
from effnet_batch.ledger import Ledger
from effnet_batch.lock import OutputLock
from effnet_batch.models.checkpoint_info import Calibration, CheckpointInfo, Thresholds
from effnet_batch.models.checkpoints import load_checkpoint, save_checkpoint
from effnet_batch.pipelines.failures import cause_of
from effnet_batch.pipelines.prepare import ResolvedClips, prepare, prepared_data
from effnet_batch.pipelines.progress import Reporter, Silent
from effnet_batch.pipelines.run import new_run_id, storage_options
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, ray_session
from effnet_batch.schema import STATUS_OK
from effnet_batch.storage import Storage, canonical_uri, join, redact
from effnet_batch.training.feed import SAMPLES_SCHEMA
from effnet_batch.training.network import build_network
from effnet_batch.training.validation import judge
from effnet_batch.training.worker import BEST_FILE, METRICS_FILE, TrainTask, train_worker

MODEL_FILE: Final = "model.safetensors"
PREPARED_FOLDER: Final = "prepared"
TRAINING_FOLDER: Final = "training"
_POLL_SECONDS: Final = 0.5
_WORKER_CPUS: Final = 0.25
"""What a training worker on CPUs asks for: clips are made ready beside it, by tasks of a whole
CPU each."""
_TRAIN, _VALIDATION = "train", "val"


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
            ``group``, so that nobody is in two splits, and ``split`` (``train``, ``val``).
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
        prepared = join(root, PREPARED_FOLDER)
        _, resolved = prepare(manifest, prepared, config, reporter)
        videos, left_out = _read_prepared(storage, prepared)
        train, validation = _split(videos, config)
        samples = _samples(train)
        for reason, count in sorted(left_out.items()):
            reporter.warning(f"{count:,} videos are left out: {reason}")
        reporter.message(
            f"training on {len(samples):,} clips of {_count_classes(train)}, validating on "
            f"{_count_classes(validation)}"
        )
        task = _task(config, storage, root, resolved, samples, validation)
        _train(config, task, reporter)
        return _export(storage, root, config, task, left_out, reporter)


def _check(config: FinetuneConfig) -> None:
    settings, cluster = config.optimisation, config.cluster
    if settings.clips_per_step % cluster.num_workers:
        raise ConfigError(
            f"--clips-per-step {settings.clips_per_step} must be a multiple of --num-workers "
            f"{cluster.num_workers}, so that every worker has as many"
        )


def _read_prepared(storage: Storage, prepared: str) -> tuple[pa.Table, dict[str, int]]:
    """Returns the videos that can be trained on, with ``label`` 0 or 1, and what cannot."""
    columns = ("uri", "label", "group", "split", "status", "record_id", "clips_uri", "clip_lengths")
    left_out: Counter[str] = Counter()
    kept = []
    for table in Ledger.scan(storage, prepared_data(prepared)).live(columns):
        for row in table.to_pylist():
            try:
                label = parse_label(row["label"])
            except ValueError as error:
                raise InputError(f"{redact(row['uri'])}: {error}") from None
            if row["status"] != STATUS_OK:
                left_out[row["status"]] += 1
            elif label is None:
                left_out["no label"] += 1
            else:
                kept.append({**row, "label": label})
    if not kept:
        raise InputError("no labelled video can be trained on: " + json.dumps(dict(left_out)))
    # By record, so that order does not hang on which part a video came to lie in.
    return pa.Table.from_pylist(sorted(kept, key=lambda row: str(row["record_id"]))), dict(left_out)


def _split(videos: pa.Table, config: FinetuneConfig) -> tuple[pa.Table, pa.Table]:
    """Returns the videos to train and to validate on.

    Without a split ``val`` whole groups are held out, drawn by a hash of their name.

    Raises:
        InputError: a split has no video, or lacks a class that it needs.
    """
    splits = videos["split"].to_pylist()
    if _VALIDATION not in splits:
        groups = [
            group or uri
            for group, uri in zip(
                videos["group"].to_pylist(), videos["uri"].to_pylist(), strict=True
            )
        ]
        held_out = _held_out(sorted(set(groups)), config)
        splits = [
            (_VALIDATION if group in held_out else _TRAIN) if split in (None, _TRAIN) else split
            for group, split in zip(groups, splits, strict=True)
        ]
    parts = []
    for name in (_TRAIN, _VALIDATION):
        part = videos.filter(pa.array([split == name for split in splits]))
        present = set(part["label"].to_pylist())
        # Blended with themselves, reals alone are enough to train on.
        needed = {REAL} if name == _TRAIN and config.optimisation.self_blended else {REAL, FAKE}
        if missing := needed - present:
            names = " or ".join("fake" if label == FAKE else "real" for label in sorted(missing))
            raise InputError(
                f"split {name} has no {names} videos ({_count_classes(part)}); both classes are "
                "needed in both splits"
            )
        parts.append(part)
    return parts[0], parts[1]


def _held_out(groups: list[str], config: FinetuneConfig) -> set[str]:
    seed = config.optimisation.training_seed
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    return set(ranked[: max(1, round(len(groups) * config.optimisation.val_fraction))])


def _count_classes(videos: pa.Table) -> str:
    labels = videos["label"].to_pylist()
    return f"{labels.count(FAKE):,} fake and {labels.count(REAL):,} real videos"


def _samples(videos: pa.Table) -> pa.Table:
    """Returns a row per clip, of `feed.SAMPLES_SCHEMA`."""
    rows = [
        {
            "uri": video["clips_uri"],
            "record_id": video["record_id"],
            "clip": number,
            "label": video["label"],
        }
        for video in videos.to_pylist()
        for number in range(len(video["clip_lengths"]))
    ]
    return pa.Table.from_pylist(rows, SAMPLES_SCHEMA)


def _task(
    config: FinetuneConfig,
    storage: Storage,
    root: str,
    resolved: ResolvedClips,
    samples: pa.Table,
    validation: pa.Table,
) -> TrainTask:
    _, info = build_network(config.network, config.optimisation, storage)
    info = dataclasses.replace(info, sampling=resolved.sampling, faces=resolved.faces)
    validation = pa.table({"uri": validation["clips_uri"], "label": validation["label"]})
    settings = {
        name: value
        for group in (config.network, config.optimisation, config.augmentation)
        for name, value in dataclasses.asdict(group).items()
        # More epochs, or other patience, go on from what is there.
        if name not in ("patience", "micro_batch")
    }
    digest = hashlib.sha256(json.dumps([settings, resolved.fingerprint.digest]).encode())
    for table in (samples, validation):
        digest.update(json.dumps(table.to_pylist()).encode())
    fingerprint = digest.hexdigest()[:16]
    return TrainTask(
        network=config.network,
        optimisation=config.optimisation,
        augmentation=config.augmentation,
        storage=storage.options,
        info=dataclasses.replace(info, training_fingerprint=fingerprint),
        view=resolved.view,
        folder=join(root, TRAINING_FOLDER),
        fingerprint=fingerprint,
        samples=samples,
        validation=validation,
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
    logits = np.array(
        judge(best.model, task.info, task.view, task.validation, storage, device="cpu")
    )
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
