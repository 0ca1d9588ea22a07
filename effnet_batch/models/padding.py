"""The three ways in which published EfficientNet weights pad their convolutions.

Only the strided convolutions differ. The same weights under another padding give logits that are
off by 1-70 %, so the padding belongs to the weights and is never guessed.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from effnet_batch.models.recipe import PADDINGS, SAME, SYMMETRIC


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Returns the pixels that SAME puts before and after an axis of ``size`` pixels."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SamePadConv2d(nn.Conv2d):
    """Convolution that pads as TensorFlow's SAME does, from the size of its input.

    ``native_size`` fixes the padding to what an input of that side would get.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int,
        native_size: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=False)
        self.native_size = native_size

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the pixels put left, right, above and below an input of this size."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        return (
            *same_padding(self.native_size or width, kernel_size, stride),
            *same_padding(self.native_size or height, kernel_size, stride),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns NCHW with sides ceil(H / stride), ceil(W / stride) (at the native size)."""
        x = functional.pad(x, self.pads(x.shape[-2], x.shape[-1]))
        return functional.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    padding: str = SYMMETRIC,
    native_size: int = 0,
) -> nn.Conv2d:
    """Returns a convolution without bias under one of `PADDINGS`.

    At stride 1 the three agree, so only strided convolutions pay for an explicit pad.
    ``native_size`` is the side of this layer's input at the model's native resolution, in pixels;
    only ``same_static`` reads it.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
    if padding == SYMMETRIC or stride == 1:
        return nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        )
    if padding == SAME:
        return SamePadConv2d(in_channels, out_channels, kernel_size, stride, groups)
    before, after = same_padding(native_size, kernel_size, stride)
    if before == after:
        return nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, before, groups=groups, bias=False
        )
    return SamePadConv2d(
        in_channels, out_channels, kernel_size, stride, groups, native_size=native_size
    )
