"""A cluster with jobs on it, as somebody sees it who submits them: command line, bucket, nodes."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed_process import FAST_MODEL, read_rows
from ray_nodes import RayNodes
from s3_gate import S3Gate
from s3_server import S3Server

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 100
ROWS_PER_PART = 4
NUM_WORKERS = 3
_GIVE_UP_SECONDS = 300.0


@dataclass(frozen=True)
class Site:
    """A cluster, a bucket with images, and the command line of somebody who uses both."""

    nodes: RayNodes
    s3: S3Server
    gate: S3Gate
    """In front of the images, for the nodes."""
    folder: Path

    def config(self, name: str, **changes: object) -> Path:
        """Write a settings file of the embedding job; its output has the name."""
        settings = {
            "input": self.uri("in"),
            "output": self.uri(name),
            "rows_per_part": ROWS_PER_PART,
            **{
                flag.replace("-", "_"): int(value) if value.isdigit() else value
                for flag, value in (each[2:].split("=") for each in FAST_MODEL)
            },
            **changes,
        }
        path = self.folder / f"{name}.toml"
        path.write_text("".join(f"{key} = {json.dumps(each)}\n" for key, each in settings.items()))
        return path

    def uri(self, output: str) -> str:
        return f"s3://{self.s3.bucket}/cluster/{output}"

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, **self.nodes.client_environment, **changes}

    def run(self, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run ``effnet-batch cluster``."""
        return subprocess.run(
            [sys.executable, "-m", "effnet_batch", "cluster", *map(str, arguments)],
            env=self.environment(**changes),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: object, log_format: str = "text") -> subprocess.Popen[str]:
        """Start ``effnet-batch cluster``, to be waited for later."""
        program = (sys.executable, "-m", "effnet_batch", f"--log-format={log_format}", "cluster")
        return subprocess.Popen(
            [*program, *map(str, arguments)],
            env=self.environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def done(self, output: str) -> set[str]:
        """Return the keys of the sources that are committed."""
        uris = read_rows(self.s3, f"cluster/{output}", ["uri"])
        return {uri.split("/", 3)[3] for uri in uris["uri"].to_pylist()} if len(uris) else set()

    def strike(self, output: str, number: int) -> set[str]:
        """Have so many parts more committed, and no more read; return the sources that are done."""
        prefix = f"cluster/{output}/data/"
        wanted = len(self.s3.keys(prefix)) + number
        # Of as many sources as there are workers a check reads one, and others begin a part.
        self.gate.admit((number + NUM_WORKERS) * ROWS_PER_PART)
        self.wait_until(lambda: len(self.s3.keys(prefix)) >= wanted)
        done = self.done(output)
        assert 0.1 * NUM_IMAGES <= len(done) <= 0.9 * NUM_IMAGES
        return done

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while not is_reached():
            assert time.monotonic() < deadline, self.run("list").stdout
            time.sleep(0.05)

    def metrics(self) -> Counter[str]:
        """Return what all nodes tell Prometheus, added up."""
        return sum((Counter(node.metrics()) for node in self.nodes.nodes), Counter())

    def rows(self, output: str) -> dict[str, dict[str, Any]]:
        """Return the committed rows by their source, of which each has one."""
        rows = read_rows(self.s3, f"cluster/{output}", ["uri", "status", "score"]).to_pylist()
        found = {row["uri"]: row for row in rows}
        assert len(found) == len(rows)
        return found

    def assert_exactly_once(self, output: str) -> None:
        rows = read_rows(self.s3, f"cluster/{output}", ["uri", "status"])
        uris = rows["uri"].to_pylist()
        assert len(uris) == len(set(uris)) == NUM_IMAGES
        assert set(rows["status"].to_pylist()) == {"ok"}
        assert json.loads(self.s3.get(f"cluster/{output}/run.json"))["state"] == "complete"
