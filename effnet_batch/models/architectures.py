"""The networks by name, built without weights."""

import difflib
from typing import Final

from effnet_batch.errors import ConfigError
from effnet_batch.models import efficientnet, mobilenet, resnet
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.efficientnet import EfficientNet
from effnet_batch.models.mobilenet import MobileNetV2
from effnet_batch.models.recipe import SYMMETRIC
from effnet_batch.models.resnet import ResNet
from effnet_batch.models.scaling import Coefficients

ARCHITECTURES: Final = {
    **efficientnet.VARIANTS,
    **efficientnet.LITE_VARIANTS,
    **resnet.VARIANTS,
    **mobilenet.VARIANTS,
}
"""Every network's name and its published coefficients."""


def canonical_name(name: str) -> str:
    """Returns the architecture's name in `ARCHITECTURES`; case and hyphens do not matter.

    Raises:
        ConfigError: no such network; the message names the nearest.
    """
    canonical = name.lower().replace("-", "_")
    if canonical in ARCHITECTURES:
        return canonical
    near = difflib.get_close_matches(canonical, ARCHITECTURES, n=3) or list(ARCHITECTURES)
    raise ConfigError(f"unknown model {name!r}; did you mean {', '.join(near)}?")


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    padding: str = SYMMETRIC,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
    in_chans: int = 3,
    drop_path_rate: float = 0.2,
    image_size: int | None = None,
    coefficients: Coefficients | None = None,
) -> Backbone:
    """Builds a network with freshly initialised parameters, in training mode.

    Args:
        name: one of `ARCHITECTURES`.
        num_classes: number of logits.
        padding: one of `recipe.PADDINGS`; other networks than EfficientNet know ``symmetric``.
        bn_eps: added to the variance by every batch normalisation.
        bn_momentum: weight of a new batch in the running statistics.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of EfficientNet's last block; others have none.
        image_size: native side of the input in pixels, where not the coefficients' resolution.
        coefficients: scales the network instead of its published coefficients.

    Raises:
        ConfigError: no such network.
        ValueError: an argument is out of range, or the network does not know the padding.
    """
    name = canonical_name(name)
    chosen = coefficients or ARCHITECTURES[name]
    if name in resnet.VARIANTS or name in mobilenet.VARIANTS:
        network = ResNet if name in resnet.VARIANTS else MobileNetV2
        return network(
            chosen,
            num_classes=num_classes,
            padding=padding,
            bn_eps=bn_eps,
            bn_momentum=bn_momentum,
            in_chans=in_chans,
            image_size=image_size,
        )
    return EfficientNet(
        chosen,
        is_lite=name in efficientnet.LITE_VARIANTS,
        num_classes=num_classes,
        padding=padding,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        image_size=image_size,
    )
