"""What a network costs: parameters, multiply-adds and the sizes of its feature maps."""

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from effnet_batch.models.architectures import ARCHITECTURES, build_model, canonical_name
from effnet_batch.models.scaling import Coefficients


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The size of a network and of one forward pass of one image."""

    name: str
    """One of `architectures.ARCHITECTURES`."""
    coefficients: Coefficients
    """How far the network is scaled."""
    image_size: int
    """Side of the input that the rest is measured at, in pixels."""
    num_parameters: int
    """With the classifier; running statistics do not count."""
    num_backbone_parameters: int
    """Without the classifier."""
    num_macs: int
    """Multiply-adds of convolutions and classifier, as papers and torchvision count them."""
    embedding_dim: int
    """Length of the pooled embedding."""
    feature_sizes: dict[str, tuple[int, int, int]]
    """Channels, height and width at the end of each stage, in order, by the stage's name."""

    @property
    def gmacs(self) -> float:
        """Multiply-adds in units of 10^9."""
        return self.num_macs / 1e9


def measure_cost(
    name: str,
    *,
    coefficients: Coefficients | None = None,
    image_size: int | None = None,
    num_classes: int = 1000,
) -> ModelCost:
    """Measures a network without allocating it.

    Args:
        name: one of `architectures.ARCHITECTURES`.
        coefficients: scales the network instead of its published coefficients.
        image_size: side of the input in pixels, where not the coefficients' resolution.
        num_classes: number of logits.

    Raises:
        ConfigError: no such network.
    """
    name = canonical_name(name)
    coefficients = coefficients or ARCHITECTURES[name]
    side = image_size or coefficients.resolution
    with torch.device("meta"):
        model = build_model(name, coefficients=coefficients, num_classes=num_classes).eval()
        feature_sizes: dict[str, tuple[int, int, int]] = {}

        def record(stage: str, output: torch.Tensor) -> None:
            channels, height, width = output.shape[1:]
            feature_sizes[stage] = (channels, height, width)

        for stage, layer in model.stage_layers().items():
            layer.register_forward_hook(
                lambda _module, _inputs, output, stage=stage: record(stage, output)
            )
        # Counts two operations a multiply-add.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(
        name=name,
        coefficients=coefficients,
        image_size=side,
        num_parameters=num_parameters,
        num_backbone_parameters=num_parameters - sum(p.numel() for p in model.fc.parameters()),
        num_macs=counter.get_total_flops() // 2,
        embedding_dim=model.embedding_dim,
        feature_sizes=feature_sizes,
    )
