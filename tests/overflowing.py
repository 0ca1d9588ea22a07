"""Models that make numbers of black pictures only."""

from typing import Final

import torch
from torch import nn

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.mobilenet import InvertedResidual, MobileNetV2

PREPROCESSING: Final = Preprocessing(
    image_size=64, resize_size=64, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)
"""Under which black is zero."""


def make_overflow(model: Backbone) -> None:
    """Makes a random MobileNetV2 overflow in float32 on every picture that is not black."""
    assert isinstance(model, MobileNetV2)
    with torch.no_grad():
        for block in model.layers:
            if isinstance(block, InvertedResidual):
                projection = block.conv[-2]
                assert isinstance(projection, nn.Conv2d)
                projection.weight.fill_(3e38)
