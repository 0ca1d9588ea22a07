"""Weights made from nothing but the names and shapes of a state dict's keys.

The script that runs the original libraries and the tests that run ours both use this, so that only
the forward passes can differ. A value depends on its key's name in the published layout: a key
mapped to the wrong layer changes the logits.
"""

import hashlib

import numpy as np
import torch


def seeded_value(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns float32 values of a size that keeps activations near 1 through a deep network."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    # The legacy generator's stream is frozen for good, unlike the new one's.
    random = np.random.RandomState(seed)
    if key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif len(shape) == 1 and key.endswith("weight"):
        values = random.uniform(0.7, 1.3, shape)
    else:
        values = random.normal(0, 0.1, shape)
    return torch.from_numpy(values.astype(np.float32))


def seeded_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Returns a value for every key but the counters of batch normalisation."""
    return {
        key: seeded_value(key, shape)
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


def seeded_images(num_images: int, image_size: int) -> torch.Tensor:
    """Returns float32 [N,3,S,S] of unit variance."""
    random = np.random.RandomState(image_size)
    values = random.normal(0, 1, (num_images, 3, image_size, image_size))
    return torch.from_numpy(values.astype(np.float32))
