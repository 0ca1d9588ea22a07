"""Which parameters learn how fast, and the averaged copy of them that is kept."""

import copy
import math
from typing import Any

import torch
from torch import nn

from effnet_batch.config import OptimisationSettings
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.sequence import SequenceClassifier


def _backbone_of(model: nn.Module) -> Backbone:
    if isinstance(model, SequenceClassifier):
        return model.encoder.backbone
    assert isinstance(model, Backbone)
    return model


def backbone_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of a classifier's backbone, in order, without what classifies."""
    backbone = _backbone_of(model)
    head = (backbone.dropout, backbone.fc)
    return [layer for layer in backbone.children() if layer not in head]


def parameter_groups(
    model: nn.Module, settings: OptimisationSettings, *, on_embeddings: bool = False
) -> list[dict[str, Any]]:
    """Returns AdamW's groups, each with its ``scale`` of the learning rate.

    The head has 1, the last stage of the backbone ``layer_decay``, the one before its square, and
    so on. Norms and biases are not decayed. What is frozen has no group: the backbone where the
    settings say so, and the bottleneck with it where embeddings are what is trained on.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    is_frozen = settings.freeze_backbone or on_embeddings
    stages = [] if is_frozen else _stages(model)
    if isinstance(model, SequenceClassifier):
        model.encoder.requires_grad_(not on_embeddings)
    inside: set[int] = set()
    for layer in backbone_layers(model):
        layer.requires_grad_(not is_frozen)
        inside.update(map(id, layer.parameters()))
    for number, parameters in enumerate(stages):
        scale = settings.layer_decay ** (len(stages) - number)
        for parameter in parameters:
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    for parameter in model.parameters():
        if id(parameter) not in inside and parameter.requires_grad:
            groups.setdefault((1.0, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": scale,
            "weight_decay": settings.weight_decay if is_decayed else 0.0,
        }
        for (scale, is_decayed), parameters in groups.items()
    ]


def _stages(model: nn.Module) -> list[list[nn.Parameter]]:
    """Returns the backbone's parameters by stage, in the order of the forward pass."""
    ends = {
        id(parameters[-1])
        for layer in _backbone_of(model).stage_layers().values()
        if (parameters := list(layer.parameters()))
    }
    stages: list[list[nn.Parameter]] = [[]]
    for layer in backbone_layers(model):
        for parameter in layer.parameters():
            stages[-1].append(parameter)
            if id(parameter) in ends:
                stages.append([])
    # What follows the last stage, such as its norm, belongs to it.
    return [*stages[:-2], stages[-2] + stages[-1]] if len(stages) > 1 else stages


def learning_rate(
    step: int, num_steps: int, num_warmup: int, settings: OptimisationSettings
) -> float:
    """Returns the head's learning rate: a straight rise, then half a cosine.

    Args:
        step: from 0.
        num_steps: of the whole run.
        num_warmup: steps of the rise.
        settings: its highest and lowest.
    """
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    through = (step - num_warmup) / max(1, num_steps - num_warmup)
    low = min(settings.min_learning_rate, settings.learning_rate)
    return low + (settings.learning_rate - low) * (1 + math.cos(math.pi * through)) / 2


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that training may change: parameters that are not frozen, and buffers."""
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    return {name: each for name, each in model.state_dict().items() if name not in frozen}


class AveragedModel:
    """An exponential moving average of a model's tensors; what is not float is copied.

    Args:
        model: where the average starts; what of it is frozen stays as it is.
        decay: weight of the past.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        self._num_updates = 0
        self._trained = tuple(trained_tensors(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes a step's tensors in; early on with less of the past, which is the start's."""
        self._num_updates += 1
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        means = self.model.state_dict()
        for name, now in trained_tensors(model).items():
            if now.is_floating_point():
                means[name].lerp_(now, 1 - decay)
            else:
                means[name].copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` takes back."""
        means = self.model.state_dict()
        return {
            "model": {name: means[name] for name in self._trained},
            "num_updates": self._num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another left off."""
        self.model.load_state_dict({**self.model.state_dict(), **state["model"]})
        self._num_updates = int(state["num_updates"])
