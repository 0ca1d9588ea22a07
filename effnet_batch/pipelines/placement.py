"""Where the actors of a job run, with every ``auto`` resolved."""

import dataclasses
import math
from typing import Final

from effnet_batch.capacity import num_beside, num_fitting
from effnet_batch.config import ActorSettings, ClusterSettings, ModelActorSettings
from effnet_batch.errors import ConfigError
from effnet_batch.models.engine import EngineChoice

FUSED: Final = "fused"
SPLIT: Final = "split"

_CPUS_PER_CPU_ACTOR: Final = 1
"""One process per core: lanes of one process wait for each other's interpreter lock."""
_MAX_CPUS_BESIDE_FUSED_GPU: Final = 4
"""Beyond this, the lanes of one process wait for each other more than they decode."""
_CPUS_BESIDE_GPU: Final = 0.25
"""What an actor that runs a GPU asks of its node's CPUs by default: decoders need the others."""
_SPARE_LANES: Final = 2
"""Videos that wait for a CPU, so that none waits for a video."""
_MOST_LANES: Final = 64
"""Threads of an actor, which wait for each other's interpreter lock."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the work runs, with every ``auto`` resolved."""

    mode: str
    """``fused`` or ``split``."""
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float

    @property
    def num_lanes(self) -> int:
        """Threads of a fused actor that decode and run the model."""
        return max(1, int(self.cpus_per_actor))

    def bounded(self, num_units: int) -> "Placement":
        """Returns the placement with no more actors than there are units."""
        return dataclasses.replace(self, num_actors=min(self.num_actors, num_units))


def resolve_placement(
    settings: ActorSettings,
    engine: EngineChoice,
    nodes: list[tuple[float, float]],
    *,
    decodes_on_gpu: bool = False,
) -> Placement:
    """Fits the actors to the cluster.

    Args:
        settings: what the user asked for; a job that only runs fused has no ``placement``.
        engine: what runs the model; ``cuda`` needs GPUs.
        nodes: CPUs and GPUs of every node.
        decodes_on_gpu: the actors that run the model decode as well.

    Raises:
        ConfigError: the actors do not fit, or leave nothing to decode with; says what is missing.
    """
    uses_gpu = engine.device == "cuda"
    gpus = 0.0
    if uses_gpu:
        assert isinstance(settings, ModelActorSettings), "what runs no model uses no GPU"
        gpus = _gpus_per_actor(settings)
    cpus = settings.cpus_per_actor
    split_cpus = cpus or (_CPUS_BESIDE_GPU if uses_gpu else 1.0)
    mode = settings.placement if isinstance(settings, ClusterSettings) else FUSED
    if decodes_on_gpu and mode == SPLIT:
        raise ConfigError(
            "--gpu-decode decodes beside the model, and --placement split apart from it; leave one "
            "of them out"
        )
    if decodes_on_gpu:
        mode = FUSED
    if mode == "auto":
        can_split = uses_gpu and num_beside(nodes, split_cpus, gpus, spare=1.0) > 0
        mode = SPLIT if can_split else FUSED
    if mode == SPLIT:
        cpus = split_cpus
    elif cpus is None:
        largest = max((cpus for cpus, node_gpus in nodes if node_gpus >= gpus), default=0.0)
        most = _MAX_CPUS_BESIDE_FUSED_GPU if uses_gpu else _CPUS_PER_CPU_ACTOR
        cpus = max(1.0, min(most, largest // 1))
    elif cpus < 1:
        raise ConfigError(
            f"a fused actor decodes beside the model and needs a whole CPU, got {cpus:g}; raise "
            "--cpus-per-actor, or use --placement split"
        )
    fitting = sum(num_fitting(node, cpus, gpus) for node in nodes)
    room = num_beside(nodes, cpus, gpus, spare=1.0) if mode == SPLIT else fitting
    wanted = settings.num_actors
    if wanted is None:
        # On CPUs alone, decoding takes about as many as the model.
        wanted = max(1, room if uses_gpu or mode == FUSED else min(room, fitting // 2))
    if wanted > room:
        cluster = ", ".join(f"{c:g} CPUs and {g:g} GPUs" for c, g in nodes)
        asked = f"{wanted} model actor(s) of {cpus:g} CPUs and {gpus:g} GPUs"
        if wanted > fitting:
            raise ConfigError(
                f"{asked} do not fit: the cluster has room for {fitting} (nodes: {cluster}); lower "
                "--num-actors, --cpus-per-actor or --gpus-per-actor, or add nodes"
            )
        raise ConfigError(
            f"{asked} may leave no whole CPU of any node for decoding: split placement has room "
            f"for {room} (nodes: {cluster}); lower --num-actors or --cpus-per-actor, use "
            "--placement fused, or add CPUs"
        )
    return Placement(mode, wanted, cpus, gpus)


def num_decoding_lanes(placement: Placement, nodes: list[tuple[float, float]]) -> int:
    """Returns how many videos an actor of a split graph has decoded at once.

    Args:
        placement: bounded; split.
        nodes: CPUs and GPUs of every node.
    """
    cpus = sum(cpus for cpus, _ in nodes) - placement.num_actors * placement.cpus_per_actor
    return min(_MOST_LANES, math.ceil(cpus / placement.num_actors) + _SPARE_LANES)


def _gpus_per_actor(settings: ModelActorSettings) -> float:
    """Returns the GPUs of one actor: a share of one, or whole ones, as Ray lends them."""
    gpus = 1.0 if settings.gpus_per_actor is None else settings.gpus_per_actor
    if gpus > 1 and gpus % 1:
        raise ConfigError(f"--gpus-per-actor above 1 must be a whole number, got {gpus:g}")
    return gpus
