"""A forgery classifier that runs in milliseconds, and what plain PyTorch makes of frames."""

from typing import Any

import numpy as np
import torch

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig

SEQUENCE = SequenceConfig(architecture="mobilenet_v2", bottleneck_dim=16, lstm_layers=1, lstm_dim=8)
PREPROCESSING = Preprocessing(image_size=64, resize_size=64, interpolation="bilinear")


def tiny_checkpoint(seed: int = 0, **changes: Any) -> tuple[SequenceClassifier, CheckpointInfo]:
    """Returns a random classifier whose logits differ from frame to frame, and its description."""
    values: dict[str, Any] = {
        "name": f"tiny-{seed}",
        "sequence": SEQUENCE,
        "preprocessing": PREPROCESSING,
        "sampling": {"strategy": "uniform", "num_frames": 8, "max_clip_frames": 3},
        "faces": {"detector": "none"},
        "aggregation": AggregationConfig(steps="last", clips="mean", tracks="max"),
        **changes,
    }
    torch.manual_seed(seed)
    model = SequenceClassifier(values["sequence"]).eval()
    with torch.no_grad():
        # Random features hardly differ between frames; a steep head makes them tell.
        model.head[-1].weight *= 60
    return model, CheckpointInfo(**values)


def plain_logits(
    model: SequenceClassifier, preprocessing: Preprocessing, clips: list[np.ndarray]
) -> list[np.ndarray]:
    """Returns a logit per frame of each clip, uint8 [T, S, S, 3], one clip at a time."""
    results = []
    for clip in clips:
        pixels = torch.tensor(clip).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(x)[:, None, None] for x in (preprocessing.mean, preprocessing.std)
        )
        with torch.inference_mode():
            embeddings = model.encode((pixels - mean) / std)
            assert model.lstm is not None
            hidden, _ = model.lstm(embeddings[None])
            results.append(model.head(hidden)[0, :, 0].numpy().astype(np.float64))
    return results


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
