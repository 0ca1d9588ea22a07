"""ResNet-50 with bottlenecks, at any width, depth and resolution.

Sources: He et al., *Deep Residual Learning* (CVPR 2016), Table 1; the stride sits on the 3x3
convolution, as in torchvision's and timm's weights. Table 3 of the EfficientNet paper scales this
network along one dimension and along all.
"""

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from effnet_batch.models.backbone import Backbone
from effnet_batch.models.recipe import SYMMETRIC
from effnet_batch.models.scaling import Coefficients, round_filters, round_repeats

STEM_CHANNELS: Final = 64
STAGES: Final = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and inner channels of each stage; every stage but the first halves the size."""
EXPANSION: Final = 4
"""Output channels of a block as a multiple of its inner channels."""
VARIANTS: Final = {"resnet50": Coefficients(dropout=0.0)}


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (strided), 1x1 expand, add; the parameters' names are the field's own."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        stride: int,
        *,
        bn_eps: float,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        out_channels = mid_channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels, bn_eps, bn_momentum)
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_channels, bn_eps, bn_momentum)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, bn_eps, bn_momentum)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels, bn_eps, bn_momentum),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,in,H,W] to [N,4*mid,ceil(H/stride),ceil(W/stride)]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return functional.relu(out)


class ResNet(Backbone):
    """ResNet-50 scaled by ``coefficients``.

    Args:
        coefficients: factors on channels and blocks, and the native side of the input.
        num_classes: number of logits.
        padding: ``symmetric``; no published ResNet-50 in these layouts uses another.
        bn_eps: added to the variance.
        bn_momentum: weight of a new batch in the running statistics.
        in_chans: channels of the input.
        image_size: native side of the input in pixels, instead of the coefficients' resolution.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        *,
        num_classes: int = 1000,
        padding: str = SYMMETRIC,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        in_chans: int = 3,
        image_size: int | None = None,
    ) -> None:
        if padding != SYMMETRIC:
            raise ValueError(f"padding of a ResNet must be {SYMMETRIC}, got {padding!r}")
        stages = [
            (round_repeats(num_blocks, coefficients.depth), round_filters(mid, coefficients.width))
            for num_blocks, mid in STAGES
        ]
        super().__init__(
            embedding_dim=stages[-1][1] * EXPANSION,
            num_classes=num_classes,
            image_size=image_size or coefficients.resolution,
            dropout=coefficients.dropout,
        )
        self.padding = padding
        self.bn_eps = bn_eps
        channels = round_filters(STEM_CHANNELS, coefficients.width)
        self.conv1 = nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, bn_eps, bn_momentum)
        for index, (num_blocks, mid_channels) in enumerate(stages):
            blocks = []
            for repeat in range(num_blocks):
                stride = 2 if index > 0 and repeat == 0 else 1
                blocks.append(
                    Bottleneck(
                        channels, mid_channels, stride, bn_eps=bn_eps, bn_momentum=bn_momentum
                    )
                )
                channels = mid_channels * EXPANSION
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,3,H,W] to the last stage's output [N,embedding_dim,ceil(H/32),ceil(W/32)]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        for index in range(len(STAGES)):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return x

    def stage_layers(self) -> dict[str, nn.Module]:
        """Returns stem (before its pooling) and the four stages."""
        stages = {
            f"stage{index + 1}": self.get_submodule(f"layer{index + 1}")
            for index in range(len(STAGES))
        }
        return {"stem": self.conv1, **stages}
