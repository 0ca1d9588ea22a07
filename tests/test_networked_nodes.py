"""Whole jobs on nodes with addresses of their own, one of which is out of reach for a while.

The nodes are real, and so is the network between them: a namespace each, behind a bridge.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from embed_process import FAST_MODEL, EmbedProcess, read_rows
from node_network import Machine, NodeNetwork, what_is_missing
from photographs import small_jpegs
from ray_nodes import RayNodes
from s3_gate import S3Gate
from s3_server import S3Server
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

import effnet_batch
from effnet_batch.models.checkpoint_file import checkpoint_bytes
from effnet_batch.pipelines.verify import verify

NUM_IMAGES = 48
NUM_VIDEOS = 6
CUT_SECONDS = 20


@dataclass(frozen=True)
class Site:
    """Two machines with a node each, and this one with the head, the driver and the bucket."""

    network: NodeNetwork
    machines: list[Machine]
    nodes: RayNodes
    s3: S3Server
    gate: S3Gate
    """In front of the images, for all of them."""

    def run(self, folder: Path, *arguments: str) -> EmbedProcess:
        """Start a job on the nodes, with its driver on this machine."""
        address = f"--address={self.nodes.host}:{self.nodes.port}"
        environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.nodes.token,
            "AWS_ENDPOINT_URL": self.gate.endpoint_url,
        }
        return EmbedProcess(self.s3, folder, *arguments, address, **environment)

    def uri(self, name: str) -> str:
        return f"s3://{self.s3.bucket}/{name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if missing := what_is_missing():
        pytest.skip(f"needs {missing}")
    folder = tmp_path_factory.mktemp("network")
    with (
        NodeNetwork() as network,
        S3Server(folder, network.host) as s3,
        S3Gate(s3, "in/") as gate,
    ):
        environment = {
            **s3.env,
            "AWS_ENDPOINT_URL": gate.endpoint_url,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        with RayNodes(folder, environment, network.host) as nodes:
            nodes.start_head(f"--node-ip-address={network.host}")
            machines = [network.add_machine() for _ in range(2)]
            for machine in machines:
                address = f"--node-ip-address={machine.address}"
                nodes.add_workers(1, "--num-cpus=1", address, prefix=machine.enter)
            yield Site(network, machines, nodes, s3, gate)


def test_a_link_that_is_cut_for_a_while_loses_nothing(site, tmp_path, monkeypatch):
    for index, data in enumerate(small_jpegs(NUM_IMAGES, seed=5)):
        site.s3.put(f"in/{index:03}.jpg", data)
    # A check on each machine reads one, and each then holds at most one of an unfinished part.
    site.gate.admit(12)
    places = (site.uri("in"), site.uri("out"))
    with site.run(tmp_path, "embed", *places, *FAST_MODEL, "--rows-per-part=2") as job:
        job.wait_until(lambda: len(site.s3.keys("out/data/")) >= 4)
        site.network.cut(site.machines[0])
        for _ in range(CUT_SECONDS):  # in which there is something to do for both
            site.gate.admit(1)
            time.sleep(1)
        assert 8 <= len(read_rows(site.s3, "out", ["uri"])) <= 32
        site.network.mend(site.machines[0])
        site.gate.open()
        assert job.wait() in (0, 3), job.output
    # What could not be fetched for so long that it became a record of that is fetched again.
    with site.run(tmp_path, "embed", *places, *FAST_MODEL, "--rows-per-part=2") as job:
        assert job.wait() == 0, job.output
    site.s3.client_env(monkeypatch)
    report = verify(site.uri("out"), is_deep=True)
    assert report.is_proven
    assert report.records_by_status == {"ok": NUM_IMAGES}
    uris = effnet_batch.read_embeddings(site.uri("out"))["uri"].to_pylist()
    assert len(uris) == len(set(uris)) == NUM_IMAGES


def test_videos_decoded_on_one_machine_are_judged_on_the_other(site, tmp_path):
    """Neither has a CPU for both."""
    for index in range(NUM_VIDEOS):
        site.s3.put(f"videos/{index}.mp4", encode(num_frames=20, options={"g": "5"}))
    site.s3.put("tiny.safetensors", checkpoint_bytes(*tiny_checkpoint()))
    split = ("--placement=split", "--num-actors=1", "--engine=torch")
    checkpoint = f"--checkpoint={site.uri('tiny.safetensors')}"
    places = (site.uri("videos"), site.uri("scores"))
    with site.run(tmp_path, "score", *places, checkpoint, *split) as job:
        assert job.wait() == 0, job.output
    rows = read_rows(site.s3, "scores", ["uri", "status", "score"])
    assert rows["status"].to_pylist() == ["ok"] * NUM_VIDEOS
    assert len(set(rows["uri"].to_pylist())) == NUM_VIDEOS
    assert len(set(rows["score"].to_pylist())) == 1
