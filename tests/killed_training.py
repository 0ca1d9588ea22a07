"""A training on the server that is killed as soon as an epoch is saved."""

import json
import math
import os
import time
from collections.abc import Callable

import psutil
from commit_gate import CommitGate
from s3_server import S3Server


def losses_in(metrics: str) -> list[float]:
    return [line["loss"] for line in map(json.loads, metrics.splitlines()) if "loss" in line]


class Remote:
    """An output on the server, of which training is killed."""

    def __init__(self, server: S3Server, gate: CommitGate, name: str) -> None:
        self.uri = f"s3://{server.bucket}/{name}"
        self.server, self.gate, self.name = server, gate, name

    def losses(self) -> list[float]:
        return losses_in(self.server.get(f"{self.name}/training/metrics.jsonl").decode())

    def states(self) -> list[str]:
        """Returns the keys of the saved states, which end with the number of the epoch."""
        return self.server.keys(f"{self.name}/training/state-")

    def last_epoch(self) -> int:
        return max((int(key[-9:-3]) for key in self.states()), default=0)

    def hold_next(self) -> None:
        """Lets one epoch more be saved, and then none."""
        self.gate.num_allowed = self.gate.num_passed + 1

    def kill_after(self, epoch: int, kill: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Kills as soon as an epoch is saved, and waits until all that trained is gone."""
        while self.last_epoch() < epoch:
            assert not is_over()
            time.sleep(0.02)
        trained = training_workers()
        kill()
        psutil.wait_procs(trained)
        assert self.last_epoch() == epoch
        self.gate.num_allowed = math.inf


def training_workers() -> list[psutil.Process]:
    """Returns the processes that train in this test's Ray."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("RAY_TMPDIR") == os.environ["RAY_TMPDIR"]
            if is_ours and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
