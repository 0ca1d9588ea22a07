"""Distributed batch processing with EfficientNet on Ray.

The public face. Names are loaded on first use, so that `import effnet_batch` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effnet_batch.models.weights import load_model
    from effnet_batch.pipelines.embed import embed
    from effnet_batch.pipelines.reading import (
        embedding_matrix,
        iter_embeddings,
        read_embeddings,
        read_frames,
        read_scores,
    )
    from effnet_batch.pipelines.rescore import rescore
    from effnet_batch.pipelines.score import score

__version__ = "0.1.0"

_HOMES = {
    "embed": "effnet_batch.pipelines.embed",
    "embedding_matrix": "effnet_batch.pipelines.reading",
    "iter_embeddings": "effnet_batch.pipelines.reading",
    "load_model": "effnet_batch.models.weights",
    "read_embeddings": "effnet_batch.pipelines.reading",
    "read_frames": "effnet_batch.pipelines.reading",
    "read_scores": "effnet_batch.pipelines.reading",
    "rescore": "effnet_batch.pipelines.rescore",
    "score": "effnet_batch.pipelines.score",
}

__all__ = [
    "__version__",
    "embed",
    "embedding_matrix",
    "iter_embeddings",
    "load_model",
    "read_embeddings",
    "read_frames",
    "read_scores",
    "rescore",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'effnet_batch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
