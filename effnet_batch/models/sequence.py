"""Frame encoder and sequence head: what judges a face track, one logit per time step."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.efficientnet import EfficientNet
from effnet_batch.models.sequence_config import SILU, SequenceConfig

Embeddings = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]

CLIPS_PER_CALL = 64
"""Clips that go through the LSTM together: enough to keep it busy, few enough to stay small."""


class Bottleneck(nn.Module):
    """1x1 convolution, batch normalisation, activation on a feature map."""

    def __init__(self, in_channels: int, out_channels: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = _activation(activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,in,h,w] to [N,out,h,w]."""
        out: torch.Tensor = self.act(self.bn(self.conv(x)))
        return out


class SpatialAttention(nn.Module):
    """Multiplies a feature map by a mask in 0..1 that a 1x1 convolution reads from it.

    Source: Bonettini et al., *Video Face Manipulation Detection Through Ensemble of CNNs* (ICPR
    2020), section III-B.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,C,h,w] to [N,C,h,w]."""
        return x * torch.sigmoid(self.conv(x))


class FrameEncoder(Backbone):
    """Backbone and bottleneck as one network, which any engine runs like a backbone.

    Its embeddings are what the sequence head takes; it has no classifier, so its logits are its
    embeddings.
    """

    def __init__(self, config: SequenceConfig) -> None:
        backbone = build_model(
            config.architecture,
            num_classes=0,
            padding=config.padding,
            bn_eps=config.bn_eps,
            bn_momentum=config.bn_momentum,
        )
        super().__init__(
            embedding_dim=config.bottleneck_dim or backbone.embedding_dim,
            num_classes=0,
            image_size=backbone.image_size,
            dropout=0.0,
        )
        if isinstance(backbone, EfficientNet):
            _alter(backbone, config)
        self.backbone = backbone
        self.bottleneck: nn.Module = nn.Identity()
        if config.bottleneck_dim is not None:
            self.bottleneck = Bottleneck(
                backbone.embedding_dim, config.bottleneck_dim, config.bottleneck_activation
            )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N,3,H,W] to the feature map [N,embedding_dim,h,w] behind the bottleneck."""
        features: torch.Tensor = self.bottleneck(self.backbone.features(x))
        return features

    def stage_layers(self) -> dict[str, nn.Module]:
        """Returns the backbone's stages, and the bottleneck where there is one."""
        layers = self.backbone.stage_layers()
        if isinstance(self.bottleneck, Bottleneck):
            layers["bottleneck"] = self.bottleneck
        return layers


def _alter(backbone: EfficientNet, config: SequenceConfig) -> None:
    """Gives an EfficientNet the unpadded stem or the attention of some published detectors."""
    if not config.is_stem_padded:
        stem = backbone.stem_conv
        backbone.stem_conv = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, stride=2, padding=0, bias=False
        )
    if config.attention_block is not None:
        if not 0 <= config.attention_block < len(backbone.blocks):
            raise ValueError(
                f"attention_block of {config.architecture} must be 0 to "
                f"{len(backbone.blocks) - 1}, got {config.attention_block}"
            )
        block = backbone.blocks[config.attention_block]
        channels = block.get_submodule("project_conv").out_channels
        assert isinstance(channels, int)
        backbone.blocks[config.attention_block] = nn.Sequential(block, SpatialAttention(channels))


