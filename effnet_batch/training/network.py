"""What is trained: a classifier built anew around a backbone's weights, or an existing one."""

import dataclasses
from typing import Any, Final

import torch
from torch import nn

from effnet_batch.config import NetworkSettings, OptimisationSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.checkpoint_info import CheckpointInfo, Thresholds
from effnet_batch.models.checkpoints import load_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import CONFIGURATIONS, SequenceConfig
from effnet_batch.models.weights import load_model
from effnet_batch.storage import Storage
from effnet_batch.training.losses import FRAMES, LAST_STEP, MEAN

NETWORK: Final = "thesis_efficientnet_b1_lstm"
IMAGE_NETWORK: Final = "efficientnet_b0"
SAMPLING: Final = {"strategy": "every_nth", "ratio": 5, "max_clip_frames": 20}
"""DeeperForensics-1.0: every fifth frame; long videos become several clips."""
FACES: Final = {"detector": "yunet"}


def build_network(
    settings: NetworkSettings, training: OptimisationSettings, storage: Storage
) -> tuple[SequenceClassifier, CheckpointInfo, str]:
    """Returns a classifier as training starts, how it is to be run, and what it starts from.

    The last is the SHA-256 of the weights' or the checkpoint's file, 64 hex digits. Fresh
    layers depend on ``training_seed`` alone, so that every worker builds the same.

    Raises:
        ConfigError: no such network, nothing to start its backbone from, or a checkpoint to start
            from that is of another network than the settings.
        WeightsError: the weights or the checkpoint cannot be had or do not fit.
    """
    if settings.start is not None:
        loaded = load_checkpoint(settings.start, storage=storage)
        info = loaded.info
        _check_start(settings, info)
        if settings.max_clip_frames is not None:
            sampling = {**info.sampling, "max_clip_frames": settings.max_clip_frames}
            info = dataclasses.replace(info, sampling=sampling)
        # What was fitted to other scores says nothing of the new ones.
        info = dataclasses.replace(info, calibration=None, thresholds=Thresholds(), licence=None)
        return loaded.model, info, loaded.sha256
    network = settings.network or NETWORK
    config = _configuration(network)
    if settings.weights is None:
        raise ConfigError(
            "nothing to start from: give --weights of the backbone (see `effnet-batch models`), "
            "--weights random, or --start with a checkpoint"
        )
    backbone = load_model(
        config.architecture, settings.weights, image_size=settings.image_size, storage=storage
    )
    recipe = backbone.weights_info
    assert recipe is not None
    changes: dict[str, Any] = {
        "lstm_layers": settings.lstm_layers,
        "lstm_dim": settings.lstm_dim,
        "dropout": settings.dropout,
        "padding": recipe.padding,
        "bn_eps": recipe.bn_eps,
    }
    config = dataclasses.replace(
        config, **{name: value for name, value in changes.items() if value is not None}
    )
    torch.manual_seed(training.training_seed)
    model = SequenceClassifier(config)
    model.take_backbone(backbone)
    # Scoring judges the time steps that the loss trained.
    has_last = config.lstm_layers and training.loss not in (MEAN, FRAMES)
    sampling = dict(SAMPLING)
    if settings.max_clip_frames is not None:
        sampling["max_clip_frames"] = settings.max_clip_frames
    info = CheckpointInfo(
        name=f"{network}-finetuned",
        sequence=config,
        preprocessing=recipe.preprocessing,
        sampling=sampling,
        faces=dict(FACES),
        aggregation=AggregationConfig(
            steps="last" if has_last or training.loss == LAST_STEP else "mean",
            clips="mean",
            tracks="max",
        ),
    )
    return model, info, recipe.sha256


def _configuration(network: str) -> SequenceConfig:
    if network not in CONFIGURATIONS:
        raise ConfigError(f"network {network!r}: allowed are {', '.join(sorted(CONFIGURATIONS))}")
    return CONFIGURATIONS[network]


def _check_start(settings: NetworkSettings, info: CheckpointInfo) -> None:
    """Refuses settings of another network than the one that is started from.

    ``weights`` may be there: they were what that one's backbone started from.
    """
    mine = info.sequence
    asked: dict[str, tuple[Any, Any]] = {
        "lstm_layers": (settings.lstm_layers, mine.lstm_layers),
        "lstm_dim": (settings.lstm_dim, mine.lstm_dim),
        "dropout": (settings.dropout or None, mine.dropout),
        "image_size": (settings.image_size, info.preprocessing.image_size),
    }
    if settings.network is not None:
        # The settings above and the weights' own recipe may have changed these.
        free = ("lstm_layers", "lstm_dim", "dropout", "padding", "bn_eps")
        same = {name: getattr(mine, name) for name in free}
        config = dataclasses.replace(_configuration(settings.network), **same)
        if config != mine:
            asked["network"] = (settings.network, info.name)
    for name, (wanted, found) in asked.items():
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"--{name.replace('_', '-')} {wanted}: the detector to start from has {found}; "
                "leave it out, or start from --weights instead of --start"
            )


def load_backbone(settings: NetworkSettings, storage: Storage) -> Backbone:
    """Returns the backbone that an image classifier starts from, with ``weights_info``.

    Raises:
        ConfigError: no such network, or nothing to start from.
        WeightsError: the weights cannot be had or do not fit.
    """
    if settings.weights is None:
        raise ConfigError(
            "nothing to start from: give --weights (see `effnet-batch models`), or --weights random"
        )
    return load_model(
        settings.network or IMAGE_NETWORK,
        settings.weights,
        image_size=settings.image_size,
        storage=storage,
    )


def build_image_network(
    settings: NetworkSettings,
    training: OptimisationSettings,
    class_names: tuple[str, ...],
    storage: Storage,
) -> Backbone:
    """Returns an image classifier as training starts.

    Its last layer is fresh and depends on ``training_seed`` alone, unless the weights are of a
    classifier of the same classes.

    Raises:
        ConfigError: no such network, or nothing to start from.
        WeightsError: the weights cannot be had or do not fit.
    """
    model = load_backbone(settings, storage)
    info = model.weights_info
    assert info is not None
    if info.class_names != class_names:
        torch.manual_seed(training.training_seed)
        model.fc = nn.Linear(model.embedding_dim, len(class_names))
        model.num_classes = len(class_names)
    model.dropout.p = settings.dropout
    return model
