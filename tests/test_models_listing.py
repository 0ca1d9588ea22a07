import pytest

from effnet_batch.errors import ConfigError
from effnet_batch.models.listing import published_rows, scaled_facts
from effnet_batch.models.registry import REGISTRY


def test_every_published_entry_is_listed_with_what_its_numbers_depend_on():
    header, rows = published_rows()
    assert len(rows) == len(REGISTRY)
    row = dict(zip(header, published_rows("efficientnet_lite0")[1][-1], strict=True))
    assert row["model"] == "efficientnet_lite0"
    assert (row["padding"], row["eps"], row["mean"], row["std"]) == (
        "same",
        "0.001",
        "0.5,0.5,0.5",
        "0.5,0.5,0.5",
    )
    assert (row["kernel"], row["resize"], row["size"]) == ("bicubic", 256, 224)
    assert row["licence"] == "Apache-2.0"


def test_a_compound_coefficient_scales_all_three():
    facts = scaled_facts("efficientnet_b0", phi=1, is_measured=False)
    assert facts["width, depth"] == "1.100, 1.200"
    assert facts["resolution"] == 258
    wider = scaled_facts("resnet50", width=1.5, is_measured=False)
    assert (wider["resolution"], wider["embedding"]) == (224, 3072)


def test_the_baseline_costs_what_the_paper_says():
    facts = scaled_facts("efficientnet_b0", phi=0, is_measured=False)
    assert facts["parameters"] == 5_288_548
    assert facts["GMACs per image"] == "0.386"


def test_a_scaled_network_is_timed_on_this_machine():
    facts = scaled_facts("mobilenet_v2", width=0.25, resolution=64)
    assert float(str(facts["images/s here"])) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0.0}, "width and depth must be above 0 and at most 20, got 0 and 1"),
        ({"depth": float("nan")}, "got 1 and nan"),
        ({"resolution": 0}, "resolution must be from 1 to 4096, got 0"),
        ({"phi": 100.0}, "phi 100: width and depth must be"),
        ({"phi": 1e9}, "phi 1e"),
    ],
)
def test_coefficients_that_no_network_has_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        scaled_facts("efficientnet_b0", **settings, is_measured=False)


def test_contradicting_coefficients_are_refused():
    with pytest.raises(ConfigError, match="give it or them, not both"):
        scaled_facts("efficientnet_b0", phi=1, width=1.2)
    with pytest.raises(ConfigError, match="efficientnet_b1 is scaled already"):
        scaled_facts("efficientnet_b1", phi=1)
