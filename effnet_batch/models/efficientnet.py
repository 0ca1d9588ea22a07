"""EfficientNet B0-B8, L2 and Lite0-4 from the paper's Table 1 and its scaling coefficients.

Sources: Tan and Le, *EfficientNet* (ICML 2019), Table 1; ``efficientnet_builder.py`` and
``lite/efficientnet_lite_builder.py`` of tensorflow/tpu for the coefficients. The expansion ratio
is 6 (1 in the first stage) and the activation is SiLU, inside squeeze-and-excitation too.
"""

import dataclasses
import math
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from effnet_batch.models.backbone import Backbone, StochasticDepth
from effnet_batch.models.padding import make_conv
from effnet_batch.models.recipe import PADDINGS, SYMMETRIC
from effnet_batch.models.scaling import Coefficients, round_filters, round_repeats


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of Table 1: MBConv blocks of one shape; only the first has the stride."""

    num_blocks: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_channels: int


STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
SE_RATIO: Final = 0.25
"""Squeeze-and-excitation channels as a part of the block's input, before its expansion."""
STAGES: Final = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def _coefficients(width: float, depth: float, resolution: int, dropout: float) -> Coefficients:
    return Coefficients(width=width, depth=depth, resolution=resolution, dropout=dropout)


VARIANTS: Final = {
    "efficientnet_b0": _coefficients(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": _coefficients(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": _coefficients(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": _coefficients(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": _coefficients(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": _coefficients(1.6, 2.2, 456, 0.4),
    "efficientnet_b6": _coefficients(1.8, 2.6, 528, 0.5),
    "efficientnet_b7": _coefficients(2.0, 3.1, 600, 0.5),
    "efficientnet_b8": _coefficients(2.2, 3.6, 672, 0.5),
    "efficientnet_l2": _coefficients(4.3, 5.3, 800, 0.5),
}
LITE_VARIANTS: Final = {
    "efficientnet_lite0": _coefficients(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": _coefficients(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": _coefficients(1.1, 1.2, 260, 0.3),
    "efficientnet_lite3": _coefficients(1.2, 1.4, 280, 0.3),
    "efficientnet_lite4": _coefficients(1.4, 1.8, 300, 0.3),
}


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """What one MBConv is built from, once the table is scaled."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expand_ratio: int
    native_size: int


def _scaled_blocks(
    coefficients: Coefficients, is_lite: bool, image_size: int
) -> list[list[BlockShape]]:
    """Returns the blocks of each stage; Lite keeps the ends of the network unscaled in depth."""
    size = math.ceil(image_size / 2)
    channels = STEM_CHANNELS if is_lite else round_filters(STEM_CHANNELS, coefficients.width)
    stages = []
    for index, stage in enumerate(STAGES):
        out_channels = round_filters(stage.out_channels, coefficients.width)
        is_fixed = is_lite and index in (0, len(STAGES) - 1)
        blocks = []
        for repeat in range(round_repeats(stage.num_blocks, 1 if is_fixed else coefficients.depth)):
            stride = stage.stride if repeat == 0 else 1
            blocks.append(
                BlockShape(
                    channels, out_channels, stage.kernel_size, stride, stage.expand_ratio, size
                )
            )
            channels = out_channels
            size = math.ceil(size / stride)
        stages.append(blocks)
    return stages


class MBConv(nn.Module):
    """Mobile inverted bottleneck: expand, depthwise, squeeze-and-excite, project, add.

    The expansion is absent at ratio 1, squeeze-and-excitation in Lite, and the residual where the
    block changes the size or the channels.
    """

    def __init__(
        self,
        block: BlockShape,
        *,
        is_lite: bool,
        padding: str,
        bn_eps: float,
        bn_momentum: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        mid_channels = block.in_channels * block.expand_ratio
        self.has_expansion = block.expand_ratio != 1
        self.has_se = not is_lite
        self.has_residual = block.stride == 1 and block.in_channels == block.out_channels
        self.act = nn.ReLU6(inplace=True) if is_lite else nn.SiLU(inplace=True)
        if self.has_expansion:
            self.expand_conv = make_conv(block.in_channels, mid_channels, 1)
            self.expand_bn = nn.BatchNorm2d(mid_channels, bn_eps, bn_momentum)
        self.dw_conv = make_conv(
            mid_channels,
            mid_channels,
            block.kernel_size,
            stride=block.stride,
            groups=mid_channels,
            padding=padding,
            native_size=block.native_size,
        )
        self.dw_bn = nn.BatchNorm2d(mid_channels, bn_eps, bn_momentum)
        if self.has_se:
            se_channels = max(1, int(block.in_channels * SE_RATIO))
            self.se_reduce = nn.Conv2d(mid_channels, se_channels, 1)
            self.se_expand = nn.Conv2d(se_channels, mid_channels, 1)
        self.project_conv = make_conv(mid_channels, block.out_channels, 1)
        self.project_bn = nn.BatchNorm2d(block.out_channels, bn_eps, bn_momentum)
        self.drop_path = StochasticDepth(drop_path_rate if self.has_residual else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,in,H,W] to [N,out,H/stride,W/stride]."""
        out = x
        if self.has_expansion:
            out = self.act(self.expand_bn(self.expand_conv(out)))
        out = self.act(self.dw_bn(self.dw_conv(out)))
        if self.has_se:
            squeezed = self.act(self.se_reduce(functional.adaptive_avg_pool2d(out, 1)))
            out = out * torch.sigmoid(self.se_expand(squeezed))
        projected: torch.Tensor = self.project_bn(self.project_conv(out))
        return x + self.drop_path(projected) if self.has_residual else projected


class EfficientNet(Backbone):
    """The network of Table 1 at any width, depth and resolution.

    Args:
        coefficients: how far Table 1 is scaled; the resolution only matters to ``same_static``.
        is_lite: no squeeze-and-excitation, ReLU6, stem, head and the outer stages' depth unscaled.
        num_classes: number of logits.
        padding: one of `recipe.PADDINGS`.
        bn_eps: 1e-3 for weights trained with TensorFlow, else 1e-5.
        bn_momentum: weight of a new batch in the running statistics (TensorFlow's 0.99 is 0.01).
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block; earlier ones get a linear share.
        image_size: native side of the input in pixels, instead of the coefficients' resolution.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        *,
        is_lite: bool = False,
        num_classes: int = 1000,
        padding: str = SYMMETRIC,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        in_chans: int = 3,
        drop_path_rate: float = 0.2,
        image_size: int | None = None,
    ) -> None:
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
        image_size = image_size or coefficients.resolution
        head_width = 1.0 if is_lite else coefficients.width
        head_channels = round_filters(HEAD_CHANNELS, head_width)
        super().__init__(
            embedding_dim=head_channels,
            num_classes=num_classes,
            image_size=image_size,
            dropout=coefficients.dropout,
        )
        self.padding = padding
        self.bn_eps = bn_eps
        stages = _scaled_blocks(coefficients, is_lite, image_size)
        self.stage_depths = tuple(len(stage) for stage in stages)
        blocks = [block for stage in stages for block in stage]

        self.act = nn.ReLU6(inplace=True) if is_lite else nn.SiLU(inplace=True)
        self.stem_conv = make_conv(
            in_chans, blocks[0].in_channels, 3, stride=2, padding=padding, native_size=image_size
        )
        self.stem_bn = nn.BatchNorm2d(blocks[0].in_channels, bn_eps, bn_momentum)
        self.blocks = nn.ModuleList(
            MBConv(
                block,
                is_lite=is_lite,
                padding=padding,
                bn_eps=bn_eps,
                bn_momentum=bn_momentum,
                drop_path_rate=drop_path_rate * index / len(blocks),
            )
            for index, block in enumerate(blocks)
        )
        self.head_conv = make_conv(blocks[-1].out_channels, head_channels, 1)
        self.head_bn = nn.BatchNorm2d(head_channels, bn_eps, bn_momentum)
        self.apply(_initialise)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,3,H,W] to the head's activations [N,embedding_dim,ceil(H/32),ceil(W/32)]."""
        x = self.act(self.stem_bn(self.stem_conv(x)))
        for block in self.blocks:
            x = block(x)
        features: torch.Tensor = self.act(self.head_bn(self.head_conv(x)))
        return features

    def stage_layers(self) -> dict[str, nn.Module]:
        """Returns stem, the last block of each of the seven stages, and head."""
        layers: dict[str, nn.Module] = {"stem": self.stem_conv}
        end = 0
        for index, depth in enumerate(self.stage_depths):
            end += depth
            layers[f"stage{index + 1}"] = self.blocks[end - 1]
        return layers | {"head": self.head_conv}


def _initialise(module: nn.Module) -> None:
    """Applies the paper's initial values: fan-out normal convolutions, uniform classifier."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
