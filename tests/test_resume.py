"""Embedding runs that are killed at seeded moments: every record once, and its own vector."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from embed_process import FAST_MODEL
from killed_runs import Place, assert_exactly_once, moments, run_and_strike
from photographs import small_jpegs
from s3_server import S3Server

import effnet_batch

NUM_TWINS = 72
NUM_OTHERS = 72


@pytest.fixture
def place(s3: S3Server, s3_prefix: str) -> Place:
    place = Place(
        server=s3,
        prefix=s3_prefix.split("/", 3)[3],
        command=("embed", *FAST_MODEL),
        extension="jpg",
        num_twins=NUM_TWINS,
        num_others=NUM_OTHERS,
        rows_per_part=4,
    )
    place.fill(small_jpegs(NUM_TWINS + NUM_OTHERS, seed=3))
    return place


def assert_vectors_stand_with_their_records(place: Place) -> None:
    table = effnet_batch.read_embeddings(place.output)
    assert table.num_rows == place.num_records
    vectors = {
        (row["uri"], row["member"]): np.array(row["embedding"])
        for row in table.select(["uri", "member", "embedding"]).to_pylist()
    }
    ones = np.array([vectors[uri, None] for uri in place.names("a")])
    twins = np.array([vectors[place.tar, member] for member in place.members()])
    np.testing.assert_allclose(ones, twins, atol=1e-4, rtol=1e-3)
    distances = np.linalg.norm(ones[:, None] - twins[None], axis=2)
    assert (distances.argmin(axis=1) == np.arange(NUM_TWINS)).all()


@pytest.mark.slow
def test_fused_runs_survive_dead_drivers_and_actors(tmp_path: Path, place: Place) -> None:
    first = moments(11, (0.13, 0.17, "FusedWorker"), (0.22, 0.3, "driver"))
    second = moments(12, (0.34, 0.37, "FusedWorker"), (0.42, 0.52, "machine"))
    third = moments(13, (0.58, 0.65, "FusedWorker"), (0.72, 0.8, "FusedWorker"))
    snapshots = run_and_strike(tmp_path, place, [first, second])
    stood = set(place.rows()["part"].to_pylist())
    snapshots += run_and_strike(tmp_path, place, [third])
    assert_exactly_once(place, snapshots)
    assert_vectors_stand_with_their_records(place)

    # The machine died in mid-shard: the third run decoded what was missing and no more.
    rows = place.rows()
    tar = rows.filter(pc.equal(rows["uri"], place.tar))
    by_run = Counter(tar["run_id"].to_pylist())
    num_before = sum(part in stood for part in tar["part"].to_pylist())
    assert 0 < num_before < NUM_TWINS
    assert by_run[max(by_run)] == NUM_TWINS - num_before


@pytest.mark.slow
def test_split_runs_survive_dead_drivers_tasks_and_actors(tmp_path: Path, place: Place) -> None:
    first = moments(21, (0.12, 0.17, "decode_unit"), (0.22, 0.27, "Encode"), (0.35, 0.5, "driver"))
    last = moments(22, (0.55, 0.6, "Encode"), (0.7, 0.8, "decode_unit"))
    # Reading slowly, or all is decoded before the first part is written.
    flags = ("--placement=split", "--max-requests-per-second=12")
    snapshots = run_and_strike(tmp_path, place, [first, last], *flags)
    assert_exactly_once(place, snapshots)
    assert_vectors_stand_with_their_records(place)
