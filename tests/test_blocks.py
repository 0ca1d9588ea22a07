"""What the split graph takes for granted of Ray Data: yielded tables become blocks as they are."""

import sys

import numpy as np
import pyarrow as pa
import ray
import ray.cloudpickle
import ray.data

from effnet_batch.pipelines.session import ray_session

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, FRAME_BYTES = 64, 3 * 48 * 48


def decode(unit):
    for start in range(0, 200, ROWS):
        num_rows = min(ROWS, 200 - start)
        yield pa.table(
            {
                # Messages of very different lengths, as failed records have.
                "message": ["x" * (500 if row % 7 == 0 else 0) for row in range(num_rows)],
                "frame": pa.array([bytes(FRAME_BYTES)] * num_rows, pa.binary(FRAME_BYTES)),
                "unit": pa.array(np.full(num_rows, unit["unit"][0].as_py(), np.int32)),
            }
        )


def count(block):
    return pa.table({"unit": [block["unit"][0].as_py()], "num_rows": [len(block)]})


def test_blocks_are_cut_by_rows():
    with ray_session(None):
        units = [ray.put(pa.table({"unit": pa.array([n], pa.int32())})) for n in range(3)]
        source = ray.data.from_arrow_refs(units)
        source.context.execution_options.preserve_order = True
        source.context.target_max_block_size = ROWS * FRAME_BYTES * 4 // 5
        arguments = {"batch_size": None, "batch_format": "pyarrow"}
        decoded = source.map_batches(decode, num_cpus=1, **arguments)
        rows = decoded.map_batches(count, num_cpus=0.5, **arguments).take_all()
    expected = [(unit, n) for unit in range(3) for n in (64, 64, 64, 8)]
    assert [(row["unit"], row["num_rows"]) for row in rows] == expected
