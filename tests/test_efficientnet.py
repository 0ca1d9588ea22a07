"""EfficientNet against published counts, the paddings' table and efficientnet_pytorch."""

import copy
import math
from collections.abc import Iterator

import efficientnet_pytorch
import pytest
import torch
from seeded_weights import seeded_images, seeded_state
from torch import nn

from effnet_batch.errors import ConfigError
from effnet_batch.models.architectures import ARCHITECTURES, build_model
from effnet_batch.models.backbone import StochasticDepth
from effnet_batch.models.cost import measure_cost
from effnet_batch.models.efficientnet import VARIANTS, EfficientNet
from effnet_batch.models.fitting import fit
from effnet_batch.models.padding import SamePadConv2d, make_conv, same_padding
from effnet_batch.models.scaling import (
    Coefficients,
    compound_coefficients,
    round_filters,
    round_repeats,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small inputs on shared cores: a second thread costs more than it brings."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


# variant: parameters, without classifier, GMACs, embedding, side of the last map, blocks, keys
PUBLISHED = {
    "b0": (5_288_548, 4_007_548, 0.386, 1280, 7, 16, 360),
    "b1": (7_794_184, 6_513_184, 0.687, 1280, 8, 23, 508),
    "b2": (9_109_994, 7_700_994, 0.994, 1408, 9, 23, 508),
    "b3": (12_233_232, 10_696_232, 1.827, 1536, 10, 26, 574),
    "b4": (19_341_616, 17_548_616, 4.394, 1792, 12, 32, 706),
    "b5": (30_389_784, 28_340_784, 10.266, 2048, 15, 39, 854),
    "b6": (43_040_704, 40_735_704, 19.068, 2304, 17, 45, 986),
    "b7": (66_347_960, 63_786_960, 37.746, 2560, 19, 55, 1200),
    "b8": (87_413_142, 84_596_142, 62.597, 2816, 21, 61, 1332),
    "l2": (480_309_308, 474_804_308, 475.7, 5504, 25, 88, 1914),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_counts_equal_the_published_ones(variant: str) -> None:
    parameters, backbone, gmacs, embedding_dim, side, num_blocks, num_keys = PUBLISHED[variant]
    cost = measure_cost(f"efficientnet_{variant}")
    assert cost.num_parameters == parameters
    assert cost.num_backbone_parameters == backbone
    assert round(cost.gmacs, 1 if variant == "l2" else 3) == gmacs
    assert cost.embedding_dim == embedding_dim
    assert cost.feature_sizes["head"] == (embedding_dim, side, side)
    with torch.device("meta"):
        model = build_model(f"efficientnet_{variant}")
    assert isinstance(model, EfficientNet)
    assert len(model.blocks) == num_blocks
    assert len(model.state_dict()) == num_keys


@pytest.mark.parametrize(
    ("variant", "millions"), [("0", 4.7), ("1", 5.4), ("2", 6.1), ("3", 8.2), ("4", 13.0)]
)
def test_lite_counts_equal_the_published_ones(variant: str, millions: float) -> None:
    cost = measure_cost(f"efficientnet_lite{variant}")
    assert round(cost.num_parameters / 1e6, 1) == millions
    assert cost.embedding_dim == 1280
    assert cost.feature_sizes["stem"][0] == 32


def test_stages_of_b4_at_its_resolution() -> None:
    assert list(measure_cost("efficientnet_b4").feature_sizes.items()) == [
        ("stem", (48, 190, 190)),
        ("stage1", (24, 190, 190)),
        ("stage2", (32, 95, 95)),
        ("stage3", (56, 48, 48)),
        ("stage4", (112, 24, 24)),
        ("stage5", (160, 24, 24)),
        ("stage6", (272, 12, 12)),
        ("stage7", (448, 12, 12)),
        ("head", (1792, 12, 12)),
    ]


def test_outputs_have_their_shapes_and_agree() -> None:
    model = build_model("efficientnet_b0", num_classes=7).eval()
    images = seeded_images(2, 65)
    with torch.no_grad():
        features, embeddings, logits = model.features(images), model.embed(images), model(images)
    assert features.shape == (2, 1280, 3, 3)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(embeddings, features.mean((2, 3)))
    torch.testing.assert_close(logits, embeddings @ model.fc.weight.T + model.fc.bias)


SAME_PADS = {
    ("b0", 224): [(0, 1), (0, 1), (1, 2), (0, 1), (1, 2)],
    ("b1", 240): [(0, 1), (0, 1), (1, 2), (0, 1), (2, 2)],
    ("b2", 260): [(0, 1), (0, 1), (2, 2), (1, 1), (2, 2)],
    ("b3", 300): [(0, 1), (0, 1), (2, 2), (0, 1), (2, 2)],
    ("b4", 380): [(0, 1), (0, 1), (2, 2), (0, 1), (1, 2)],
    ("b5", 456): [(0, 1), (0, 1), (1, 2), (1, 1), (2, 2)],
    ("b6", 528): [(0, 1), (0, 1), (1, 2), (0, 1), (2, 2)],
    ("b7", 600): [(0, 1), (0, 1), (1, 2), (1, 1), (1, 2)],
    ("b3", 256): [(0, 1), (0, 1), (1, 2), (0, 1), (1, 2)],
}


@pytest.mark.parametrize(("variant", "image_size"), SAME_PADS)
def test_same_pads_the_strided_convolutions_as_tensorflow(variant: str, image_size: int) -> None:
    with torch.device("meta"):
        model = build_model(f"efficientnet_{variant}", padding="same")
    size, pads = image_size, []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            assert isinstance(module, SamePadConv2d)
            left, right, top, bottom = module.pads(size, size)
            assert (left, right) == (top, bottom)
            pads.append((left, right))
            size = math.ceil(size / 2)
    assert pads == SAME_PADS[variant, image_size]


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [7, 8, 19, 30])
def test_paddings_agree_at_stride_1_and_on_the_output_size(kernel_size: int, size: int) -> None:
    assert same_padding(size, kernel_size, 1) == (kernel_size // 2, kernel_size // 2)
    for padding in ("symmetric", "same", "same_static"):
        conv = make_conv(1, 1, kernel_size, stride=2, padding=padding, native_size=size)
        assert conv(torch.zeros(1, 1, size, size)).shape[-1] == math.ceil(size / 2)


def test_unknown_padding_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="symmetric, same, same_static, got 'valid'"):
        build_model("efficientnet_b0", padding="valid")


@pytest.mark.parametrize(("variant", "image_size"), [("b0", 96), ("b1", 75), ("b2", 65)])
def test_forward_equals_efficientnet_pytorch(variant: str, image_size: int) -> None:
    """0.7.1 pads for the native resolution, whatever the input's size."""
    name = f"efficientnet_{variant}"
    original = efficientnet_pytorch.EfficientNet.from_name(name.replace("_", "-")).eval()
    state = seeded_state({key: tuple(v.shape) for key, v in original.state_dict().items()})
    missing, unexpected = original.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = seeded_images(2, image_size)
    fitted = fit(state, name, "seeded")
    with torch.no_grad():
        expected, expected_map = original(images), original.extract_features(images)

        def ours(padding: str, bn_eps: float) -> EfficientNet:
            with torch.device("meta"):
                model = build_model(name, padding=padding, bn_eps=bn_eps).eval()
            model.load_state_dict(fitted, assign=True)
            assert isinstance(model, EfficientNet)
            return model

        model = ours("same_static", 1e-3)
        assert relative(model.features(images), expected_map) < 1e-5
        assert relative(model(images), expected) < 1e-5
        # The test must be able to tell the paddings and the epsilons apart.
        assert relative(ours("symmetric", 1e-3)(images), expected) > 1e-3
        assert relative(ours("same_static", 1e-5)(images), expected) > 1e-4


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_training_step_reaches_every_parameter() -> None:
    model = build_model("efficientnet_b0", num_classes=3, drop_path_rate=0.0).train()
    model(seeded_images(2, 64)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_stochastic_depth_grows_linearly_and_only_on_residuals() -> None:
    model = build_model("efficientnet_b0", drop_path_rate=0.2)
    assert isinstance(model, EfficientNet)
    rates = [block.drop_path.rate for block in model.blocks]
    residuals = {2, 4, 6, 7, 9, 10, 12, 13, 14}
    assert rates == [0.2 * n / 16 if n in residuals else 0.0 for n in range(16)]


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25).train()
    out = layer(torch.ones(4000, 3, 2, 2)).flatten(1)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert (layer.eval()(torch.ones(9, 1)) == 1).all()


def test_initial_values_follow_the_paper() -> None:
    torch.manual_seed(0)
    model = build_model("efficientnet_b0")
    assert isinstance(model, EfficientNet)
    assert model.head_conv.weight.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.01)
    # A depthwise filter's fan-out is its own 25 values.
    assert model.blocks[11].dw_conv.weight.std().item() == pytest.approx(
        math.sqrt(2 / 25), rel=0.03
    )
    assert model.fc.weight.abs().max().item() == pytest.approx(1 / math.sqrt(1000), rel=0.001)
    assert not model.fc.bias.any()
    assert (model.head_bn.weight == 1).all()


