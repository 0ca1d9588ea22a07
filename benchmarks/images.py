"""Photographs to measure with: crops of those that scikit-image ships, from a seed."""

import io
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image


def write_images(folder: Path, count: int, *, width: int, height: int, seed: int = 0) -> None:
    """Writes ``count`` different JPEGs of quality 90 as ``000000.jpg`` and so on."""
    photographs = [
        Image.fromarray(image)
        for image in (
            skimage.data.astronaut(),
            skimage.data.cat(),
            skimage.data.coffee(),
            skimage.data.rocket(),
            skimage.data.stereo_motorcycle()[0],
        )
    ]
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        source = photographs[index % len(photographs)]
        # The largest crop of the wanted shape, or one of down to 0.6 of its sides.
        scale = min(source.width / width, source.height / height) * generator.uniform(0.6, 1)
        crop_width, crop_height = int(width * scale), int(height * scale)
        left = int(generator.integers(source.width - crop_width + 1))
        top = int(generator.integers(source.height - crop_height + 1))
        image = source.resize(
            (width, height),
            Image.Resampling.BICUBIC,
            box=(left, top, left + crop_width, top + crop_height),
        )
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        (folder / f"{index:06}.jpg").write_bytes(buffer.getvalue())


def link_first(folder: Path, target: Path, count: int) -> None:
    """Makes a folder of the first ``count`` images of another one, without copying them."""
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir())[:count]:
        (target / path.name).hardlink_to(path)
