"""Training image classifiers: softmax over the classes of a manifest."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from effnet_batch.config import OptimisationSettings
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.classifier_file import ClassifierInfo, classifier_bytes
from effnet_batch.models.engine import build_engine
from effnet_batch.models.weights_file import check_sha256
from effnet_batch.storage import Storage
from effnet_batch.training.feed import stream_batches
from effnet_batch.training.image_feed import ImageFeed, read_images
from effnet_batch.training.network import build_image_network
from effnet_batch.training.objective import Objective
from effnet_batch.training.plan import Step
from effnet_batch.training.trainer import Batch, OnPictures, Trainer

_IMAGES_PER_TASK: Final = 16
_BATCH_SIZE: Final = 16
_NUM_DECODERS: Final = 4

Judged = tuple[int, float]
"""How many classes were thought likelier than the image's own, and its log loss."""


class ImageTrainer(Trainer):
    """Trains a backbone with its classifier on images of one size per batch.

    With mixup, an image of a step is mixed with the one half a step away (Zhang et al., 2018): the
    same pairs and the same share for any number of workers of which each has an even number.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        settings: OptimisationSettings,
        **sizes: Any,
    ) -> None:
        super().__init__(model, OnPictures(model, preprocessing), settings, **sizes)

    def _loss(self, batch: Batch, part: slice) -> torch.Tensor:
        own = range(len(batch.clips))[part]
        share = self._share()
        if share == 1:
            with self.autocast():
                logits = self.network(self._pixels(batch, own))
            return self._weighed(logits, batch, own)
        partners = [(place + len(batch.clips) // 2) % len(batch.clips) for place in own]
        pixels = torch.lerp(
            self._pixels(batch, partners).float(), self._pixels(batch, own).float(), share
        )
        with self.autocast():
            logits = self.network(pixels)
        return share * self._weighed(logits, batch, own) + (1 - share) * self._weighed(
            logits, batch, partners
        )

    def _share(self) -> float:
        """Returns how much of this step's mixed images is the image itself, in 0..1."""
        strength = self.settings.mixup
        if not strength:
            return 1.0
        generator = np.random.default_rng([self.settings.training_seed, self.step])
        return float(generator.beta(strength, strength))

    def _pixels(self, batch: Batch, places: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack([batch.clips[place] for place in places])).to(self.device)

    def _weighed(self, logits: torch.Tensor, batch: Batch, places: Sequence[int]) -> torch.Tensor:
        """Returns the sum of what these images' labels cost, each times its weight."""
        labels = torch.tensor([batch.labels[place] for place in places], device=self.device)
        weights = torch.tensor([batch.weights[place] for place in places], device=self.device)
        losses = cross_entropy(
            logits.float(),
            labels,
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        return (losses * weights).sum()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """Images that were prepared; stands for `objective.Examples`."""

    preprocessing: Preprocessing
    """How the classifier is run."""
    feed: ImageFeed
    """Makes batches of the first epoch."""
    samples: pa.Table
    """Images to train on, of `image_feed.IMAGES_SCHEMA`."""
    storage: Storage
    """Reads them."""
    feed_cpus: float
    """What a task asks for that makes some of them ready."""

    def batches(
        self,
        steps: Sequence[Step],
        weights: Mapping[int, float],
        *,
        epoch: int,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Yields a worker's batches in the order of its steps."""
        return stream_batches(
            self.samples,
            steps,
            dataclasses.replace(self.feed, epoch=epoch),
            weights,
            batch_size=batch_size,
            num_cpus=self.feed_cpus,
            per_task=_IMAGES_PER_TASK,
        )

    def judge(self, model: nn.Module, rows: pa.Table, *, device: str) -> list[Judged]:
        """Returns what a model makes of images, by the same path as embedding.

        Args:
            model: as it is now; it is left alone.
            rows: images of `image_feed.IMAGES_SCHEMA`.
            device: that the model runs on.
        """
        assert isinstance(model, Backbone)
        was_training = model.training
        engine = build_engine(
            model,
            self.preprocessing,
            engine="torch",
            device=device.partition(":")[0],
            precision="fp32",
            batch_size=_BATCH_SIZE,
            with_logits=True,
        )
        judged: list[Judged] = []
        with ThreadPoolExecutor(_NUM_DECODERS, "decode") as pool:
            for start in range(0, len(rows), _BATCH_SIZE):
                some = rows.slice(start, _BATCH_SIZE)
                images = pool.map(
                    lambda data: decode_image(data, self.preprocessing, self.feed.limits).frame,
                    read_images(some, self.storage),
                )
                logits = engine.run(np.stack(list(images))).logits
                assert logits is not None
                judged += map(_judge, logits, some["label"].to_pylist())
        model.train(was_training)
        return judged


def _judge(logits: np.ndarray, label: int) -> Judged:
    # In the order in which embedding ranks classes, where two are equally likely.
    rank = np.argsort(-logits, kind="stable").tolist().index(label)
    return rank, float(np.logaddexp.reduce(logits.astype(np.float64)) - logits[label])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageObjective(Objective):
    """Images of classes. ``samples`` and ``validation`` are of `image_feed.IMAGES_SCHEMA`."""

    METRIC = "top1"
    NOUN = "image"

    preprocessing: Preprocessing
    """How the classifier is run."""
    limits: ImageLimits
    """What one image may cost."""
    class_names: tuple[str, ...]
    """By label."""

    def make_trainer(self, storage: Storage, **sizes: Any) -> Trainer:
        """Returns a trainer of the network at its start."""
        model = build_image_network(self.network, self.optimisation, self.class_names, storage)
        assert model.weights_info is not None
        check_sha256(model.weights_info.name, model.weights_info.sha256, self.start_sha256)
        return ImageTrainer(model, self.preprocessing, self.optimisation, **sizes)

    def open(self, storage: Storage, *, feed_cpus: float) -> Images:
        """Opens the images."""
        feed = ImageFeed(
            storage=self.storage,
            augmentation=self.augmentation,
            preprocessing=self.preprocessing,
            limits=self.limits,
            resolutions=self.optimisation.resolutions,
            seed=self.optimisation.training_seed,
            epoch=0,
        )
        return Images(
            preprocessing=self.preprocessing,
            feed=feed,
            samples=self.samples,
            storage=storage,
            feed_cpus=feed_cpus,
        )

    def measure(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Returns the shares of images whose class was the likeliest, and among the first five."""
        ranks = np.array([rank for rank, _ in judged])
        return {
            "top1": float((ranks < 1).mean()),
            "top5": float((ranks < 5).mean()),
            "log_loss": float(np.mean([loss for _, loss in judged])),
        }

    def checkpoint(self, model: nn.Module) -> bytes:
        """Returns the file that `load_model` and `embed` take as weights."""
        assert isinstance(model, Backbone)
        info = model.weights_info
        assert info is not None
        return classifier_bytes(
            model,
            ClassifierInfo(
                architecture=info.architecture,
                padding=info.padding,
                bn_eps=info.bn_eps,
                bn_momentum=info.bn_momentum,
                preprocessing=self.preprocessing,
                class_names=self.class_names,
                training_fingerprint=self.fingerprint,
                licence=info.licence,
            ),
        )
