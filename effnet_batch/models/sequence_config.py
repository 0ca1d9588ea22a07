"""What a forgery classifier is built of, and the configurations that papers and entries used.

Sources: Jiang et al., *DeeperForensics-1.0* (CVPR 2020) for ResNet-50 + LSTM; the two networks of
128 channels between backbone and LSTM are those of C. Otto's thesis *Comparing the Performance of
Deepfake Detection Methods on Benchmark Datasets*; frame classifiers are what the DFDC's winners
used.
"""

import dataclasses
from typing import Any, Final

from effnet_batch.models.architectures import ARCHITECTURES
from effnet_batch.models.plain_values import from_plain
from effnet_batch.models.recipe import PADDINGS, SYMMETRIC

SILU: Final = "silu"
RELU: Final = "relu"
ACTIVATIONS: Final = (SILU, RELU)
MAX_WIDTH: Final = 8192
"""Most channels of any layer behind the backbone."""
MAX_LAYERS: Final = 8
"""Most LSTM layers, and most hidden layers of the head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Frame encoder, optional bottleneck, optional LSTM, head: one logit per time step.

    Everything the network's numbers depend on beside its tensors and the preprocessing.
    """

    architecture: str
    """The backbone, one of `architectures.ARCHITECTURES`."""
    padding: str = SYMMETRIC
    """One of `recipe.PADDINGS`."""
    bn_eps: float = 1e-5
    """Added to the variance by the backbone's batch normalisations; the bottleneck's is 1e-5."""
    bn_momentum: float = 0.1
    """Weight of a new batch in the backbone's running statistics; matters for training only."""
    is_stem_padded: bool = True
    """False: the first convolution has no padding at all (an EfficientNet only)."""
    attention_block: int | None = None
    """Index of the block whose output a learnt mask is multiplied into (an EfficientNet only)."""
    bottleneck_dim: int | None = None
    """Channels that a 1x1 convolution reduces the feature map to before it is pooled, if any."""
    bottleneck_activation: str = SILU
    """One of `ACTIVATIONS`."""
    lstm_layers: int = 0
    """0: a frame classifier; every frame is judged by itself."""
    lstm_dim: int = 512
    """Hidden units of one direction."""
    is_bidirectional: bool = False
    """A second LSTM reads each clip from its end; time steps then know what follows them."""
    head_dims: tuple[int, ...] = ()
    """Outputs of the linear layers before the last one."""
    head_activation: str = RELU
    """Between the linear layers: one of `ACTIVATIONS`."""
    dropout: float = 0.0
    """Of the inputs of the last linear layer; matters for training only."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("architecture", self.architecture, tuple(ARCHITECTURES)),
            ("padding", self.padding, PADDINGS),
            ("bottleneck_activation", self.bottleneck_activation, ACTIVATIONS),
            ("head_activation", self.head_activation, ACTIVATIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        dims = (self.bottleneck_dim or 1, self.lstm_dim, *self.head_dims)
        if self.bottleneck_dim == 0 or not all(1 <= dim <= MAX_WIDTH for dim in dims):
            raise ValueError(f"layers must have 1 to {MAX_WIDTH} channels, got {dims}")
        if not 0 <= self.lstm_layers <= MAX_LAYERS or len(self.head_dims) > MAX_LAYERS:
            raise ValueError(f"at most {MAX_LAYERS} layers each in LSTM and head are allowed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.bn_eps <= 0:
            raise ValueError(f"bn_eps must be positive, got {self.bn_eps}")
        is_changed = not self.is_stem_padded or self.attention_block is not None
        if is_changed and not self.architecture.startswith("efficientnet"):
            raise ValueError("only an EfficientNet can have an unpadded stem or an attention block")

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; `from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str = "sequence") -> "SequenceConfig":
        """Rebuilds what `to_dict` returned.

        Raises:
            WeightsError: a name is unknown or missing, or a value is out of range.
        """
        return from_plain(cls, values, where)


RESNET50_LSTM: Final = SequenceConfig(architecture="resnet50", lstm_layers=1)
"""The paper's: 2,048 pooled channels, LSTM of 512, one linear layer."""

THESIS_RESNET50_LSTM: Final = SequenceConfig(
    architecture="resnet50",
    bottleneck_dim=128,
    bottleneck_activation=RELU,
    lstm_layers=1,
    head_dims=(64,),
)
"""23,508,032 parameters of the backbone and 1,610,113 behind it."""

THESIS_EFFICIENTNET_B1_LSTM: Final = SequenceConfig(
    architecture="efficientnet_b1", bottleneck_dim=128, lstm_layers=2, head_dims=(64,)
)
"""10,126,241 parameters, 6,513,184 of them the backbone's."""

CONFIGURATIONS: Final = {
    "resnet50_lstm": RESNET50_LSTM,
    "thesis_resnet50_lstm": THESIS_RESNET50_LSTM,
    "thesis_efficientnet_b1_lstm": THESIS_EFFICIENTNET_B1_LSTM,
    **{name: SequenceConfig(architecture=name) for name in ARCHITECTURES},
}
"""Networks by name; a backbone's own name is a frame classifier."""