def test_expansion_is_6_and_absent_in_the_first_stage() -> None:
    with torch.device("meta"):
        model = build_model("efficientnet_b1")
    assert isinstance(model, EfficientNet)
    ratios = [
        block.dw_conv.in_channels // (block.expand_conv.in_channels if block.has_expansion else 1)
        for block in model.blocks
        if block.has_expansion
    ]
    assert ratios == [6] * 21
    assert [block.has_expansion for block in model.blocks[:2]] == [False, False]


@pytest.mark.parametrize(
    ("channels", "width", "rounded"),
    [(32, 1.0, 32), (32, 1.1, 32), (24, 1.2, 32), (16, 1.4, 24), (320, 1.1, 352), (8, 0.1, 8)],
)
def test_filters_round_to_8_and_never_lose_a_tenth(
    channels: int, width: float, rounded: int
) -> None:
    assert round_filters(channels, width) == rounded


def test_phi_scales_every_dimension() -> None:
    assert compound_coefficients(0) == Coefficients()
    scaled = compound_coefficients(1)
    assert (scaled.depth, scaled.width, scaled.resolution) == (1.2, 1.1, 258)
    assert round_repeats(2, scaled.depth) == 3
    base = measure_cost("efficientnet_b0").gmacs
    doubled = measure_cost("efficientnet_b0", coefficients=scaled).gmacs
    assert 1.6 < doubled / base < 2.6


def test_coefficients_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0 and at most 20"):
        Coefficients(width=0)
    with pytest.raises(ValueError, match="dropout"):
        Coefficients(dropout=1.0)


def test_names_are_forgiving_and_unknown_ones_name_the_nearest() -> None:
    with torch.device("meta"):
        assert build_model("EfficientNet-B0").embedding_dim == 1280
    with pytest.raises(ConfigError, match="unknown model 'efficientnet_b9'; did you mean eff"):
        build_model("efficientnet_b9")


def test_other_input_channels_and_copies() -> None:
    model = build_model("efficientnet_b0", in_chans=1).eval()
    images = seeded_images(1, 64)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(images), model(images))
    assert set(VARIANTS) <= set(ARCHITECTURES)
