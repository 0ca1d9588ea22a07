"""Daft with our decoder and our engine in its UDF, one instance a core.

Runs in an environment of its own (``make bench-venv``): Daft needs an older pyarrow.

python daft_udf.py IMAGES OUTPUT MODEL
"""

import os
import sys

import daft
import numpy as np
from backbones import load_engine

from effnet_batch.media.image import ImageLimits, decode_image

NUM_CPUS = len(os.sched_getaffinity(0))


@daft.cls(max_concurrency=NUM_CPUS)
class Model:
    def __init__(self, name: str) -> None:
        self.engine, self.preprocessing = load_engine(name, num_threads=1, num_streams=1)

    @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=16)
    def embed(self, data: daft.Series) -> list[np.ndarray]:
        limits = ImageLimits()
        frames = [decode_image(each, self.preprocessing, limits).frame for each in data]
        return list(self.engine.run(np.stack(frames)).embeddings)


def main(images: str, output: str, name: str) -> None:
    model = Model(name)
    table = daft.from_glob_path(f"{images}/*.jpg")
    table = table.select(
        table["path"].alias("uri"), model.embed(table["path"].download()).alias("embedding")
    )
    table.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:4])
