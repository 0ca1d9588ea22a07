"""Items through parallel lanes: in order, in batches that depend on the items alone."""

import time
from typing import Any

import pyarrow as pa
import pytest

from effnet_batch.stages.embed import embed_items
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item, Source

MIB = 1 << 20
SOURCE = Source(
    uri="/a.jpg",
    source_id="0" * 32,
    kind="image",
    size_bytes=None,
    etag=None,
    label=None,
    group=None,
    split=None,
    source_version=None,
    attempt=1,
    skip=frozenset(),
    fetch_uri=None,
)


def run(sizes: list[int], num_lanes: int, batch_size: int = 4) -> list[list[int]]:
    """Returns the item numbers of every batch, in the order in which they come out."""
    items = [Item(SOURCE, occurrence=number, data=bytes(size)) for number, size in enumerate(sizes)]

    def decode(batch: list[Item]) -> Any:
        time.sleep(0.002 * (batch[0].occurrence % 3))  # some lanes are slower
        return [item.occurrence for item in batch]

    tables = embed_items(
        items,
        decode,
        lambda numbers: pa.table({"number": numbers}),
        batch_size=batch_size,
        num_lanes=num_lanes,
        clock=StageClock(),
    )
    return [table["number"].to_pylist() for table in tables]


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_batches_are_cut_by_count_and_come_in_order(num_lanes: int) -> None:
    batches = run([10] * 30, num_lanes)
    assert [number for batch in batches for number in batch] == list(range(30))
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    assert run([], num_lanes) == []


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_very_large_images_fill_a_batch_early(num_lanes: int) -> None:
    sizes = [40 * MIB, 40 * MIB, 1, 1, 100 * MIB, 1, 1, 1, 1]
    assert run(sizes, num_lanes) == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]


def test_an_error_of_a_lane_ends_the_work() -> None:
    def fail(_: list[Item]) -> Any:
        raise OSError("broken")

    items = [Item(SOURCE, data=b"")] * 100
    clock = StageClock()
    with pytest.raises(OSError, match="broken"):
        list(
            embed_items(items, fail, lambda _: pa.table({}), batch_size=2, num_lanes=2, clock=clock)
        )