class SequenceClassifier(nn.Module):
    """Judges clips of frames: `encode` once per frame, `classify` once per clip.

    Attributes:
        config: what it is built of.
        encoder: what an engine runs; `FrameEncoder.embedding_dim` is D below.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FrameEncoder(config)
        width = self.encoder.embedding_dim
        self.lstm: nn.LSTM | None = None
        if config.lstm_layers:
            self.lstm = nn.LSTM(
                width,
                config.lstm_dim,
                config.lstm_layers,
                batch_first=True,
                bidirectional=config.is_bidirectional,
            )
            width = config.lstm_dim * (2 if config.is_bidirectional else 1)
        layers: list[nn.Module] = []
        for dim in config.head_dims:
            layers += [nn.Linear(width, dim), _activation(config.head_activation)]
            width = dim
        self.head = nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(width, 1))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Maps normalised frames [N,3,S,S] to embeddings [N,D]."""
        return self.encoder.embed(frames)

    def classify(self, embeddings: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Maps clips of embeddings to a logit per time step; padding changes no number.

        Args:
            embeddings: [B,T,D]; what stands beyond a clip's length is not read.
            lengths: time steps of each clip, 1..T.

        Returns:
            float [B,T]; 0 beyond a clip's length. A positive logit speaks for a forgery.

        Raises:
            ValueError: a shape or length does not fit.
        """
        width = self.encoder.embedding_dim
        shape = tuple(embeddings.shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (len(lengths), width):
            raise ValueError(
                f"embeddings must be [{len(lengths)}, T, {width}] for {len(lengths)} clips, "
                f"got {list(shape)}"
            )
        if not lengths:
            return embeddings.new_zeros(embeddings.shape[:2])
        if min(lengths) < 1 or max(lengths) > embeddings.shape[1]:
            raise ValueError(f"lengths must be 1 to {embeddings.shape[1]}, got {list(lengths)}")
        steps = torch.tensor(list(lengths))
        is_real = torch.arange(embeddings.shape[1]) < steps[:, None]
        is_real = is_real.to(embeddings.device)
        # Where padding is NaN or stale memory, the linear layers would carry it along.
        hidden = embeddings.masked_fill(~is_real[..., None], 0)
        if self.lstm is not None and min(lengths) == embeddings.shape[1]:
            # Clips of one length need no packing, which costs a copy and many small products.
            hidden = self.lstm(hidden)[0]
        elif self.lstm is not None:
            packed = pack_padded_sequence(hidden, steps, batch_first=True, enforce_sorted=False)
            hidden, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=embeddings.shape[1]
            )
        logits: torch.Tensor = self.head(hidden).squeeze(-1)
        return logits.masked_fill(~is_real, 0)

    def classify_clips(self, clips: Sequence[Embeddings]) -> list[Logits]:
        """Judges clips of any lengths in evaluation; a clip's logits do not depend on the others.

        Args:
            clips: float32 [T,D] each, T at least 1; on the CPU, as engines return them. Those of
                like length go together.

        Returns:
            float32 [T] each, in the clips' order.

        Raises:
            ValueError: a clip is empty or of another width.
        """
        width = self.encoder.embedding_dim
        for clip in clips:
            if clip.ndim != 2 or clip.shape[1] != width or len(clip) == 0:
                raise ValueError(f"clips must be [1 or more, {width}], got {list(clip.shape)}")
        device = next(self.head.parameters()).device
        order = sorted(range(len(clips)), key=lambda number: len(clips[number]))
        logits: dict[int, Logits] = {}
        with torch.inference_mode():
            for start in range(0, len(clips), CLIPS_PER_CALL):
                numbers = order[start : start + CLIPS_PER_CALL]
                group = [torch.tensor(clips[number]) for number in numbers]
                lengths = [len(clip) for clip in group]
                padded = nn.utils.rnn.pad_sequence(group, batch_first=True)
                scored = self.classify(padded.to(device), lengths).cpu().numpy()
                for number, row, length in zip(numbers, scored, lengths, strict=True):
                    logits[number] = row[:length].copy()
        return [logits[number] for number in range(len(clips))]

    def forward(self, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Maps normalised frames [B,T,3,S,S] to logits [B,T]; for training.

        Only real frames are encoded, so padding is not in the statistics of a batch either.
        """
        steps = torch.tensor(list(lengths), device=frames.device)
        is_real = torch.arange(frames.shape[1], device=frames.device) < steps[:, None]
        encoded = self.encode(frames[is_real])
        embeddings = encoded.new_zeros((*frames.shape[:2], encoded.shape[1]))
        embeddings = embeddings.masked_scatter(is_real[..., None], encoded)
        return self.classify(embeddings, lengths)

    def move_head(self, device: torch.device | str) -> None:
        """Moves what judges clips to a device; the encoder stays where it is."""
        self.head.to(device)
        if self.lstm is not None:
            self.lstm.to(device)

    def take_backbone(self, backbone: Backbone) -> None:
        """Copies a trained backbone's layers; its classifier stays behind.

        Raises:
            ValueError: the backbone is of another network.
        """
        own = self.encoder.backbone
        state = {k: v for k, v in backbone.state_dict().items() if not k.startswith("fc.")}
        shapes = {key: value.shape for key, value in own.state_dict().items()}
        if {key: value.shape for key, value in state.items()} != shapes:
            raise ValueError(f"the backbone is no {self.config.architecture} of {self.config}")
        own.load_state_dict(state)

    def encoder_sha256(self) -> str:
        """Returns a digest of the encoder's tensors and of how it runs them.

        Classifiers with the same digest and the same preprocessing take the same embeddings.
        """
        config = self.config
        settings = (
            config.architecture,
            config.padding,
            config.bn_eps,
            config.is_stem_padded,
            config.attention_block,
            config.bottleneck_dim and config.bottleneck_activation,
        )
        digest = hashlib.sha256(repr(settings).encode())
        for key, value in self.encoder.state_dict().items():
            # The counter of batch normalisation changes no embedding.
            if value.is_floating_point():
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _activation(name: str) -> nn.Module:
    return nn.SiLU() if name == SILU else nn.ReLU()
