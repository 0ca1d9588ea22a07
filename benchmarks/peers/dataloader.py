"""The usual script: DataLoader with two workers, Pillow transforms, eager fp32, batch 64.

python dataloader.py IMAGES OUTPUT MODEL
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from backbones import load_backbone
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from effnet_batch.media.preprocess import Preprocessing


class Images(Dataset):
    def __init__(self, paths: list[str], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing
        self.mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
        self.std = torch.tensor(preprocessing.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        side = self.preprocessing.image_size
        image = Image.open(self.paths[index]).convert("RGB")
        kernel = Image.Resampling[self.preprocessing.interpolation.upper()]
        image = image.resize(self.preprocessing.resized_size(*image.size), kernel)
        left, top = self.preprocessing.crop_origin(*image.size)
        image = image.crop((left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (pixels - self.mean) / self.std


def main(images: Path, output: Path, name: str) -> None:
    model, preprocessing = load_backbone(name)
    model.eval()
    paths = sorted(str(path) for path in images.iterdir())
    loader = DataLoader(Images(paths, preprocessing), batch_size=64, num_workers=2)
    with torch.inference_mode():
        vectors = torch.cat([model.embed(batch) for batch in loader]).numpy()
    output.mkdir(parents=True)
    table = pa.table({"uri": paths, "embedding": list(vectors)})
    pq.write_table(table, output / "embeddings.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
