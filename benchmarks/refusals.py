"""How long a job that cannot work takes to say so, on a real cluster: from the command to its end.

    python benchmarks/refusals.py

A head without CPUs and workers of one CPU, with dashboard and token, as nodes of this machine; a
faulty node is one more. Every refusal is asked for on its own.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from photographs import small_jpegs  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402
from s3_server import S3Server  # noqa: E402

FLAGS = ("--set=model=mobilenet_v2", "--set=weights=random", "--set=image_size=32")
SETTLE_SECONDS = 10.0
"""After a node has come or gone."""


@dataclass(frozen=True)
class Case:
    """Something that makes a job impossible."""

    title: str
    message: str
    """What must be said of it."""
    client: dict[str, str] = field(default_factory=dict)
    """Environment of the command."""
    node: dict[str, str] = field(default_factory=dict)
    """Environment of a node that is added."""
    flags: tuple[str, ...] = ()


def cases(folder: Path, silent: str) -> list[Case]:
    old = folder / "old" / "torch-1.0.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    nowhere = "http://127.0.0.1:1"
    return [
        Case("wrong token", "refuses the token", client={"RAY_AUTH_TOKEN": "wrong"}),
        Case("no cluster", "no Ray cluster", client={"RAY_API_SERVER_ADDRESS": nowhere}),
        Case("no node has a GPU", "has a CPU and a GPU", flags=("--set=device=cuda",)),
        Case("a node has another PyTorch", "has torch 1.0.0", node={"PYTHONPATH": str(old.parent)}),
        Case(
            "a node cannot reach the bucket",
            "cannot read the output",
            node={"AWS_ENDPOINT_URL": nowhere},
        ),
        Case(
            "the bucket never answers a node",
            "storage has not answered",
            node={"AWS_ENDPOINT_URL": silent},
        ),
    ]


def refused(nodes: RayNodes, *arguments: str, **changes: str) -> tuple[float, float, str]:
    """Return the seconds until the error was said and until the end, and all that was said."""
    begin = time.monotonic()
    said, named = "", 0.0
    with subprocess.Popen(
        [sys.executable, "-m", "effnet_batch", "cluster", "submit", "embed", "--wait", *arguments],
        env={**os.environ, **nodes.client_environment, **changes},
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            named = named or ("Error: " in line and time.monotonic() - begin) or 0.0
    assert process.returncode == 2, said
    return named, time.monotonic() - begin, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="effnet-bench-", dir="/tmp") as name,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        os.environ["RAY_TMPDIR"] = name
        folder = Path(name)
        todo = cases(folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with S3Server(folder / "s3") as s3, RayNodes(folder, s3.env) as nodes:
            s3.put("in/0.jpg", small_jpegs(1, seed=5)[0])
            nodes.start_head()
            nodes.add_workers(options.workers)
            print("| what is wrong | said after s | over after s |")
            print("|---|--:|--:|", flush=True)
            for number, case in enumerate(todo):
                added = nodes.add_workers(1, **case.node) if case.node else []
                time.sleep(SETTLE_SECONDS)
                bucket = f"s3://{s3.bucket}"
                places = (f"--set=input={bucket}/in", f"--set=output={bucket}/{number}")
                flags = (*places, *FLAGS, *case.flags)
                named, seconds, said = refused(nodes, *flags, **case.client)
                assert case.message in said, said
                print(f"| {case.title} | {named:.1f} | {seconds:.1f} |", flush=True)
                for node in added:
                    node.kill()


if __name__ == "__main__":
    main()
