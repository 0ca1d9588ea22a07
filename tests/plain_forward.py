"""Forward passes straight over the keys of published files, with nothing but torch's functions.

The tests hold the package's networks against these: tables, shapes and steps are written out again
from the papers and the layouts, so that no line is shared with the package.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]

# kernel, stride, expansion, channels, repeats of EfficientNet-B0's seven stages
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
SCALING = {"b1": (1.0, 1.1), "b7": (2.0, 3.1)}


class Reads(dict[str, torch.Tensor]):
    """A state dict that notes which keys were read."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return super().__getitem__(key)


def norm_shapes(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def _channels(base: int, width: float) -> int:
    scaled = base * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _blocks(variant: str) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yields timm's name, kernel, stride, expansion, input and output channels of each block."""
    width, depth = SCALING[variant]
    channels = _channels(32, width)
    for stage, (kernel, stride, expansion, base, repeats) in enumerate(STAGES):
        for index in range(math.ceil(repeats * depth)):
            out = _channels(base, width)
            yield f"{stage}.{index}", kernel, 1 if index else stride, expansion, channels, out
            channels = out


def timm_efficientnet_shapes(
    variant: str, spell: Callable[[str], str] = str, num_classes: int = 0
) -> Shapes:
    """Returns every key of timm's EfficientNet; ``spell`` renames the part before a block."""
    width, _ = SCALING[variant]
    stem, head = _channels(32, width), _channels(1280, width)
    shapes: Shapes = {spell("conv_stem") + ".weight": (stem, 3, 3, 3)}
    shapes |= norm_shapes(spell("bn1"), stem)
    for name, kernel, _, expansion, channels, out in _blocks(variant):
        block, mid, squeezed = f"{spell('blocks')}.{name}", channels * expansion, channels // 4
        norm = 1
        if expansion != 1:
            shapes[f"{block}.conv_pw.weight"] = (mid, channels, 1, 1)
            shapes |= norm_shapes(f"{block}.bn1", mid)
            norm = 2
        shapes[f"{block}.conv_dw.weight"] = (mid, 1, kernel, kernel)
        shapes |= norm_shapes(f"{block}.bn{norm}", mid)
        shapes[f"{block}.se.conv_reduce.weight"] = (squeezed, mid, 1, 1)
        shapes[f"{block}.se.conv_reduce.bias"] = (squeezed,)
        shapes[f"{block}.se.conv_expand.weight"] = (mid, squeezed, 1, 1)
        shapes[f"{block}.se.conv_expand.bias"] = (mid,)
        last = "conv_pw" if expansion == 1 else "conv_pwl"
        shapes[f"{block}.{last}.weight"] = (out, mid, 1, 1)
        shapes |= norm_shapes(f"{block}.bn{norm + 1}", out)
    shapes[spell("conv_head") + ".weight"] = (head, out, 1, 1)
    shapes |= norm_shapes(spell("bn2"), head)
    if num_classes:
        shapes[spell("classifier") + ".weight"] = (num_classes, head)
        shapes[spell("classifier") + ".bias"] = (num_classes,)
    return shapes


def norm(x: torch.Tensor, state: State, name: str, eps: float) -> torch.Tensor:
    return functional.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
        eps=eps,
    )


def conv(
    x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int, is_same: bool
) -> torch.Tensor:
    kernel = weight.shape[-1]
    if not is_same:
        return functional.conv2d(x, weight, None, stride, kernel // 2, 1, groups)
    pads = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, pads), weight, None, stride, 0, 1, groups)


