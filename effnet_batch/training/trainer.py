"""One worker's side of training: steps over its share of the samples, in step with the others."""

import abc
import contextlib
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from effnet_batch.config import OptimisationSettings
from effnet_batch.errors import JobError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import StochasticDepth
from effnet_batch.training.optimiser import (
    AveragedModel,
    backbone_layers,
    learning_rate,
    parameter_groups,
    trained_tensors,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """B samples of one worker's step."""

    clips: Sequence[npt.NDArray[Any]]
    """Pictures, uint8 [T, S, S, 3] each, or embeddings, float32 [T, D]; an image is one picture."""
    labels: list[int]
    """Of a clip 1 for fake; of an image its class, from 0."""
    weights: list[float]
    """How much each counts; 0 for one that only fills the step."""


class OnPictures(nn.Module):
    """Runs a model on pictures, uint8 [..., S, S, 3]; normalises them on their device."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixels: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """Returns the model's logits; further arguments are passed on to it."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        logits: torch.Tensor = self.model(
            (pixels.movedim(-1, -3).float() / 255 - mean) / std, *arguments
        )
        return logits


class Trainer(abc.ABC):
    """Model, optimiser and schedule of one worker; what a batch costs is a subclass's matter.

    Args:
        model: trained in place; on the CPU.
        network: the model behind what it is fed through, from a batch's tensors to logits.
        settings: how.
        on_embeddings: the model's encoder is not trained.
        steps_per_epoch: of the run.
        device: ``cpu`` or a CUDA device.
        num_workers: of the process group; with several, gradients are averaged over them.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        settings: OptimisationSettings,
        *,
        steps_per_epoch: int,
        device: str,
        num_workers: int,
        on_embeddings: bool = False,
    ) -> None:
        self.model = model.to(device)
        self.settings = settings
        self.epoch = 0
        """Epochs that are done."""
        self.device = device
        self._num_workers = num_workers
        self.step = 0
        """Steps that are done."""
        self._num_steps = settings.epochs * steps_per_epoch
        self._num_warmup = round(settings.warmup_epochs * steps_per_epoch)
        self._optimiser = torch.optim.AdamW(
            parameter_groups(model, settings, on_embeddings=on_embeddings),
            lr=settings.learning_rate,
        )
        self._averaged = None if settings.ema is None else AveragedModel(model, settings.ema)
        self.network = network.to(device)
        """Runs the model; gradients are averaged over the workers."""
        if num_workers > 1:
            # What is frozen has no gradients to wait for.
            self.network = DistributedDataParallel(self.network, broadcast_buffers=False)

    @property
    def judged(self) -> nn.Module:
        """What is validated and kept: the averaged model where there is one."""
        return self.model if self._averaged is None else self._averaged.model

    def start_epoch(self, rank: int) -> None:
        """Puts the model into training mode; dropout repeats by seed, epoch and worker."""
        torch.manual_seed(
            int(
                np.random.default_rng([self.settings.training_seed, self.epoch, rank]).integers(
                    2**62
                )
            )
        )
        self.model.train()
        if self.settings.freeze_backbone:
            for layer in backbone_layers(self.model):
                layer.eval()
        resting: tuple[type[nn.Module], ...] = ()
        if self.settings.freeze_batchnorm:
            resting += (nn.modules.batchnorm._BatchNorm,)
        if not self.settings.stochastic_depth:
            resting += (StochasticDepth,)
        for module in self.model.modules():
            if isinstance(module, resting):
                module.eval()

    def share_statistics(self) -> None:
        """Gives every worker the mean of all workers' statistics of batch normalisation.

        Each has moved its own, by its own samples, and one model is validated and kept. What is
        frozen is left as it is, to the last bit.
        """
        if self._num_workers == 1:
            return
        moving = [
            f"{name}.{statistic}"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for statistic in ("running_mean", "running_var")
        ]
        averaged = [] if self._averaged is None else [self._averaged.model]
        for model in (self.model, *averaged):
            for name in moving:
                statistic = model.get_buffer(name)
                dist.all_reduce(statistic)
                statistic /= self._num_workers

    def train_step(self, batch: Batch, total_weight: float) -> float:
        """Takes one step; returns this worker's part of the step's mean loss.

        The parts of all workers add up to the mean over the step's samples by weight.

        Args:
            batch: this worker's samples.
            total_weight: of all workers' samples of the step.

        Raises:
            JobError: the loss is no number any more.
        """
        settings = self.settings
        size = settings.micro_batch or len(batch.clips)
        starts = range(0, len(batch.clips), size)
        for group in self._optimiser.param_groups:
            group["lr"] = group["scale"] * learning_rate(
                self.step, self._num_steps, self._num_warmup, settings
            )
        self._optimiser.zero_grad(set_to_none=True)
        value = 0.0
        for start in starts:
            is_last = start == starts[-1]
            with self._without_exchange() if not is_last else contextlib.nullcontext():
                loss = self._loss(batch, slice(start, start + size)) / total_weight
                # Averaging over the workers divides by their number once more.
                (loss * self._num_workers).backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if not (np.isfinite(value) and torch.isfinite(norm)):
            raise JobError(
                f"the loss became {value} and its gradient {float(norm)} in step {self.step + 1}; "
                "lower --learning-rate or --clip-norm; earlier checkpoints are intact"
            )
        self._optimiser.step()
        self.step += 1
        if self._averaged is not None:
            self._averaged.update(self.model)
        return value

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def autocast(self) -> torch.autocast:
        """Returns the context of the forward pass, in the precision of the settings."""
        kind = torch.device(self.device).type
        is_mixed = self.settings.mixed_precision == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=is_mixed)

    @abc.abstractmethod
    def _loss(self, batch: Batch, part: slice) -> torch.Tensor:
        """Returns the sum of the losses of a part of a batch, each times its weight."""

    def save(self) -> bytes:
        """Returns everything that the next epoch depends on; `load` takes it back."""
        file = io.BytesIO()
        torch.save(
            {
                "epoch": self.epoch,
                "step": self.step,
                "model": trained_tensors(self.model),
                "optimiser": self._optimiser.state_dict(),
                "averaged": None if self._averaged is None else self._averaged.state_dict(),
            },
            file,
        )
        return file.getvalue()

    def load(self, data: bytes) -> None:
        """Goes on where `save` left off.

        Raises:
            JobError: the state is damaged, or of another network or other settings.
        """
        try:
            state = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
            # What is frozen is as it was when training started.
            self.model.load_state_dict({**self.model.state_dict(), **state["model"]})
            self._optimiser.load_state_dict(state["optimiser"])
            if self._averaged is not None:
                self._averaged.load_state_dict(state["averaged"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
        except Exception as error:  # a damaged file raises nearly anything
            raise JobError(
                f"the saved state of training does not fit ({type(error).__name__}: {error}); it "
                "is damaged, or of another network; use another output, or delete its folder "
                "training/ to train anew on what is prepared"
            ) from error


def class_weights(labels: Sequence[int], *, balance: bool) -> dict[int, float]:
    """Returns how much a sample of each class counts; balanced, all classes count the same."""
    counts = Counter(labels)
    if not balance:
        return dict.fromkeys(counts, 1.0)
    return {label: len(labels) / (len(counts) * count) for label, count in counts.items()}
