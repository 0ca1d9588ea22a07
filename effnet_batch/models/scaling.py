"""Compound scaling: width, depth and resolution coefficients, and how they round.

Source: Tan and Le, *EfficientNet* (ICML 2019), equation 3 and section 3.3; the rounding is that of
the official TensorFlow code.
"""

import dataclasses
import math
from typing import Final

ALPHA: Final = 1.2
"""Depth grows by this factor per unit of phi."""
BETA: Final = 1.1
"""Width grows by this factor per unit of phi."""
GAMMA: Final = 1.15
"""Resolution grows by this factor per unit of phi."""
BASE_RESOLUTION: Final = 224
MAX_FACTOR: Final = 20.0
"""Four times the widest and deepest published network (L2); beyond, building takes for ever."""
MAX_RESOLUTION: Final = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """How far a baseline network is scaled along each of its dimensions."""

    width: float = 1.0
    """Factor on every layer's channels."""
    depth: float = 1.0
    """Factor on every stage's number of blocks."""
    resolution: int = BASE_RESOLUTION
    """Side of the square input, in pixels."""
    dropout: float = 0.2
    """Probability of dropping an element of the embedding before the classifier."""

    def __post_init__(self) -> None:
        if not (0 < self.width <= MAX_FACTOR and 0 < self.depth <= MAX_FACTOR):
            raise ValueError(
                f"width and depth must be above 0 and at most {MAX_FACTOR:g}, "
                f"got {self.width:g} and {self.depth:g}"
            )
        if not 1 <= self.resolution <= MAX_RESOLUTION:
            raise ValueError(
                f"resolution must be from 1 to {MAX_RESOLUTION}, got {self.resolution}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def compound_coefficients(
    phi: float,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    base_resolution: int = BASE_RESOLUTION,
    dropout: float = 0.2,
) -> Coefficients:
    """Returns depth alpha^phi, width beta^phi and resolution base * gamma^phi (to whole pixels).

    FLOPs grow by about (alpha * beta^2 * gamma^2)^phi, which is 2^phi for the paper's constants.
    The published B1-B7 use hand-rounded coefficients instead: see `efficientnet.VARIANTS`.
    """
    return Coefficients(
        width=beta**phi,
        depth=alpha**phi,
        resolution=max(1, round(base_resolution * gamma**phi)),
        dropout=dropout,
    )


def round_filters(num_channels: int, width: float, divisor: int = 8) -> int:
    """Scales a number of channels to the nearest multiple of ``divisor``, never 10 % below."""
    scaled = num_channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(num_blocks: int, depth: float) -> int:
    """Scales a stage's number of blocks, rounding up."""
    return math.ceil(depth * num_blocks)
