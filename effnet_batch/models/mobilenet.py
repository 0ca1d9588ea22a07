"""MobileNetV2 at any width, depth and resolution.

Source: Sandler et al., *MobileNetV2* (CVPR 2018), Table 2. Table 3 of the EfficientNet paper scales
this network along one dimension and along all.
"""

from typing import Final

import torch
from torch import nn

from effnet_batch.models.backbone import Backbone
from effnet_batch.models.efficientnet import Stage
from effnet_batch.models.recipe import SYMMETRIC
from effnet_batch.models.scaling import Coefficients, round_filters, round_repeats

STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
STAGES: Final = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(3, 3, 2, 6, 32),
    Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96),
    Stage(3, 3, 2, 6, 160),
    Stage(1, 3, 1, 6, 320),
)
VARIANTS: Final = {"mobilenet_v2": Coefficients()}


def _conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    is_linear: bool = False,
    bn_eps: float,
    bn_momentum: float,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels, bn_eps, bn_momentum),
    ]
    return nn.Sequential(*layers if is_linear else (*layers, nn.ReLU6(inplace=True)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (linear), add where size and channels stay."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stage: Stage,
        stride: int,
        *,
        bn_eps: float,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        mid_channels = in_channels * stage.expand_ratio
        self.has_residual = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if stage.expand_ratio != 1:
            layers.append(
                _conv_bn(in_channels, mid_channels, 1, bn_eps=bn_eps, bn_momentum=bn_momentum)
            )
        layers.append(
            _conv_bn(
                mid_channels,
                mid_channels,
                stage.kernel_size,
                stride=stride,
                groups=mid_channels,
                bn_eps=bn_eps,
                bn_momentum=bn_momentum,
            )
        )
        projection = _conv_bn(
            mid_channels,
            out_channels,
            1,
            is_linear=True,
            bn_eps=bn_eps,
            bn_momentum=bn_momentum,
        )
        self.conv = nn.Sequential(*layers, *projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,in,H,W] to [N,out,ceil(H/stride),ceil(W/stride)]."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.has_residual else out


class MobileNetV2(Backbone):
    """MobileNetV2 scaled by ``coefficients``; the head never gets fewer channels than 1280.

    Args:
        coefficients: factors on channels and blocks, and the native side of the input.
        num_classes: number of logits.
        padding: ``symmetric``; no published MobileNetV2 in torchvision's layout uses another.
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
            raise ValueError(f"padding of a MobileNetV2 must be {SYMMETRIC}, got {padding!r}")
        head_channels = round_filters(HEAD_CHANNELS, max(1.0, coefficients.width))
        super().__init__(
            embedding_dim=head_channels,
            num_classes=num_classes,
            image_size=image_size or coefficients.resolution,
            dropout=coefficients.dropout,
        )
        self.padding = padding
        self.bn_eps = bn_eps
        channels = round_filters(STEM_CHANNELS, coefficients.width)
        layers: list[nn.Module] = [
            _conv_bn(in_chans, channels, 3, stride=2, bn_eps=bn_eps, bn_momentum=bn_momentum)
        ]
        self.stage_ends: list[int] = []
        for stage in STAGES:
            out_channels = round_filters(stage.out_channels, coefficients.width)
            for repeat in range(round_repeats(stage.num_blocks, coefficients.depth)):
                stride = stage.stride if repeat == 0 else 1
                layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stage,
                        stride,
                        bn_eps=bn_eps,
                        bn_momentum=bn_momentum,
                    )
                )
                channels = out_channels
            self.stage_ends.append(len(layers) - 1)
        layers.append(_conv_bn(channels, head_channels, 1, bn_eps=bn_eps, bn_momentum=bn_momentum))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,3,H,W] to the head's activations [N,embedding_dim,ceil(H/32),ceil(W/32)]."""
        features: torch.Tensor = self.layers(x)
        return features

    def stage_layers(self) -> dict[str, nn.Module]:
        """Returns stem, the last block of each of the seven stages, and head."""
        stages = {f"stage{n + 1}": self.layers[end] for n, end in enumerate(self.stage_ends)}
        return {"stem": self.layers[0], **stages, "head": self.layers[-1]}
