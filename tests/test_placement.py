"""Where the actors of the embedding job run, and that something is left to decode with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from photographs import small_jpegs

from effnet_batch import embed, embedding_matrix, read_embeddings
from effnet_batch.config import ClusterSettings, EmbedConfig
from effnet_batch.errors import ConfigError
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.embed_workers import EmbedTask, EncodeWorker
from effnet_batch.pipelines.placement import Placement, resolve_placement
from effnet_batch.pipelines.session import cluster_cpus_and_gpus, ray_session

CPU = EngineChoice("torch", "cpu", "fp32", 16)
GPU = EngineChoice("torch", "cuda", "bf16", 256)


def nodes(*sizes: tuple[int, int]) -> list[tuple[float, float]]:
    """Returns CPUs and GPUs of nodes as Ray gives them."""
    return [(float(cpus), float(gpus)) for cpus, gpus in sizes]


@pytest.mark.parametrize(
    ("engine", "sizes", "settings", "expected"),
    [
        # CPUs alone: fused, an actor for every core.
        (CPU, [(1, 0)], {}, Placement("fused", 1, 1, 0)),
        (CPU, [(2, 0)], {}, Placement("fused", 2, 1, 0)),
        (CPU, [(8, 0)], {}, Placement("fused", 8, 1, 0)),
        (CPU, [(6, 0), (3, 0)], {}, Placement("fused", 9, 1, 0)),
        (CPU, [(8, 0)], {"cpus_per_actor": 2.0}, Placement("fused", 4, 2, 0)),
        (CPU, [(8, 0)], {"num_actors": 1}, Placement("fused", 1, 1, 0)),
        # GPUs that the engine does not use change nothing.
        (CPU, [(8, 2)], {"gpus_per_actor": 1.0}, Placement("fused", 8, 1, 0)),
        # Split on CPUs: half of them decode, and never none.
        (CPU, [(2, 0)], {"placement": "split"}, Placement("split", 1, 1, 0)),
        (CPU, [(8, 0)], {"placement": "split"}, Placement("split", 4, 1, 0)),
        (CPU, [(1, 0), (1, 0)], {"placement": "split"}, Placement("split", 1, 1, 0)),
        (CPU, [(8, 0)], {"placement": "split", "num_actors": 7}, Placement("split", 7, 1, 0)),
        (
            CPU,
            [(8, 0)],
            {"placement": "split", "cpus_per_actor": 3.0},
            Placement("split", 1, 3, 0),
        ),
        # A tenth of ten is ten times one tenth, for all that floats say.
        (
            CPU,
            [(2, 0)],
            {"placement": "split", "cpus_per_actor": 0.1, "num_actors": 10},
            Placement("split", 10, 0.1, 0),
        ),
        # A GPU: split, one actor for each, which takes next to nothing of the CPUs.
        (GPU, [(8, 8)], {}, Placement("split", 8, 0.25, 1)),
        (GPU, [(16, 1)], {}, Placement("split", 1, 0.25, 1)),
        (GPU, [(2, 1)], {}, Placement("split", 1, 0.25, 1)),
        (GPU, [(2, 8)], {}, Placement("split", 4, 0.25, 1)),
        # One CPU cannot both feed the actor and decode; fused does both in one thread.
        (GPU, [(1, 1)], {}, Placement("fused", 1, 1, 1)),
        (GPU, [(8, 1)], {"placement": "fused"}, Placement("fused", 1, 4, 1)),
        (GPU, [(8, 2)], {"cpus_per_actor": 2.0}, Placement("split", 2, 2, 1)),
        (GPU, [(8, 2)], {"gpus_per_actor": 0.5}, Placement("split", 4, 0.25, 0.5)),
        # Two GPUs hold one share of 0.6 each, though three would add up to less than two.
        (GPU, [(8, 2)], {"gpus_per_actor": 0.6}, Placement("split", 2, 0.25, 0.6)),
        (GPU, [(8, 4)], {"gpus_per_actor": 2.0}, Placement("split", 2, 0.25, 2)),
        # Mixed clusters: a node without a GPU decodes, however full the others are.
        (GPU, [(1, 1), (4, 0)], {}, Placement("split", 1, 0.25, 1)),
        (GPU, [(1, 4), (1, 4), (4, 0)], {}, Placement("split", 8, 0.25, 1)),
        (GPU, [(1, 1), (4, 0)], {"cpus_per_actor": 1.0}, Placement("split", 1, 1, 1)),
        (GPU, [(4, 1), (32, 0)], {"placement": "fused"}, Placement("fused", 1, 4, 1)),
        # Two nodes of one CPU: a second actor might take a share of the other one.
        (GPU, [(1, 1), (1, 1)], {}, Placement("split", 1, 0.25, 1)),
    ],
)
def test_the_actors_fill_the_cluster_and_leave_a_cpu_to_decode(
    engine: EngineChoice,
    sizes: list[tuple[int, int]],
    settings: dict[str, Any],
    expected: Placement,
) -> None:
    assert resolve_placement(ClusterSettings(**settings), engine, nodes(*sizes)) == expected


def misfit(asked: str, room: int, cluster: str) -> str:
    return (
        f"{asked} do not fit: the cluster has room for {room} (nodes: {cluster}); lower "
        "--num-actors, --cpus-per-actor or --gpus-per-actor, or add nodes"
    )


def starved(asked: str, room: int, cluster: str) -> str:
    return (
        f"{asked} may leave no whole CPU of any node for decoding: split placement has room for "
        f"{room} (nodes: {cluster}); lower --num-actors or --cpus-per-actor, use --placement "
        "fused, or add CPUs"
    )


@pytest.mark.parametrize(
    ("engine", "sizes", "settings", "message"),
    [
        (
            CPU,
            [(2, 0), (1, 0)],
            {"cpus_per_actor": 3.0},
            misfit(
                "1 model actor(s) of 3 CPUs and 0 GPUs", 0, "2 CPUs and 0 GPUs, 1 CPUs and 0 GPUs"
            ),
        ),
        (
            CPU,
            [(8, 0)],
            {"num_actors": 3, "cpus_per_actor": 4.0},
            misfit("3 model actor(s) of 4 CPUs and 0 GPUs", 2, "8 CPUs and 0 GPUs"),
        ),
        (
            GPU,
            [(8, 0)],
            {},
            misfit("1 model actor(s) of 1 CPUs and 1 GPUs", 0, "8 CPUs and 0 GPUs"),
        ),
        (
            GPU,
            [(8, 2)],
            {"num_actors": 3},
            misfit("3 model actor(s) of 0.25 CPUs and 1 GPUs", 2, "8 CPUs and 2 GPUs"),
        ),
        (
            CPU,
            [(1, 0)],
            {"placement": "split"},
            starved("1 model actor(s) of 1 CPUs and 0 GPUs", 0, "1 CPUs and 0 GPUs"),
        ),
        (
            CPU,
            [(2, 0)],
            {"placement": "split", "num_actors": 2},
            starved("2 model actor(s) of 1 CPUs and 0 GPUs", 1, "2 CPUs and 0 GPUs"),
        ),
        (
            GPU,
            [(8, 8)],
            {"cpus_per_actor": 1.0, "num_actors": 8},
            starved("8 model actor(s) of 1 CPUs and 1 GPUs", 7, "8 CPUs and 8 GPUs"),
        ),
        (
            GPU,
            [(1, 1)],
            {"placement": "split"},
            starved("1 model actor(s) of 0.25 CPUs and 1 GPUs", 0, "1 CPUs and 1 GPUs"),
        ),
        # Half of either node might go, and with it the last whole CPU.
        (
            CPU,
            [(1, 0), (1, 0)],
            {"placement": "split", "cpus_per_actor": 0.5, "num_actors": 2},
            starved(
                "2 model actor(s) of 0.5 CPUs and 0 GPUs",
                1,
                "1 CPUs and 0 GPUs, 1 CPUs and 0 GPUs",
            ),
        ),
        (
            CPU,
            [(8, 0)],
            {"cpus_per_actor": 0.5},
            (
                "a fused actor decodes beside the model and needs a whole CPU, got 0.5; raise "
                "--cpus-per-actor, or use --placement split"
            ),
        ),
        (
            GPU,
            [(8, 4)],
            {"gpus_per_actor": 1.5},
            "--gpus-per-actor above 1 must be a whole number, got 1.5",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_is_missing(
    engine: EngineChoice, sizes: list[tuple[int, int]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_placement(ClusterSettings(**settings), engine, nodes(*sizes))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["cpus_per_actor", "gpus_per_actor"])
def test_an_actor_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be at least 0.01, got 0.0$"):
        EmbedConfig.from_flat({name: 0})
    assert getattr(EmbedConfig.from_flat({name: 0.5}).cluster, name) == 0.5


def test_what_decodes_on_the_gpu_runs_beside_the_model() -> None:
    sizes = nodes((8, 1))
    settings = EmbedConfig.from_flat({}).cluster
    placement = resolve_placement(settings, GPU, sizes, decodes_on_gpu=True)
    assert placement == Placement("fused", 1, 4, 1)
    apart = EmbedConfig.from_flat({"placement": "split"}).cluster
    with pytest.raises(ConfigError, match="--gpu-decode decodes beside the model"):
        resolve_placement(apart, GPU, sizes, decodes_on_gpu=True)


@pytest.mark.slow
def test_runs_end_where_a_single_cpu_is_left_to_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, data in enumerate(small_jpegs(6)):
        (tmp_path / f"{index}.jpg").write_bytes(data)
    arguments: dict[str, Any] = {
        "model": "efficientnet_lite0",
        "weights": "random",
        "image_size": 64,
        "engine": "torch",
        "device": "cpu",
        "rows_per_part": 3,
    }
    placed: list[Placement] = []
    folder = str(tmp_path)

    class Recording(EncodeWorker):
        def __init__(self, task: EmbedTask) -> None:
            super().__init__(task)
            Path(folder, f"{os.getpid()}.gpus").write_text(str(ray.get_gpu_ids()))

    def beside_gpus(
        settings: ClusterSettings,
        engine: EngineChoice,
        nodes: list[tuple[float, float]],
        *,
        decodes_on_gpu: bool,
    ) -> Placement:
        placed.append(resolve_placement(settings, GPU, nodes, decodes_on_gpu=decodes_on_gpu))
        return placed[-1]

    # Ray believes in the GPUs; the model runs on the CPU all the same.
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2, "GPU": 2}')
    with ray_session(None):
        assert cluster_cpus_and_gpus() == [(2.0, 2.0)]
        summaries = [embed(folder, f"{folder}/cpu", placement="split", **arguments)]
        monkeypatch.setattr("effnet_batch.pipelines.embed.resolve_placement", beside_gpus)
        monkeypatch.setattr("effnet_batch.pipelines.embed_graphs.EncodeWorker", Recording)
        summaries.append(embed(folder, f"{folder}/gpu", cpus_per_actor=0.5, **arguments))
        summaries.append(embed(folder, f"{folder}/fused", placement="fused", **arguments))
    # Two actors and one CPU: what is left is what one decoder needs.
    assert placed == [Placement("split", 2, 0.5, 1), Placement("fused", 1, 2, 1)]
    lent = [path.read_text() for path in tmp_path.glob("*.gpus")]
    assert lent
    assert set(lent) <= {"[0]", "[1]"}
    # Only what was measured is told.
    assert [set(summary.stage_seconds) for summary in summaries] == [
        {"write"},
        {"write"},
        {"read", "decode", "model", "write"},
    ]
    tables: list[pa.Table] = [
        read_embeddings(f"{folder}/{name}").sort_by("uri") for name in ("cpu", "gpu", "fused")
    ]
    assert [table.num_rows for table in tables] == [6, 6, 6]
    first, *others = (embedding_matrix(table) for table in tables)
    for vectors in others:
        np.testing.assert_allclose(vectors, first, rtol=1e-5, atol=1e-6)
