"""The two ends of ``make demo``: photographs to embed, and a look at what came out.

python docs/demo.py prepare demo-output   # writes demo-output/images
python docs/demo.py show demo-output      # reads demo-output/embeddings
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import effnet_batch

NUM_IMAGES = 200
PHOTOGRAPHS = {
    "cat": skimage.data.cat,
    "coffee": skimage.data.coffee,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket,
}
# The ImageNet classes that these photographs resemble.
CLASS_NAMES = {
    281: "tabby cat",
    282: "tiger cat",
    285: "Egyptian cat",
    504: "coffee mug",
    535: "disk brake",
    540: "drilling platform",
    657: "missile",
    665: "moped",
    670: "motor scooter",
    744: "projectile",
    967: "espresso",
    968: "cup",
}


def prepare(folder: Path) -> None:
    """Writes different crops of the photographs that scikit-image ships, once."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        name = list(PHOTOGRAPHS)[index % len(PHOTOGRAPHS)]
        image = Image.fromarray(PHOTOGRAPHS[name]())
        share = generator.uniform(0.7, 1.0)
        width, height = int(share * image.width), int(share * image.height)
        left = int(generator.integers(image.width - width + 1))
        top = int(generator.integers(image.height - height + 1))
        path = images / f"{name}-{index // len(PHOTOGRAPHS):02}.jpg"
        if not path.exists():  # written again, it would be a new version of the source
            image.crop((left, top, left + width, top + height)).save(path, quality=90)
    print(f"{NUM_IMAGES} photographs in {images}")


def show(folder: Path) -> None:
    """Prints the best classes and the nearest neighbours of one image of each kind."""
    table = effnet_batch.read_embeddings(str(folder / "embeddings"))
    names = [Path(uri).stem for uri in table["uri"].to_pylist()]
    vectors = effnet_batch.embedding_matrix(table)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    print(
        f"\nread_embeddings gives {len(names)} vectors of {vectors.shape[1]} numbers. For example:"
    )
    for kind in PHOTOGRAPHS:
        row = names.index(f"{kind}-00")
        classes = table["top_k_classes"][row].as_py()
        scores = table["top_k_scores"][row].as_py()
        best = [
            f"{CLASS_NAMES.get(each, f'class {each}')} {score:.2f}"
            for each, score in zip(classes, scores, strict=True)
        ]
        nearest = np.argsort(-(vectors @ vectors[row]))[1:4]  # the first is the image itself
        print(f"  {names[row]:<14} {', '.join(best)}")
        print(f"  {'':<14} most similar: {', '.join(names[each] for each in nearest)}")


if __name__ == "__main__":
    {"prepare": prepare, "show": show}[sys.argv[1]](Path(sys.argv[2]))
