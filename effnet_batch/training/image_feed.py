"""Images on their way to a training worker: cropped at random, resized and augmented."""

import dataclasses
from typing import Final

import numpy as np
import pyarrow as pa

from effnet_batch.config import AugmentationSettings
from effnet_batch.media.image import ImageLimits, Region, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.storage import Span, Storage, StorageOptions
from effnet_batch.training.augmentation import Augmentation, augment, clip_generator
from effnet_batch.training.feed import PIXELS_SCHEMA
from effnet_batch.training.plan import side_at

IMAGES_SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)
"""One row per image: where its encoded bytes lie, its record, its class from 0."""

_CROP_TRIALS: Final = 10
_MAX_ASPECT: Final = 4 / 3


def read_images(rows: pa.Table, storage: Storage) -> list[bytes]:
    """Returns the encoded images of rows of `IMAGES_SCHEMA`."""
    spans = [
        Span(offset, offset + size)
        for offset, size in zip(
            rows["offset"].to_pylist(), rows["size_bytes"].to_pylist(), strict=True
        )
    ]
    return storage.read_spans(rows["uri"].to_pylist(), spans)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFeed:
    """How images become pictures to train on; plain values, that travel to Ray's tasks."""

    storage: StorageOptions
    augmentation: AugmentationSettings
    preprocessing: Preprocessing
    """How the classifier is run: of images that are not cropped at random, all but the side."""
    limits: ImageLimits
    """What one image may cost; those that cost more were left out."""
    resolutions: tuple[str, ...]
    """Sides by epoch, as `plan.side_at` takes them."""
    seed: int
    epoch: int

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Returns rows of `feed.PIXELS_SCHEMA`, uint8 [S, S, 3] each, of images and weights.

        What is drawn depends on seed, epoch and record alone.
        """
        side = side_at(self.resolutions, self.epoch) or self.preprocessing.image_size
        shown = at_side(self.preprocessing, side)
        # The random crop takes the place of the one that is made of clips.
        chances = dataclasses.replace(Augmentation.of(self.augmentation), crop=0.0)
        rows = []
        for sample, data in zip(
            samples.to_pylist(), read_images(samples, Storage(self.storage)), strict=True
        ):
            generator = clip_generator(self.seed, self.epoch, sample["record_id"])
            region = random_region(generator, self.augmentation.crop_area)
            image = decode_image(data, shown, self.limits, region).frame
            pixels = augment(image[None], chances, generator)[0]
            rows.append(
                {
                    "pixels": pixels.tobytes(),
                    "shape": list(pixels.shape),
                    "label": sample["label"],
                    "weight": sample["weight"],
                }
            )
        return pa.Table.from_pylist(rows, PIXELS_SCHEMA)


def at_side(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """Returns a recipe that shows the same of an image at another side."""
    resized = round(preprocessing.resize_size * side / preprocessing.image_size)
    return dataclasses.replace(preprocessing, image_size=side, resize_size=max(side, resized))


def random_region(generator: np.random.Generator, smallest: float) -> Region | None:
    """Draws the part of an image that is shown: of random area, aspect 3:4 to 4:3 and place.

    As in Szegedy et al., *Going Deeper with Convolutions* (2015): where no trial fits into the
    image, the largest centred part of an aspect that is allowed.

    Args:
        generator: what is drawn from it does not depend on the image.
        smallest: least share of the image's area; None comes of 1, which takes the centre.
    """
    areas = generator.uniform(smallest, 1, _CROP_TRIALS)
    aspects = np.exp(generator.uniform(-np.log(_MAX_ASPECT), np.log(_MAX_ASPECT), _CROP_TRIALS))
    across, down = generator.random(2)
    if smallest == 1:
        return None

    def region(width: int, height: int) -> tuple[float, float, float, float]:
        for area, aspect in zip(areas, aspects, strict=True):
            wide = float(np.sqrt(area * width * height * aspect))
            tall = float(np.sqrt(area * width * height / aspect))
            if wide <= width and tall <= height:
                break
        else:
            wide, tall = min(width, height * _MAX_ASPECT), min(height, width * _MAX_ASPECT)
            left, top = (width - wide) / 2, (height - tall) / 2
            return left, top, left + wide, top + tall
        left, top = across * (width - wide), down * (height - tall)
        return left, top, left + wide, top + tall

    return region
