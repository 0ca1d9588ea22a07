"""Training forgery classifiers on the clips of videos."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from effnet_batch.config import OptimisationSettings
from effnet_batch.evaluation.metrics import Detections
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import score_of
from effnet_batch.models.checkpoint_file import checkpoint_bytes
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.weights_file import check_sha256
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage
from effnet_batch.training.feed import Feed
from effnet_batch.training.losses import clip_losses
from effnet_batch.training.network import build_network
from effnet_batch.training.objective import Objective
from effnet_batch.training.prepared import PreparedClips
from effnet_batch.training.stored import StoredClips, StoredFrames
from effnet_batch.training.trainer import Batch, OnPictures, Trainer


class _OnEmbeddings(nn.Module):
    """Judges padded clips of embeddings, float32 [B, T, D]."""

    def __init__(self, model: SequenceClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, padded: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Returns logits [B, T]."""
        return self.model.classify(padded, lengths)


class ClipTrainer(Trainer):
    """Trains a sequence classifier on clips of any lengths.

    Args:
        model: trained in place; on the CPU.
        preprocessing: its normalisation is applied on the device.
        settings: how.
        on_embeddings: clips are of embeddings, and the head alone is trained.
        **sizes: as those of `Trainer`.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        preprocessing: Preprocessing,
        settings: OptimisationSettings,
        *,
        on_embeddings: bool = False,
        **sizes: Any,
    ) -> None:
        network = _OnEmbeddings(model) if on_embeddings else OnPictures(model, preprocessing)
        super().__init__(model, network, settings, on_embeddings=on_embeddings, **sizes)

    def _loss(self, batch: Batch, part: slice) -> torch.Tensor:
        clips = [torch.from_numpy(clip) for clip in batch.clips[part]]
        lengths = [len(clip) for clip in clips]
        padded = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(self.device)
        with self.autocast():
            logits = self.network(padded, lengths)
        labels = torch.tensor(batch.labels[part], device=self.device)
        losses = clip_losses(
            logits,
            lengths,
            labels,
            loss=self.settings.loss,
            label_smoothing=self.settings.label_smoothing,
        )
        weights = torch.tensor(batch.weights[part], device=self.device, dtype=torch.float32)
        return (losses * weights).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoObjective(Objective):
    """Clips of videos, or of their stored frames: fake or real.

    ``samples`` are of `feed.SAMPLES_SCHEMA`; ``validation`` holds videos: ``uri`` of the file with
    their clips, ``record_id``, ``label``.
    """

    METRIC = "auc"
    NOUN = "video"

    info: CheckpointInfo
    """How the classifier is run: with the user's sampling and faces."""
    view: View
    """What it is shown."""
    frames: StoredFrames | None
    """Stored embeddings that a head alone is trained on; None trains on pictures."""

    def make_trainer(self, storage: Storage, **sizes: Any) -> Trainer:
        """Returns a trainer of the network at its start."""
        model, info, sha256 = build_network(self.network, self.optimisation, storage)
        check_sha256(info.name, sha256, self.start_sha256)
        return ClipTrainer(
            model,
            self.info.preprocessing,
            self.optimisation,
            on_embeddings=self.frames is not None,
            **sizes,
        )

    def open(self, storage: Storage, *, feed_cpus: float) -> PreparedClips | StoredClips:
        """Opens the clips."""
        if self.frames is not None:
            return StoredClips(
                self.frames,
                info=self.info,
                view=self.view,
                samples=self.samples,
                validation=self.validation,
                storage=storage,
            )
        feed = Feed(
            storage=self.storage,
            augmentation=self.augmentation,
            self_blended=self.optimisation.self_blended,
            resolutions=self.optimisation.resolutions,
            seed=self.optimisation.training_seed,
            epoch=0,
        )
        return PreparedClips(
            info=self.info,
            view=self.view,
            feed=feed,
            samples=self.samples,
            storage=storage,
            feed_cpus=feed_cpus,
        )

    def measure(self, judged: Sequence[float]) -> dict[str, float]:
        """Returns AUC, log loss and accuracy of the videos' logits."""
        labels = self.validation["label"].to_pylist()
        found = Detections(labels, [score_of(logit) for logit in judged]).measure()
        wanted = ("auc", "log_loss", "accuracy")
        return {name: value for name in wanted if (value := found[name]) is not None}

    def checkpoint(self, model: nn.Module) -> bytes:
        """Returns the file that `score` runs."""
        assert isinstance(model, SequenceClassifier)
        return checkpoint_bytes(model, self.info)
