"""Real photographs for tests, from what scikit-image ships (nothing is downloaded)."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": skimage.data.astronaut,  # 512 x 512, a face
    "cat": skimage.data.cat,  # 451 x 300
    "coffee": skimage.data.coffee,  # 600 x 400
    "rocket": skimage.data.rocket,  # 640 x 427
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],  # 741 x 500
    "galaxies": skimage.data.hubble_deep_field,  # 1000 x 872
    "camera": skimage.data.camera,  # 512 x 512, grey
    "coins": skimage.data.coins,  # 384 x 303, grey
}


@cache
def photograph(name: str) -> Image.Image:
    """Return one photograph: mode RGB, or L for the grey ones. Not to be changed in place."""
    return Image.fromarray(PHOTOGRAPHS[name]())


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """Encode as any format Pillow writes; JPEG with quality 90 unless told otherwise."""
    if image_format == "JPEG":
        options = {"quality": 90, **options}
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_photographs(folder: Path) -> list[Path]:
    """Write every photograph as ``NAME.jpg`` and ``NAME.png``; return the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in PHOTOGRAPHS:
        for image_format, suffix in (("JPEG", "jpg"), ("PNG", "png")):
            path = folder / f"{name}.{suffix}"
            path.write_bytes(encode(photograph(name), image_format))
            paths.append(path)
    return sorted(paths)


def small_jpegs(count: int, *, seed: int = 0, width: int = 96, height: int = 80) -> list[bytes]:
    """Return ``count`` different small JPEG files: crops of the photographs, from a seed."""
    generator = np.random.default_rng(seed)
    colours = [name for name in PHOTOGRAPHS if photograph(name).mode == "RGB"]
    files = []
    for _ in range(count):
        image = photograph(colours[generator.integers(len(colours))])
        left = int(generator.integers(image.width - width))
        top = int(generator.integers(image.height - height))
        files.append(encode(image.crop((left, top, left + width, top + height))))
    return files


def write_small_jpegs(
    folder: Path, count: int, *, seed: int = 0, width: int = 96, height: int = 80
) -> list[Path]:
    """Write :func:`small_jpegs` as ``image-000000.jpg`` and so on; return the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, data in enumerate(small_jpegs(count, seed=seed, width=width, height=height)):
        path = folder / f"image-{index:06}.jpg"
        path.write_bytes(data)
        paths.append(path)
    return paths
