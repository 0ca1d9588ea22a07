"""Runs that are killed at seeded moments, on the real S3 server: every record exactly once.

Every moment must fall where 10-90 % of the records are committed, or the test fails: a kill before
the work or after it proves nothing.
"""

import dataclasses
import io
import json
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from embed_process import FAST_MODEL, EmbedProcess, read_rows
from photographs import small_jpegs
from s3_server import S3Server

import effnet_batch
from effnet_batch.pipelines.verify import verify

NUM_TWINS = 280
"""Images that are there twice: as objects of their own, and as members of one tar."""
NUM_OTHERS = 280
NUM_RECORDS = 2 * NUM_TWINS + NUM_OTHERS
ROWS_PER_PART = 16


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to strike, and whom."""

    share: float
    """Of the parts that are committed."""
    victim: str
    """``driver``; ``machine``, which is the driver and all of Ray at once; or a Ray worker, by a
    part of its title."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a test's input and output lie in the bucket."""

    server: S3Server
    prefix: str

    @property
    def input(self) -> str:
        return f"s3://{self.server.bucket}/{self.prefix}in"

    @property
    def output(self) -> str:
        return f"s3://{self.server.bucket}/{self.prefix}out"

    @property
    def tar(self) -> str:
        return f"{self.input}/m.tar"

    def fill(self) -> None:
        images = small_jpegs(NUM_TWINS + NUM_OTHERS, seed=3)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for index, data in enumerate(images[:NUM_TWINS]):
                info = tarfile.TarInfo(f"{index:04}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                self.server.put(f"{self.prefix}in/a/{index:04}.jpg", data)
        self.server.put(f"{self.prefix}in/m.tar", buffer.getvalue())
        for index, data in enumerate(images[NUM_TWINS:]):
            self.server.put(f"{self.prefix}in/z/{index:04}.jpg", data)

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


@pytest.fixture
def place(s3: S3Server, s3_prefix: str) -> Place:
    place = Place(s3, s3_prefix.split("/", 3)[3])
    place.fill()
    return place


def strike(driver: EmbedProcess, place: Place, moment: Moment) -> set[str]:
    """Kill at a moment; return the keys of the parts that are committed by then."""
    num_parts = round(moment.share * NUM_RECORDS / ROWS_PER_PART)
    driver.wait_until(lambda: len(place.keys()) >= num_parts)
    if moment.victim == "machine":
        driver.kill_all()
    elif moment.victim == "driver":
        driver.kill()
    else:
        driver.wait_until(lambda: bool(driver.workers(moment.victim)))
        for worker in driver.workers(moment.victim):
            worker.send_signal(signal.SIGKILL)
    return set(place.keys())


def run_and_strike(
    tmp_path: Path, place: Place, runs: list[list[Moment]], *flags: str
) -> list[set[str]]:
    """Run the same command again and again; return the parts that stood at each moment."""
    command = ["embed", place.input, place.output, f"--rows-per-part={ROWS_PER_PART}"]
    snapshots: list[set[str]] = []
    for moments in runs:
        finished, mark = place.finished(), place.server.access_log.mark()
        with EmbedProcess(place.server, tmp_path, *command, *FAST_MODEL, *flags) as driver:
            snapshots += [strike(driver, place, moment) for moment in moments]
            if moments[-1].victim not in ("driver", "machine"):
                assert driver.wait() == 0, driver.output
            driver.wait_until_gone()
        read = place.server.access_log.gets(since=mark, prefix=f"{place.prefix}in/")
        assert not finished & read.keys(), "a finished source was read again"
    return snapshots


def assert_exactly_once(place: Place, snapshots: list[set[str]]) -> None:
    rows = place.rows()
    part_of = rows["part"].to_pylist()
    for snapshot in snapshots:
        share = sum(part in snapshot for part in part_of) / NUM_RECORDS
        assert 0.1 <= share <= 0.9, f"struck at {share:.0%}"

    # The raw parts, superseded rows and all: nothing was committed twice.
    assert rows.num_rows == NUM_RECORDS
    assert set(rows["status"].to_pylist()) == {"ok"}
    records = set(zip(rows["uri"].to_pylist(), rows["member"].to_pylist(), strict=True))
    assert records == {
        *((f"{place.input}/a/{i:04}.jpg", None) for i in range(NUM_TWINS)),
        *((place.tar, f"{i:04}.jpg") for i in range(NUM_TWINS)),
        *((f"{place.input}/z/{i:04}.jpg", None) for i in range(NUM_OTHERS)),
    }

    report = verify(place.output, is_deep=True)
    assert report.is_proven, report
    assert (report.num_done, report.num_records) == (NUM_RECORDS - NUM_TWINS + 1, NUM_RECORDS)
    run = json.loads(place.server.get(f"{place.prefix}out/run.json"))
    assert run["state"] == "complete"
    assert f"{place.prefix}out/_lock.json" not in place.server.keys(f"{place.prefix}out/")


def assert_vectors_stand_with_their_records(place: Place) -> None:
    table = effnet_batch.read_embeddings(place.output)
    assert table.num_rows == NUM_RECORDS
    vectors = {
        (row["uri"], row["member"]): np.array(row["embedding"])
        for row in table.select(["uri", "member", "embedding"]).to_pylist()
    }
    ones = np.array([vectors[f"{place.input}/a/{i:04}.jpg", None] for i in range(NUM_TWINS)])
    twins = np.array([vectors[place.tar, f"{i:04}.jpg"] for i in range(NUM_TWINS)])
    np.testing.assert_allclose(ones, twins, atol=1e-4, rtol=1e-3)
    distances = np.linalg.norm(ones[:, None] - twins[None], axis=2)
    assert (distances.argmin(axis=1) == np.arange(NUM_TWINS)).all()


def moments(seed: int, *windows: tuple[float, float, str]) -> list[Moment]:
    random = np.random.default_rng(seed)
    return [Moment(float(random.uniform(low, high)), victim) for low, high, victim in windows]


@pytest.mark.slow
def test_fused_runs_survive_dead_drivers_and_actors(tmp_path: Path, place: Place) -> None:
    first = moments(11, (0.13, 0.17, "FusedWorker"), (0.22, 0.3, "driver"))
    second = moments(12, (0.34, 0.37, "FusedWorker"), (0.42, 0.52, "machine"))
    third = moments(13, (0.58, 0.65, "FusedWorker"), (0.72, 0.8, "FusedWorker"))
    snapshots = run_and_strike(tmp_path, place, [first, second, third])
    assert_exactly_once(place, snapshots)
    assert_vectors_stand_with_their_records(place)

    # The machine died in mid-shard: the third run decoded what was missing and no more.
    rows = place.rows()
    tar = rows.filter(pc.equal(rows["uri"], place.tar))
    by_run = Counter(tar["run_id"].to_pylist())
    num_before = sum(part in snapshots[3] for part in tar["part"].to_pylist())
    assert 0 < num_before < NUM_TWINS
    assert by_run[max(by_run)] == NUM_TWINS - num_before


@pytest.mark.slow
def test_split_runs_survive_dead_drivers_tasks_and_actors(tmp_path: Path, place: Place) -> None:
    first = moments(21, (0.12, 0.17, "decode_unit"), (0.22, 0.27, "Encode"), (0.35, 0.5, "driver"))
    last = moments(22, (0.55, 0.6, "Encode"), (0.7, 0.8, "decode_unit"))
    # Reading slowly, or all is decoded before the first part is written.
    flags = ("--placement=split", "--max-requests-per-second=80")
    snapshots = run_and_strike(tmp_path, place, [first, last], *flags)
    assert_exactly_once(place, snapshots)
    assert_vectors_stand_with_their_records(place)
