"""Published forgery checkpoints: exact keys and shapes in, the original's logits out.

The originals run here beside ours: lukemelas' library where the published network is built on it,
plain functions over the published keys elsewhere.
"""

from collections.abc import Iterator
from pathlib import Path

import efficientnet_pytorch
import numpy as np
import plain_forward as plain
import pytest
import torch
from seeded_weights import seeded_images, seeded_state, seeded_value
from torch import nn
from torch.nn import functional

from effnet_batch.errors import WeightsError
from effnet_batch.models.checkpoints import Checkpoint, load_checkpoint

SIZES = (75, 76)
"""Odd sides tell the paddings apart; at odd sides an unpadded stem equals a padded one."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(num_threads)


def loaded(folder: Path, file: object) -> Checkpoint:
    path = folder / "published.pth"
    torch.save(file, path)
    return load_checkpoint(str(path))


def our_logits(checkpoint: Checkpoint, frames: torch.Tensor) -> torch.Tensor:
    """Judges the frames as one clip, in float64: random weights blow float32's rounding up."""
    embeddings = checkpoint.model.double().encode(frames.double())
    return checkpoint.model.classify(embeddings[None], [len(frames)])[0]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.dtype == torch.float64
    assert theirs.std() > 1e-3, "logits that hardly differ prove nothing"
    # The files and our tensors are float32, so a head that was rebuilt is off by its rounding.
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def with_counters(state: dict[str, torch.Tensor], shapes: plain.Shapes) -> dict[str, torch.Tensor]:
    counters = {key: torch.tensor(7) for key, shape in shapes.items() if shape == ()}
    return state | counters


# ----------------------------------------------------------- selimsef: timm's B7 and a linear layer


def test_selimsef(tmp_path: Path) -> None:
    shapes = {
        f"encoder.{key}": shape
        for key, shape in plain.timm_efficientnet_shapes("b7", num_classes=1000).items()
    }
    # The reference counts of EfficientNet-B7, so that the table above is the real network.
    assert len(shapes) == 1200
    shapes |= {"fc.weight": (1, 2560), "fc.bias": (1,)}
    state = seeded_state(shapes)
    file = {
        "epoch": 36,
        "bce_best": np.float64(0.16),
        "state_dict": {f"module.{k}": v for k, v in with_counters(state, shapes).items()},
    }
    checkpoint = loaded(tmp_path, file)
    assert checkpoint.layout == "selimsef_efficientnet_b7"
    frames = seeded_images(2, 64)
    reads = plain.Reads({key: value.double() for key, value in state.items()})
    pixels = frames.double()
    features = plain.timm_efficientnet(
        pixels, reads, "b7", is_same=True, eps=1e-3, spell="encoder.{}".format
    )
    pooled = features.mean((2, 3))
    expected = functional.linear(pooled, reads["fc.weight"], reads["fc.bias"]).squeeze(1)
    unread = set(state) - reads.read
    assert unread == {"encoder.classifier.weight", "encoder.classifier.bias"}
    assert_same(our_logits(checkpoint, frames), expected)
    info = checkpoint.info
    assert (info.preprocessing.image_size, info.preprocessing.resize_mode) == (380, "pad")
    assert info.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (info.aggregation.steps, info.aggregation.tracks) == ("confident", "pooled")


# --------------------------------------------------------- detectors on lukemelas' EfficientNet-B4


