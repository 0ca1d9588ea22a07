"""The usual script: cv2.VideoCapture, a DataLoader with two workers, eager fp32.

python opencv_videos.py VIDEOS OUTPUT CHECKPOINT
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.checkpoints import load_checkpoint

RATIO = 5


class Videos(Dataset):
    """Every 5th frame of each video, float32 [T, 3, S, S]."""

    def __init__(self, paths: list[str], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.side = preprocessing.image_size
        self.mean = np.array(preprocessing.mean, np.float32)
        self.std = np.array(preprocessing.std, np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        capture = cv2.VideoCapture(self.paths[index])
        frames = []
        number = 0
        while True:
            is_there, frame = capture.read()
            if not is_there:
                break
            if number % RATIO == 0:
                frame = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (self.side, self.side))
                frames.append((frame.astype(np.float32) / 255 - self.mean) / self.std)
            number += 1
        capture.release()
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def main(videos: Path, output: Path, checkpoint: str) -> None:
    loaded = load_checkpoint(checkpoint)
    paths = sorted(str(path) for path in videos.iterdir())
    loader = DataLoader(Videos(paths, loaded.info.preprocessing), batch_size=None, num_workers=2)
    logits = []
    with torch.inference_mode():
        for frames in loader:
            vectors = torch.cat([loaded.model.encode(batch) for batch in frames.split(16)])
            logits.append(float(loaded.model.head(vectors).mean()))
    output.mkdir(parents=True)
    pq.write_table(pa.table({"uri": paths, "logit": logits}), output / "scores.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
