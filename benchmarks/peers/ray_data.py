"""Ray Data as its guide to batch inference shows it, with our engine in the actor.

python ray_data.py IMAGES OUTPUT MODEL
"""

import os
import sys
from typing import Any

import numpy as np
import ray
from backbones import load_backbone, load_engine
from PIL import Image


def main(images: str, output: str, name: str) -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    num_cpus = len(os.sched_getaffinity(0))
    _, preprocessing = load_backbone(name)

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        side = preprocessing.image_size
        image = Image.fromarray(row["image"])
        kernel = Image.Resampling[preprocessing.interpolation.upper()]
        image = image.resize(preprocessing.resized_size(*image.size), kernel)
        left, top = preprocessing.crop_origin(*image.size)
        frame = np.asarray(image.crop((left, top, left + side, top + side)))
        return {"uri": row["path"], "frame": frame}

    class Model:
        def __init__(self) -> None:
            self.engine, _ = load_engine(name, num_threads=num_cpus, num_streams=1)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"uri": batch["uri"], "embedding": self.engine.run(batch["frame"]).embeddings}

    dataset = ray.data.read_images(images, mode="RGB", include_paths=True)
    dataset = dataset.map(preprocess)
    dataset = dataset.map_batches(
        Model, batch_size=16, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
    )
    dataset.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:4])