class Detector(nn.Module):
    """The publishers' modules by the names that their state dicts show.

    Args:
        image_size: what the library computes its padding for; None pads each input by its size.
    """

    def __init__(self, kind: str, image_size: int | None) -> None:
        super().__init__()
        self.kind = kind
        net = efficientnet_pytorch.EfficientNet.from_name(
            "efficientnet-b4", image_size=image_size, num_classes=2
        )
        if kind == "sbi":
            self.net = net
            return
        if kind == "deepfakebench":
            self.backbone = nn.Module()
            net._conv_stem = nn.Conv2d(3, 48, 3, 2, bias=False)
            net._fc = nn.Identity()
            self.backbone.efficientnet = net
            self.backbone.last_layer = nn.Linear(1792, 2)
            return
        del net._fc
        if "att" in kind:
            net.attconv = nn.Conv2d(56, 1, 1)
        extractor = self
        if kind.endswith("st"):
            extractor = self.feat_ext = nn.Module()
            self.classifier = nn.Sequential(nn.BatchNorm1d(1792), nn.Linear(1792, 1))
        extractor.efficientnet = net
        if extractor is not self or kind in ("b4", "b4_att"):
            extractor.classifier = nn.Linear(1792, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "sbi":
            return self.net(x)
        if self.kind == "deepfakebench":
            pooled = self.backbone.efficientnet.extract_features(x).mean((2, 3))
            return self.backbone.last_layer(pooled)
        net = (self.feat_ext if self.kind.endswith("st") else self).efficientnet
        if "att" not in self.kind:
            return self.classifier(net.extract_features(x).mean((2, 3)))
        x = net._swish(net._bn0(net._conv_stem(x)))
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index == 9:
                x = x * torch.sigmoid(net.attconv(x))
        x = net._swish(net._bn1(net._conv_head(x)))
        return self.classifier(x.mean((2, 3)))


def published(kind: str, image_size: int | None = 380) -> Detector:
    with torch.device("meta"):
        detector = Detector(kind, image_size)
    state = {
        key: seeded_value(key, tuple(value.shape)) if value.is_floating_point() else torch.tensor(7)
        for key, value in detector.state_dict().items()
    }
    detector.load_state_dict(state, assign=True)
    return detector.eval()


# the publisher's network, the library's image size that pads as the publisher's does, our layout
LUKEMELAS_CASES = {
    "b4": (None, "polimi_efficientnet_b4"),
    "b4_att": (None, "polimi_efficientnet_b4_att"),
    "b4_st": (None, "polimi_efficientnet_b4_st"),
    "b4_att_st": (None, "polimi_efficientnet_b4_att_st"),
    "sbi": (380, "sbi_efficientnet_b4"),
    "deepfakebench": (380, "deepfakebench_efficientnet_b4"),
}


@pytest.mark.parametrize("kind", LUKEMELAS_CASES)
def test_detectors_on_lukemelas(kind: str, tmp_path: Path) -> None:
    image_size, layout = LUKEMELAS_CASES[kind]
    detector = published(kind, image_size)
    state = detector.state_dict()
    file = {"model": state, "epoch": 3} if kind == "sbi" else state
    checkpoint = loaded(tmp_path, file)
    assert checkpoint.layout == layout
    detector.double()
    for size in SIZES:
        frames = seeded_images(2, size)
        theirs = detector(frames.double())
        ours = our_logits(checkpoint, frames)
        if theirs.shape[1] == 2:
            assert_same(ours, theirs[:, 1] - theirs[:, 0])
            torch.testing.assert_close(torch.sigmoid(ours), theirs.softmax(1)[:, 1])
        else:
            assert_same(ours, theirs.squeeze(1))


# ------------------------------------------------------------------------ the thesis' LSTM networks

B1_SPELLING = {
    "conv_stem": "b1.0",
    "bn1": "b1.1",
    "blocks": "b1.3",
    "conv_head": "b1.4",
    "bn2": "b1.5",
}
HEAD_SHAPES: plain.Shapes = {
    "fc1.weight": (64, 512),
    "fc1.bias": (64,),
    "fc2.weight": (1, 64),
    "fc2.bias": (1,),
}
RESNET_NAMES = ("resnet.0", "resnet.1", ("resnet.4", "resnet.5", "resnet.6", "resnet.7"))


def b1_lstm_shapes() -> plain.Shapes:
    shapes = plain.timm_efficientnet_shapes("b1", B1_SPELLING.__getitem__)
    shapes |= {"b1.7.weight": (128, 1280, 1, 1), **plain.norm_shapes("b1.8", 128)}
    return shapes | plain.lstm_shapes("lstm", 128, 512, 2) | HEAD_SHAPES


def resnet_lstm_shapes() -> plain.Shapes:
    shapes = plain.resnet50_shapes(*RESNET_NAMES)
    shapes |= {"resnet.8.weight": (128, 2048, 1, 1), **plain.norm_shapes("resnet.9", 128)}
    return shapes | plain.lstm_shapes("lstm", 128, 512, 1) | HEAD_SHAPES


def num_parameters(shapes: plain.Shapes) -> int:
    return sum(
        int(np.prod(shape)) for key, shape in shapes.items() if shape and "running" not in key
    )


@pytest.mark.parametrize("kind", ["b1", "resnet"])
def test_thesis_networks(kind: str, tmp_path: Path) -> None:
    is_b1 = kind == "b1"
    shapes = b1_lstm_shapes() if is_b1 else resnet_lstm_shapes()
    assert num_parameters(shapes) == (10_126_241 if is_b1 else 23_508_032 + 1_610_113)
    state = seeded_state(shapes)
    checkpoint = loaded(tmp_path, with_counters(state, shapes))
    assert checkpoint.layout == f"thesis_{'efficientnet_b1' if is_b1 else 'resnet50'}_lstm"
    frames = seeded_images(4, 64)
    reads = plain.Reads({key: value.double() for key, value in state.items()})
    pixels = frames.double()
    if is_b1:
        features = plain.timm_efficientnet(
            pixels, reads, "b1", is_same=False, eps=1e-5, spell=B1_SPELLING.__getitem__
        )
        reduced = functional.conv2d(features, reads["b1.7.weight"])
        reduced = functional.silu(plain.norm(reduced, reads, "b1.8", 1e-5))
    else:
        features = plain.resnet50(pixels, reads, *RESNET_NAMES)
        reduced = functional.conv2d(features, reads["resnet.8.weight"])
        reduced = functional.relu(plain.norm(reduced, reads, "resnet.9", 1e-5))
    hidden = plain.lstm(reduced.mean((2, 3)), reads, "lstm", 2 if is_b1 else 1)
    out = functional.relu(functional.linear(hidden, reads["fc1.weight"], reads["fc1.bias"]))
    expected = functional.linear(out, reads["fc2.weight"], reads["fc2.bias"]).squeeze(1)
    assert reads.read == set(state)
    assert_same(our_logits(checkpoint, frames), expected)
    assert checkpoint.info.sampling["num_frames"] == 20
    assert checkpoint.info.aggregation.steps == "last"


# ---------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def b1_state() -> dict[str, torch.Tensor]:
    return {key: torch.zeros(shape) for key, shape in b1_lstm_shapes().items() if shape}


def test_a_missing_and_a_left_over_key_are_named(
    b1_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(b1_state)
    del state["b1.3.2.1.conv_pwl.weight"]
    state["fc3.weight"] = torch.zeros(1, 1)
    with pytest.raises(WeightsError, match=r"missing \(b1.3.2.1.conv_pwl.weight\).*fc3.weight"):
        loaded(tmp_path, state)


def test_another_shape_is_named(b1_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = b1_state | {"fc1.weight": torch.zeros(32, 512)}
    with pytest.raises(WeightsError, match=r"head.0.weight has shape \[32, 512\], expected"):
        loaded(tmp_path, state)


def test_numbers_must_be_finite(b1_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = b1_state | {"fc2.bias": torch.tensor([float("nan")])}
    with pytest.raises(WeightsError, match=r"not finite in head.3.bias"):
        loaded(tmp_path, state)


@pytest.mark.parametrize("kind", ["sbi", "b4_st"])
def test_a_head_of_another_shape_is_refused(kind: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in Detector(kind, 380).state_dict().items()}
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    key = "net._fc.weight" if kind == "sbi" else "classifier.1.weight"
    state[key] = torch.zeros(3, 1792)
    with pytest.raises(WeightsError, match=r"its last layer has shape \[3, 1792\]"):
        loaded(tmp_path, state)
    if kind == "b4_st":
        state |= {key: torch.zeros(1, 1792), "classifier.0.running_var": torch.ones(7)}
        with pytest.raises(WeightsError, match=r"classifier.0 does not have 1792 channels"):
            loaded(tmp_path, state)


def test_an_unknown_layout_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no known layout.*sbi_efficientnet_b4.*first keys: w"):
        loaded(tmp_path, {"w": torch.zeros(1)})
