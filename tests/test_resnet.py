"""ResNet-50 and MobileNetV2: published counts, and scaling along each dimension."""

import pytest
import torch
from seeded_weights import seeded_images

from effnet_batch.models.architectures import build_model
from effnet_batch.models.cost import measure_cost
from effnet_batch.models.scaling import Coefficients, compound_coefficients


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs", "embedding_dim"),
    [("resnet50", 25_557_032, 4.089, 2048), ("mobilenet_v2", 3_504_872, 0.301, 1280)],
)
def test_counts_equal_the_published_ones(
    name: str, parameters: int, gmacs: float, embedding_dim: int
) -> None:
    cost = measure_cost(name)
    assert cost.num_parameters == parameters
    assert round(cost.gmacs, 3) == gmacs
    assert cost.embedding_dim == embedding_dim
    assert list(cost.feature_sizes.values())[-1] == (embedding_dim, 7, 7)


def test_stages_of_resnet50() -> None:
    assert measure_cost("resnet50").feature_sizes == {
        "stem": (64, 112, 112),
        "stage1": (256, 56, 56),
        "stage2": (512, 28, 28),
        "stage3": (1024, 14, 14),
        "stage4": (2048, 7, 7),
    }


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_each_dimension_scales_as_it_should(name: str) -> None:
    base = measure_cost(name)
    wider = measure_cost(name, coefficients=Coefficients(width=2.0))
    deeper = measure_cost(name, coefficients=Coefficients(depth=2.0))
    larger = measure_cost(name, coefficients=Coefficients(resolution=448))
    assert wider.embedding_dim == 2 * base.embedding_dim
    assert 3.5 < wider.gmacs / base.gmacs < 4
    assert 1.7 < deeper.gmacs / base.gmacs < 2.3
    assert 3.9 < larger.gmacs / base.gmacs < 4.1
    assert larger.num_parameters == base.num_parameters
    compound = measure_cost(name, coefficients=compound_coefficients(1.5))
    assert base.gmacs < compound.gmacs < wider.gmacs


def test_a_narrow_mobilenet_keeps_its_head() -> None:
    cost = measure_cost("mobilenet_v2", coefficients=Coefficients(width=0.5))
    assert cost.embedding_dim == 1280
    assert cost.feature_sizes["stage7"][0] == 160


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_outputs_have_their_shapes_and_agree(name: str) -> None:
    model = build_model(name, num_classes=5).eval()
    images = seeded_images(2, 65)
    with torch.no_grad():
        features, embeddings, logits = model.features(images), model.embed(images), model(images)
    assert features.shape == (2, model.embedding_dim, 3, 3)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(embeddings, features.mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_other_paddings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be symmetric, got 'same'"):
        build_model(name, padding="same")
