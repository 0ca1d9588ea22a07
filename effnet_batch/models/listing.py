"""What `effnet-batch models` and `checkpoints` print: what is published, what a network costs."""

import os

from effnet_batch.errors import ConfigError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import ARCHITECTURES, build_model, canonical_name
from effnet_batch.models.cost import ModelCost, measure_cost
from effnet_batch.models.engine import build_engine
from effnet_batch.models.forgery_registry import FORGERY_REGISTRY
from effnet_batch.models.measure import measure
from effnet_batch.models.registry import DEFAULTS, REGISTRY
from effnet_batch.models.scaling import BASE_RESOLUTION, Coefficients, compound_coefficients

_HEADER = (
    "model", "weights", "padding", "eps", "mean", "std", "kernel", "resize", "size", "top-1",
    "licence", "sha256",
)  # fmt: skip


def published_rows(model: str | None = None) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Returns the table of published weights: its header, and a row each.

    The weights that a model takes by default are marked with a star.

    Args:
        model: only this one's.

    Raises:
        ConfigError: no such model.
    """
    wanted = None if model is None else canonical_name(model)
    rows: list[tuple[object, ...]] = []
    for entry in REGISTRY.values():
        if wanted not in (None, entry.architecture):
            continue
        recipe = entry.recipe
        star = "*" if DEFAULTS.get(entry.architecture) == entry.name else ""
        rows.append(
            (
                entry.architecture,
                entry.name + star,
                recipe.padding,
                f"{recipe.bn_eps:g}",
                _triple(recipe.mean),
                _triple(recipe.std),
                recipe.interpolation,
                recipe.resize_size,
                recipe.image_size,
                "" if entry.top1 is None else f"{entry.top1:.1f}",
                entry.licence,
                entry.sha256 or "not pinned",
            )
        )
    return _HEADER, rows


_CHECKPOINT_HEADER = (
    "checkpoint", "network", "trained on", "frames", "faces", "score", "published AUC", "licence",
    "get it", "sha256",
)  # fmt: skip


def checkpoint_rows() -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Returns the table of published forgery checkpoints: its header, and a row each.

    Where ``get it`` begins with *by hand*, the licence or the host wants a person to fetch the
    file; others are fetched by name.
    """
    rows: list[tuple[object, ...]] = []
    for entry in FORGERY_REGISTRY.values():
        protocol = entry.protocol
        sampling, faces, way = protocol.sampling, protocol.faces, protocol.aggregation
        parameters = [str(v) for k, v in sampling.items() if k not in _NOT_SHOWN and v is not None]
        rows.append(
            (
                entry.name,
                entry.layout,
                entry.trained_on,
                " ".join([sampling["strategy"], *parameters]),
                f"{faces['detector']} x{faces['margin']:.2f}, {faces['which']}",
                f"{way.steps}, {way.tracks}",
                "; ".join(f"{one.dataset} {one.auc:.4f} {one.level}" for one in entry.results),
                entry.licence,
                entry.url or f"by hand: {entry.file} from {entry.page}",
                entry.sha256 or "",
            )
        )
    return _CHECKPOINT_HEADER, rows


_NOT_SHOWN = ("strategy", "max_clip_frames")


def scaled_facts(
    model: str,
    *,
    phi: float | None = None,
    width: float | None = None,
    depth: float | None = None,
    resolution: int | None = None,
    is_measured: bool = True,
) -> dict[str, object]:
    """Returns what a scaled network costs, for people, by name.

    Args:
        model: baseline network.
        phi: compound coefficient; excludes the other three.
        width: factor on the channels.
        depth: factor on the blocks.
        resolution: side of the input in pixels.
        is_measured: also time it on this machine, with random weights.

    Raises:
        ConfigError: no such model, or the coefficients contradict each other.
    """
    coefficients = _coefficients(model, phi, width, depth, resolution)
    cost = measure_cost(model, coefficients=coefficients)
    facts: dict[str, object] = {
        "model": cost.name,
        "width, depth": f"{coefficients.width:.3f}, {coefficients.depth:.3f}",
        "resolution": cost.image_size,
        "parameters": cost.num_parameters,
        "  of the backbone": cost.num_backbone_parameters,
        "GMACs per image": f"{cost.gmacs:.3f}",
        "embedding": cost.embedding_dim,
    }
    for stage, (channels, height, wide) in cost.feature_sizes.items():
        facts[f"  {stage}"] = f"{channels} x {height} x {wide}"
    if is_measured:
        facts |= _speed(cost)
    return facts


def _coefficients(
    model: str,
    phi: float | None,
    width: float | None,
    depth: float | None,
    resolution: int | None,
) -> Coefficients:
    if phi is None:
        native = ARCHITECTURES[canonical_name(model)]
        try:
            return Coefficients(
                width=native.width if width is None else width,
                depth=native.depth if depth is None else depth,
                resolution=native.resolution if resolution is None else resolution,
                dropout=native.dropout,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if not width == depth == resolution is None:
        raise ConfigError("phi sets width, depth and resolution; give it or them, not both")
    base = ARCHITECTURES[canonical_name(model)]
    if (base.width, base.depth, base.resolution) != (1.0, 1.0, BASE_RESOLUTION):
        raise ConfigError(
            f"phi scales a baseline such as efficientnet_b0; {model} is scaled already"
        )
    try:
        return compound_coefficients(phi)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"phi {phi:g}: {error}") from error


def _speed(cost: ModelCost) -> dict[str, object]:
    network = build_model(cost.name, coefficients=cost.coefficients).eval()
    side = cost.image_size
    engine = build_engine(
        network,
        Preprocessing(image_size=side, resize_size=side),
        num_streams=os.cpu_count() or 1,
    )
    found = measure(engine)
    return {
        "engine": f"{engine.name} {engine.precision} on {engine.device}, batch {engine.batch_size}",
        "images/s here": f"{found.images_per_second:.1f}",
    }


def _triple(values: tuple[float, float, float]) -> str:
    return ",".join(f"{value:g}" for value in values)
