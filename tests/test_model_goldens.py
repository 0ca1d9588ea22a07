"""Forward passes against logits that timm and torchvision computed (goldens/)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from seeded_weights import seeded_images, seeded_state

from effnet_batch.models.architectures import build_model
from effnet_batch.models.fitting import fit
from effnet_batch.models.keys import layout_keys

GOLDENS = json.loads(Path(__file__).with_name("goldens").joinpath("model_logits.json").read_text())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small inputs on shared cores: a second thread costs more than it brings."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    "case", GOLDENS["cases"], ids=lambda case: f"{case['library']}-{case['original']}"
)
def test_logits_equal_the_original_library(case: dict[str, Any]) -> None:
    model = build_model(case["architecture"], padding=case["padding"], bn_eps=case["bn_eps"]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = layout_keys(model, case["library"])
    state = seeded_state({theirs[key]: shape for key, shape in shapes.items()})
    assert len(state) == case["num_keys"]
    model.load_state_dict(fit(state, case["architecture"], "seeded"), assign=True)
    with torch.no_grad():
        logits = model(seeded_images(2, case["image_size"]))
    expected = torch.tensor(case["logits"])
    difference = (logits[:, : expected.shape[1]] - expected).abs().max().item()
    assert difference / case["logits_std"] < 1e-4
