"""The one model that every contestant runs, and the one engine of those that take ours."""

from effnet_batch import load_model
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import Engine, build_engine


def load_backbone(name: str) -> tuple[Backbone, Preprocessing]:
    """Returns a model with real weights where an installed package has them, else random ones."""
    model = load_model(name, weights=weights_of(name))
    return model, model.weights_info.preprocessing


def weights_of(name: str) -> str | None:
    """Returns the weights that can be had with no network; None means the model's own."""
    return None if "lite" in name else "random"


def load_engine(name: str, *, num_threads: int, num_streams: int) -> tuple[Engine, Preprocessing]:
    """Returns our default engine on a CPU: OpenVINO, fp32, 16 images a batch."""
    model, preprocessing = load_backbone(name)
    engine = build_engine(
        model, preprocessing, device="cpu", num_threads=num_threads, num_streams=num_streams
    )
    return engine, preprocessing
