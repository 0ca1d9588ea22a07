"""What is trained: a classifier built anew around a backbone's weights, or an existing one."""

import dataclasses
from typing import Any, Final

import torch

from effnet_batch.config import NetworkSettings, OptimisationSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import load_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import CONFIGURATIONS
from effnet_batch.models.weights import load_model
from effnet_batch.storage import Storage
from effnet_batch.training.losses import FRAMES, LAST_STEP, MEAN

SAMPLING: Final = {"strategy": "every_nth", "ratio": 5, "max_clip_frames": 20}
"""DeeperForensics-1.0: every fifth frame; long videos become several clips."""
FACES: Final = {"detector": "yunet"}


def build_network(
    settings: NetworkSettings, training: OptimisationSettings, storage: Storage
) -> tuple[SequenceClassifier, CheckpointInfo]:
    """Returns a classifier as training starts, and how it is to be run.

    Fresh layers depend on ``training_seed`` alone, so that every worker builds the same.

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
        return loaded.model, dataclasses.replace(info, calibration=None, licence=None)
    if settings.network not in CONFIGURATIONS:
        raise ConfigError(
            f"network {settings.network!r}: allowed are {', '.join(sorted(CONFIGURATIONS))}"
        )
    if settings.weights is None:
        raise ConfigError(
            "nothing to start from: give --weights of the backbone (see `effnet-batch models`), "
            "--weights random, or --start with a checkpoint"
        )
    config = CONFIGURATIONS[settings.network]
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
    return model, CheckpointInfo(
        name=f"{settings.network}-finetuned",
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
