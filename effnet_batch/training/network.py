"""What is trained: a classifier built anew around a backbone's weights, or an existing one."""

import dataclasses
from typing import Any, Final

import torch
from torch import nn

from effnet_batch.config import NetworkSettings, OptimisationSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import load_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import CONFIGURATIONS
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
        ConfigError: no such network, or nothing to start its backbone from.
        WeightsError: the weights or the checkpoint cannot be had or do not fit.
    """
    if settings.start is not None:
        loaded = load_checkpoint(settings.start, storage=storage)
        info = loaded.info
        if settings.max_clip_frames is not None:
            sampling = {**info.sampling, "max_clip_frames": settings.max_clip_frames}
            info = dataclasses.replace(info, sampling=sampling)
        # What was fitted to other scores says nothing of the new ones.
        info = dataclasses.replace(info, calibration=None, licence=None)
        return loaded.model, info, loaded.sha256
    network = settings.network or NETWORK
    if network not in CONFIGURATIONS:
        raise ConfigError(f"network {network!r}: allowed are {', '.join(sorted(CONFIGURATIONS))}")
    if settings.weights is None:
        raise ConfigError(
            "nothing to start from: give --weights of the backbone (see `effnet-batch models`), "
            "--weights random, or --start with a checkpoint"
        )
    config = CONFIGURATIONS[network]
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
