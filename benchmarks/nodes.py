"""From 1 to 4 worker nodes with a model that sleeps: what the cluster adds must not grow.

    python benchmarks/nodes.py

The nodes are real but share one machine, so the model waits instead of computing: every image costs
`--milliseconds` of a worker's time and next to nothing of a core. The rate counts from the first
committed record to the last, without the start of the workers.
"""

import argparse
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

# Before Ray is imported, which reads it.
os.environ.update(
    RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16), RAY_USAGE_STATS_ENABLED="0"
)

import numpy as np
import pyarrow.parquet as pq
import ray
from images import link_first, write_images
from ray.cluster_utils import Cluster

from effnet_batch.models.engine_base import EngineOutput
from effnet_batch.pipelines import embed_graphs
from effnet_batch.pipelines.embed import embed
from effnet_batch.pipelines.embed_workers import FusedWorker


class SleepingWorker(FusedWorker):
    """Does everything but the model, for which it waits."""

    seconds_per_image = 0.0

    def __init__(self, task: Any, board: Any) -> None:
        super().__init__(task, board)
        dimension = self._engine.embedding_dim
        seconds = self.seconds_per_image

        def run(frames: np.ndarray) -> EngineOutput:
            time.sleep(seconds * len(frames))
            return EngineOutput(np.zeros((len(frames), dimension), np.float32), None)

        self._engine.run = run  # type: ignore[method-assign]


def rate(output: Path) -> float:
    """Return records per second between the first commit and the last, by the parts' own times."""
    parts = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows)
        for path in (output / "data").glob("*.parquet")
    )
    return sum(rows for _, rows in parts[1:]) / (parts[-1][0] - parts[0][0])


def run(folder: Path, num_nodes: int, num_images: int) -> float:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=1)
        summary = embed(
            str(folder / f"first-{num_images}"),
            str(folder / f"out-{num_nodes}"),
            address=cluster.address,
            model="mobilenet_v2",
            weights="random",
            image_size=32,
            batch_size=4,
            rows_per_part=8,
            device="cpu",
        )
        assert summary.state == "complete", summary
        return rate(folder / f"out-{num_nodes}")
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images-per-node", type=int, default=320)
    parser.add_argument("--milliseconds", type=float, default=100.0)
    options = parser.parse_args()
    SleepingWorker.seconds_per_image = options.milliseconds / 1000
    # The actors of the fused graph: all else is the job's own code.
    embed_graphs.FusedWorker = SleepingWorker  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir="/tmp") as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = name
        (folder / "ray").mkdir()  # Ray notes there which cluster is the latest
        counts = {nodes: nodes * options.images_per_node for nodes in options.nodes}
        write_images(folder / "images", max(counts.values()), width=64, height=48)
        rates = {}
        print("| worker nodes | records/s | of linear |")
        print("|--:|--:|--:|", flush=True)
        for nodes, count in counts.items():
            link_first(folder / "images", folder / f"first-{count}", count)
            rates[nodes] = run(folder, nodes, count)
            first = options.nodes[0]
            linear = rates[first] * nodes / first
            print(f"| {nodes} | {rates[nodes]:.1f} | {rates[nodes] / linear:.2f} |", flush=True)


if __name__ == "__main__":
    main()
