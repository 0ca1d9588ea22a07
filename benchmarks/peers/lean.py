"""The least that can do the job: one process, a thread a core, one Parquet file at the end.

python lean.py IMAGES OUTPUT MODEL
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from backbones import load_engine

from effnet_batch.media.image import ImageLimits, decode_image


def main(images: Path, output: Path, model: str) -> None:
    torch.set_num_threads(1)
    num_threads = len(os.sched_getaffinity(0))
    engine, preprocessing = load_engine(model, num_threads=1, num_streams=num_threads)
    paths = sorted(str(path) for path in images.iterdir())
    limits = ImageLimits()

    def embed(start: int) -> np.ndarray:
        batch = paths[start : start + engine.batch_size]
        frames = [
            decode_image(Path(path).read_bytes(), preprocessing, limits).frame for path in batch
        ]
        return engine.run(np.stack(frames)).embeddings

    with ThreadPoolExecutor(num_threads) as pool:
        vectors = np.concatenate(list(pool.map(embed, range(0, len(paths), engine.batch_size))))
    offsets = pa.array(np.arange(len(paths) + 1, dtype=np.int32) * vectors.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
    output.mkdir(parents=True)
    table = pa.table({"uri": paths, "embedding": lists})
    pq.write_table(table, output / "embeddings.parquet", compression="zstd", use_dictionary=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
