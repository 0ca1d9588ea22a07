"""Runs of a job that are killed at seeded moments, on the real S3 server.

Every moment must fall where 10-90 % of the records are committed, or the test fails: a kill before
the work or after it proves nothing. A `CommitGate` sees to it, however fast or slow the machine is:
it holds the parts back that would come too early, then lets a few go while the blow falls.
"""

import dataclasses
import io
import json
import math
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from commit_gate import CommitGate
from embed_process import EmbedProcess, read_rows
from s3_server import S3Server

from effnet_batch.pipelines.verify import verify

_NUM_PARTS_MEANWHILE: Final = 2
_MEANWHILE_SECONDS: Final = 0.3
_PATIENCE_SECONDS: Final = 30.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to strike, and whom."""

    share: float
    """Of the parts that are committed."""
    victim: str
    """``driver``; ``machine``, which is the driver and all of Ray at once; or a Ray worker, by a
    part of its title."""
    is_between_passes: bool = False
    """Whether to wait until the next pass begins."""


def moments(seed: int, *windows: tuple[float, float, str]) -> list[Moment]:
    """Returns a moment in each window of shares, with its victim."""
    random = np.random.default_rng(seed)
    return [Moment(float(random.uniform(low, high)), victim) for low, high, victim in windows]


@dataclasses.dataclass(frozen=True)
class Place:
    """A job on an input of its own in the bucket: some media twice, as objects and in one tar."""

    server: S3Server
    prefix: str
    command: tuple[str, ...]
    """Name of the job and its settings."""
    extension: str
    num_twins: int
    """Media that are there twice: as objects of their own, and as members of one tar."""
    num_others: int
    rows_per_part: int
    """A multiple of the batch size, so that every part has just as many."""

    @property
    def num_records(self) -> int:
        return 2 * self.num_twins + self.num_others

    @property
    def input(self) -> str:
        return f"s3://{self.server.bucket}/{self.prefix}in"

    @property
    def output(self) -> str:
        return f"s3://{self.server.bucket}/{self.prefix}out"

    @property
    def tar(self) -> str:
        return f"{self.input}/m.tar"

    def names(self, folder: str) -> list[str]:
        """Returns the URIs of the objects in ``a``, the twins, or ``z``, the others."""
        count = self.num_twins if folder == "a" else self.num_others
        return [f"{self.input}/{folder}/{i:04}.{self.extension}" for i in range(count)]

    def members(self) -> list[str]:
        return [f"{i:04}.{self.extension}" for i in range(self.num_twins)]

    def fill(self, media: Sequence[bytes]) -> None:
        """Writes the input: the twins first, then the others."""
        assert len(media) == self.num_twins + self.num_others
        start = len(f"s3://{self.server.bucket}/")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in zip(self.members(), media, strict=False):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        self.server.put(f"{self.prefix}in/m.tar", buffer.getvalue())
        for uri, data in zip(self.names("a") + self.names("z"), media, strict=True):
            self.server.put(uri[start:], data)

    def keys(self) -> list[str]:
        return self.server.keys(f"{self.prefix}out/data/")

    def rows(self) -> pa.Table:
        columns = ["uri", "member", "record_id", "num_source_records", "run_id", "status"]
        return read_rows(self.server, f"{self.prefix}out", columns)

    def finished(self) -> set[str]:
        """Return the keys of the sources whose records are all committed."""
        rows = self.rows()
        if not rows.num_rows:
            return set()
        counts = Counter(
            uri for uri, _ in set(zip(*rows.select(["uri", "record_id"]), strict=True))
        )
        needs = {
            row["uri"]: row["num_source_records"]
            for row in rows.to_pylist()
            if row["num_source_records"]
        }
        start = len(f"s3://{self.server.bucket}/")
        return {str(uri)[start:] for uri, count in counts.items() if needs.get(uri) == count}


def strike(driver: EmbedProcess, place: Place, gate: CommitGate, moment: Moment) -> set[str]:
    """Kill at a moment; return the keys of the parts that are committed by then."""
    num_parts = round(moment.share * place.num_records / place.rows_per_part)
    gate.num_allowed = gate.num_passed + max(0, num_parts - len(place.keys()))
    _wait_until(driver, gate, lambda: len(place.keys()) >= num_parts)
    if moment.is_between_passes:
        num_begun = driver.output.count("actor(s)")
        gate.num_allowed = math.inf
        driver.wait_until(lambda: driver.output.count("actor(s)") > num_begun)
        gate.num_allowed = gate.num_passed
    is_worker = moment.victim not in ("driver", "machine")
    if is_worker:
        _wait_until(driver, gate, lambda: bool(driver.workers(moment.victim)))
    # Those who wait for the gate go on for a moment, so that the blow falls anywhere in their work.
    gate.num_allowed += _NUM_PARTS_MEANWHILE
    time.sleep(_MEANWHILE_SECONDS * (moment.share * 1_000 % 1))
    if is_worker:
        for worker in driver.workers(moment.victim):
            worker.send_signal(signal.SIGKILL)
    elif moment.victim == "machine":
        driver.kill_all()
    else:
        driver.kill()
    # What passed is on its way, whoever sent it.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not gate.passed <= (keys := set(place.keys())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return keys


def _wait_until(driver: EmbedProcess, gate: CommitGate, condition: Callable[[], bool]) -> None:
    """Waits, and lets a part more pass now and then: a held part may be what it waits for."""
    patience = time.monotonic() + _PATIENCE_SECONDS

    def is_met() -> bool:
        nonlocal patience
        if time.monotonic() > patience:
            gate.num_allowed += 1
            patience = time.monotonic() + _PATIENCE_SECONDS
        return condition()

    driver.wait_until(is_met)


def run_and_strike(
    tmp_path: Path,
    place: Place,
    runs: list[list[Moment]],
    *flags: str,
    rows_per_pass: int | None = None,
) -> list[set[str]]:
    """Run the same command again and again; return the parts that stood at each moment."""
    job, *settings = place.command
    command = [job, place.input, place.output, f"--rows-per-part={place.rows_per_part}"]
    snapshots: list[set[str]] = []
    for moments in runs:
        finished, mark = place.finished(), place.server.access_log.mark()
        with (
            CommitGate(place.server) as gate,
            EmbedProcess(
                place.server,
                tmp_path,
                *command,
                *settings,
                *flags,
                rows_per_pass=rows_per_pass,
                AWS_ENDPOINT_URL=gate.endpoint_url,
            ) as driver,
        ):
            snapshots += [strike(driver, place, gate, moment) for moment in moments]
            gate.num_allowed = math.inf
            if moments[-1].victim not in ("driver", "machine"):
                assert driver.wait() == 0, driver.output
                assert "(raylet)" not in driver.output, driver.output
            driver.wait_until_gone()
        read = place.server.access_log.gets(since=mark, prefix=f"{place.prefix}in/")
        assert not finished & read.keys(), "a finished source was read again"
    return snapshots


def assert_exactly_once(place: Place, snapshots: list[set[str]]) -> None:
    rows = place.rows()
    part_of = rows["part"].to_pylist()
    sizes = Counter(part_of)
    shares = [sum(sizes[part] for part in parts) / place.num_records for parts in snapshots]
    assert all(0.1 <= share <= 0.9 for share in shares), f"struck at {shares}"

    # The raw parts, superseded rows and all: nothing was committed twice.
    assert rows.num_rows == place.num_records
    assert set(rows["status"].to_pylist()) == {"ok"}
    records = set(zip(rows["uri"].to_pylist(), rows["member"].to_pylist(), strict=True))
    assert records == {
        *((uri, None) for uri in place.names("a") + place.names("z")),
        *((place.tar, member) for member in place.members()),
    }

    report = verify(place.output, is_deep=True)
    assert report.is_proven, report
    num_sources = place.num_twins + place.num_others + 1
    assert (report.num_done, report.num_records) == (num_sources, place.num_records)
    run = json.loads(place.server.get(f"{place.prefix}out/run.json"))
    assert run["state"] == "complete"
    assert f"{place.prefix}out/_lock.json" not in place.server.keys(f"{place.prefix}out/")
