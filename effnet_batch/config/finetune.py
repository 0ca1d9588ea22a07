"""Settings of fine-tuning."""

import dataclasses
from typing import ClassVar

from effnet_batch.config.base import JobConfig, setting, settings_of
from effnet_batch.config.embed import LimitSettings
from effnet_batch.config.groups import (
    ActorSettings,
    DeviceSettings,
    InputSettings,
    MediumSettings,
    StorageSettings,
)
from effnet_batch.config.video import FaceDetectionSettings, SamplingSettings
from effnet_batch.vocabulary import KIND_IMAGE, KIND_VIDEO

_LOSSES = ("all_steps", "last_step", "mean", "frames")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What is trained, and where it starts."""

    network: str | None = setting(
        None,
        "Of videos resnet50_lstm, thesis_resnet50_lstm, thesis_efficientnet_b1_lstm (default) or a "
        "backbone; of images a backbone (default: efficientnet_b0).",
    )
    weights: str | None = setting(
        None, "Weights that the backbone starts from, as for embed; random only by name."
    )
    start: str | None = setting(
        None, "Detector to start from, with its network, sampling and faces."
    )
    lstm_layers: int | None = setting(
        None, "Instead of the network's own; 0 judges frames.", minimum=0, maximum=8
    )
    lstm_dim: int | None = setting(
        None, "Hidden units instead of the network's own.", minimum=1, maximum=4096
    )
    dropout: float = setting(0.0, "Before the last layer.", minimum=0, maximum=0.99)
    image_size: int | None = setting(
        None, "Side of the pictures, instead of the weights' own.", minimum=16, maximum=1024
    )
    max_clip_frames: int | None = setting(
        None, "Longest clip; default: 20, or the starting checkpoint's.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Who says what is fake."""

    labels: str | None = setting(
        None, "List with uri, label, group and split, instead of those that MANIFEST has."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisationSettings:
    """How it is trained."""

    epochs: int = setting(10, "Times that every clip or image is seen.", minimum=1)
    clips_per_step: int = setting(
        16, "Clips or images of a step, over all workers together.", minimum=1
    )
    micro_batch: int | None = setting(
        None,
        "Clips or images that a worker holds at once; gradients add up. Default: all.",
        minimum=1,
    )
    learning_rate: float = setting(1e-4, "Of the head, at its highest.", minimum=1e-9)
    min_learning_rate: float = setting(1e-6, "At the end of the cosine.", minimum=0)
    warmup_epochs: float = setting(0.5, "Until the learning rate is at its highest.", minimum=0)
    layer_decay: float = setting(
        1.0, "Learning rate of each stage over that of the next.", minimum=0.01, maximum=1
    )
    weight_decay: float = setting(1e-4, "Of AdamW; not of norms and biases.", minimum=0)
    clip_norm: float = setting(5.0, "Longest gradient.", minimum=1e-6)
    loss: str = setting("all_steps", "Time steps of a clip that count.", choices=_LOSSES)
    label_smoothing: float = setting(
        0.0, "Share of a label that is spread over all classes.", minimum=0, maximum=0.5
    )
    mixup: float = setting(
        0.0, "Images are mixed in pairs by a share of Beta(a, a); 0.2 is usual, 0 is off.",
        minimum=0, maximum=10,
    )  # fmt: skip
    balance: bool = setting(True, "Weigh classes so that all count the same.")
    freeze_backbone: bool = setting(False, "Train what is behind the backbone alone.")
    freeze_batchnorm: bool = setting(True, "Leave the statistics of batch normalisation alone.")
    stochastic_depth: bool = setting(
        False, "Leave out blocks of an EfficientNet at random, as it was trained."
    )
    ema: float | None = setting(
        None, "Decay of averaged weights, which are judged and kept.", minimum=0.5, maximum=0.99999
    )
    patience: int | None = setting(
        None,
        "Epochs without a better one (by validation AUC, of images top-1, then by log loss), after "
        "which it ends.",
        minimum=1,
    )
    mixed_precision: str = setting(
        "fp32", "Number format of the forward pass in training.", choices=("fp32", "bf16")
    )
    resolutions: tuple[str, ...] = setting(
        (),
        "EPOCH:SIDE, such as 0:128 and 5:224: pictures are trained on at this side from this epoch "
        "on, counted from 0; default: the side that they are judged at.",
    )
    training_seed: int = setting(0, "Of order, augmentation and fresh layers.", minimum=0)
    val_fraction: float = setting(
        0.2,
        "Share of the groups held out for validation where the manifest has no split val.",
        minimum=0.01,
        maximum=0.9,
    )
    self_blended: float = setting(
        0.0, "Chance that a real clip is blended with itself into a fake.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """How likely a clip or image of the training split is changed, and how."""

    flip: float = setting(0.5, "Left to right.", minimum=0, maximum=1)
    crop: float = setting(0.5, "Of clips: a part, enlarged.", minimum=0, maximum=1)
    crop_area: float = setting(
        0.35, "Of images: least share of the area that a random crop has; 1 takes the centre.",
        minimum=0.05, maximum=1,
    )  # fmt: skip
    colour: float = setting(0.3, "Other colours, brightness, contrast.", minimum=0, maximum=1)
    blur: float = setting(0.1, "Gaussian.", minimum=0, maximum=1)
    noise: float = setting(0.1, "Gaussian.", minimum=0, maximum=1)
    downscale: float = setting(0.1, "Smaller and back.", minimum=0, maximum=1)
    jpeg: float = setting(0.2, "JPEG of quality 40-95.", minimum=0, maximum=1)
    h264: float = setting(0.0, "H.264 of CRF 17-40.", minimum=0, maximum=1)
    cutout: float = setting(0.0, "A grey rectangle.", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What the checkpoint is given at the end."""

    calibration: str = setting(
        "temperature",
        "Fitted to the scores of the validation split.",
        choices=("temperature", "platt", "none"),
    )
    target_fpr: float | None = setting(
        None, "Share of validation reals that may count as fake; default: a score of 0.5.",
        minimum=0, maximum=0.999,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Who else is told of the metrics; where to and as whom, its environment variables say."""

    track: str | None = setting(
        None,
        "Pass the metrics on to MLflow or Weights & Biases as well.",
        choices=("mlflow", "wandb"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingClusterSettings(ActorSettings):
    """Where it is trained; the actors are those that read videos or images first."""

    num_workers: int = setting(1, "Processes that train together, one a GPU.", minimum=1)
    min_workers: int | None = setting(
        None,
        "Least of them that train on where nodes are lost. The epoch begins anew then, and when "
        "new nodes join in, which is at most every ten minutes. Default: all.",
        minimum=1,
    )
    max_worker_failures: int = setting(3, "Deaths of workers that a run survives.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(JobConfig):
    """Configuration of fine-tuning."""

    NUMBER_GROUPS = ("network", "sampling", "faces")
    OF_ONE_MEDIUM: ClassVar = {
        **settings_of(SamplingSettings, KIND_VIDEO),
        **settings_of(FaceDetectionSettings, KIND_VIDEO),
        **settings_of(ExportSettings, KIND_VIDEO),
        **dict.fromkeys(("start", "lstm_layers", "lstm_dim", "max_clip_frames"), KIND_VIDEO),
        **dict.fromkeys(("loss", "self_blended", "crop", "h264", "max_video_bytes"), KIND_VIDEO),
        **dict.fromkeys(("mixup", "crop_area", "max_image_bytes"), KIND_IMAGE),
    }

    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    faces: FaceDetectionSettings = dataclasses.field(default_factory=FaceDetectionSettings)
    labels: LabelSettings = dataclasses.field(default_factory=LabelSettings)
    optimisation: OptimisationSettings = dataclasses.field(default_factory=OptimisationSettings)
    augmentation: AugmentationSettings = dataclasses.field(default_factory=AugmentationSettings)
    export: ExportSettings = dataclasses.field(default_factory=ExportSettings)
    tracking: TrackingSettings = dataclasses.field(default_factory=TrackingSettings)
    device: DeviceSettings = dataclasses.field(default_factory=DeviceSettings)
    medium: MediumSettings = dataclasses.field(default_factory=MediumSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    limits: LimitSettings = dataclasses.field(default_factory=LimitSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    cluster: TrainingClusterSettings = dataclasses.field(default_factory=TrainingClusterSettings)
