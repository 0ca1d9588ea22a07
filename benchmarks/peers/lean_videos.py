"""The least that can judge videos: one process, a thread a core, one Parquet file at the end.

python lean_videos.py VIDEOS OUTPUT CHECKPOINT PRECISION
"""

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from effnet_batch.media.sampling import EveryNth, sample
from effnet_batch.media.video import open_video
from effnet_batch.models.checkpoints import load_checkpoint
from effnet_batch.models.engine import build_engine


def main(videos: Path, output: Path, checkpoint: str, precision: str) -> None:
    torch.set_num_threads(1)
    num_threads = len(os.sched_getaffinity(0))
    loaded = load_checkpoint(checkpoint)
    preprocessing = loaded.info.preprocessing
    engine = build_engine(
        loaded.model.encoder,
        preprocessing,
        engine="openvino",
        device="cpu",
        precision=precision,
        num_streams=num_threads,
    )
    sampling = EveryNth(ratio=5)

    def judge(path: Path) -> float:
        with open_video(path.read_bytes()) as video:
            indices = sample(video.pts_seconds, sampling).indices
            frames = (frame.pixels for frame in video.read(indices, preprocessing))
            vectors = []
            while batch := list(itertools.islice(frames, engine.batch_size)):
                vectors.append(engine.run(np.stack(batch)).embeddings)
        (logits,) = loaded.model.classify_clips([np.concatenate(vectors)])
        return float(logits.mean())

    paths = sorted(videos.iterdir())
    with ThreadPoolExecutor(num_threads) as pool:
        logits = list(pool.map(judge, paths))
    output.mkdir(parents=True)
    table = pa.table({"uri": [str(path) for path in paths], "logit": logits})
    pq.write_table(table, output / "scores.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