def timm_efficientnet(
    x: torch.Tensor,
    state: State,
    variant: str,
    *,
    is_same: bool,
    eps: float,
    spell: Callable[[str], str] = str,
) -> torch.Tensor:
    """Returns the feature map [N,C,h,w] behind the head's activation."""
    x = conv(x, state[spell("conv_stem") + ".weight"], 2, 1, is_same)
    x = functional.silu(norm(x, state, spell("bn1"), eps))
    for name, _, stride, expansion, channels, out_channels in _blocks(variant):
        block, number, out = f"{spell('blocks')}.{name}", 1, x
        if expansion != 1:
            out = functional.conv2d(out, state[f"{block}.conv_pw.weight"])
            out = functional.silu(norm(out, state, f"{block}.bn1", eps))
            number = 2
        out = conv(out, state[f"{block}.conv_dw.weight"], stride, out.shape[1], is_same)
        out = functional.silu(norm(out, state, f"{block}.bn{number}", eps))
        gate = out.mean((2, 3), keepdim=True)
        for layer in ("conv_reduce", "conv_expand"):
            weight, bias = (state[f"{block}.se.{layer}.{part}"] for part in ("weight", "bias"))
            gate = functional.conv2d(gate, weight, bias)
            gate = functional.silu(gate) if layer == "conv_reduce" else torch.sigmoid(gate)
        last = "conv_pw" if expansion == 1 else "conv_pwl"
        out = functional.conv2d(out * gate, state[f"{block}.{last}.weight"])
        out = norm(out, state, f"{block}.bn{number + 1}", eps)
        x = x + out if stride == 1 and channels == out_channels else out
    x = functional.conv2d(x, state[spell("conv_head") + ".weight"])
    return functional.silu(norm(x, state, spell("bn2"), eps))


RESNET_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))


def resnet50_shapes(stem: str, stem_norm: str, stages: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {f"{stem}.weight": (64, 3, 7, 7), **norm_shapes(stem_norm, 64)}
    channels = 64
    for stage, (repeats, mid, _) in zip(stages, RESNET_STAGES, strict=True):
        for index in range(repeats):
            block = f"{stage}.{index}"
            for number, shape in enumerate(
                ((mid, channels, 1, 1), (mid, mid, 3, 3), (4 * mid, mid, 1, 1)), 1
            ):
                shapes[f"{block}.conv{number}.weight"] = shape
                shapes |= norm_shapes(f"{block}.bn{number}", shape[0])
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * mid, channels, 1, 1)
                shapes |= norm_shapes(f"{block}.downsample.1", 4 * mid)
            channels = 4 * mid
    return shapes


def resnet50(
    x: torch.Tensor, state: State, stem: str, stem_norm: str, stages: tuple[str, ...]
) -> torch.Tensor:
    """Returns the feature map [N,2048,h,w]."""
    x = functional.conv2d(x, state[f"{stem}.weight"], None, 2, 3)
    x = functional.max_pool2d(functional.relu(norm(x, state, stem_norm, 1e-5)), 3, 2, 1)
    for stage, (repeats, _, first_stride) in zip(stages, RESNET_STAGES, strict=True):
        for index in range(repeats):
            block, out = f"{stage}.{index}", x
            for number in (1, 2, 3):
                weight = state[f"{block}.conv{number}.weight"]
                stride = first_stride if (number, index) == (2, 0) else 1
                out = functional.conv2d(out, weight, None, stride, weight.shape[-1] // 2)
                out = norm(out, state, f"{block}.bn{number}", 1e-5)
                out = functional.relu(out) if number < 3 else out
            if index == 0:
                weight = state[f"{block}.downsample.0.weight"]
                x = functional.conv2d(x, weight, None, first_stride)
                x = norm(x, state, f"{block}.downsample.1", 1e-5)
            x = functional.relu(x + out)
    return x


def lstm_shapes(name: str, width: int, hidden: int, num_layers: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(num_layers):
        shapes[f"{name}.weight_ih_l{layer}"] = (4 * hidden, hidden if layer else width)
        shapes[f"{name}.weight_hh_l{layer}"] = (4 * hidden, hidden)
        shapes[f"{name}.bias_ih_l{layer}"] = (4 * hidden,)
        shapes[f"{name}.bias_hh_l{layer}"] = (4 * hidden,)
    return shapes


def lstm(x: torch.Tensor, state: State, name: str, num_layers: int) -> torch.Tensor:
    """Maps one clip [T,D] to hidden states [T,H], gate by gate."""
    for layer in range(num_layers):
        input_weight, hidden_weight, input_bias, hidden_bias = (
            state[f"{name}.{part}_l{layer}"]
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = cell = x.new_zeros(hidden_weight.shape[1])
        steps = []
        for step in x:
            gates = input_weight @ step + input_bias + hidden_weight @ hidden + hidden_bias
            enter, forget, update, leave = gates.chunk(4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(update)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            steps.append(hidden)
        x = torch.stack(steps)
    return x
