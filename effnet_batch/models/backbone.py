"""What every backbone offers: feature map, pooled embedding, logits."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from effnet_batch.media.preprocess import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where a model's numbers come from and how they must be run; part of the fingerprint."""

    name: str
    """The registry's name of the weights, else the file's name."""
    source: str
    """The specification they were loaded from, without secrets."""
    sha256: str
    """Of the file; of the tensors where there is none (``random``)."""
    architecture: str
    """One of `architectures.ARCHITECTURES`."""
    padding: str
    """One of `recipe.PADDINGS`."""
    bn_eps: float
    """Added to the variance by every batch normalisation."""
    bn_momentum: float
    """Weight of a new batch in the running statistics; matters for training only."""
    preprocessing: Preprocessing
    """How an image becomes the model's input."""
    num_classes: int
    """Number of logits."""
    class_names: tuple[str, ...] | None = None
    """Names of the logits, in order, where known."""
    licence: str | None = None
    """SPDX identifier of the weights' licence, where known."""


class Backbone(nn.Module):
    """A convolutional network with a linear classifier.

    Attributes:
        embedding_dim: length of the pooled embedding.
        num_classes: number of logits; 0 leaves the classifier out, and logits are embeddings.
        image_size: native side of the input, in pixels.
        weights_info: set once weights are loaded.
    """

    weights_info: WeightsInfo | None = None

    def __init__(
        self, *, embedding_dim: int, num_classes: int, image_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.num_classes = num_classes
        self.image_size = image_size
        self.dropout = nn.Dropout(dropout)
        self.fc: nn.Module = nn.Linear(embedding_dim, num_classes) if num_classes else nn.Identity()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised pixels [N,3,H,W] to the last feature map [N,embedding_dim,h,w]."""
        raise NotImplementedError

    def stage_layers(self) -> dict[str, nn.Module]:
        """Returns the layers whose outputs are the ends of the stages, in order, by name."""
        raise NotImplementedError

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised pixels [N,3,H,W] to globally averaged embeddings [N,embedding_dim]."""
        return functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised pixels [N,3,H,W] to logits [N,num_classes]."""
        logits: torch.Tensor = self.fc(self.dropout(self.embed(x)))
        return logits


class StochasticDepth(nn.Module):
    """Drops whole samples of a residual branch while training (Huang et al., 2016).

    What is kept is divided by the probability of being kept, so evaluation needs no correction.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x [N,...] with each sample zeroed with probability ``rate`` in training."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        """Returns the rate, for ``print(model)``."""
        return f"rate={self.rate:.3f}"
