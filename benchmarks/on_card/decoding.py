"""Part 3: decoding JPEGs, by CPU cores and by nvJPEG."""

import dataclasses
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from on_card.machine import Machine

from effnet_batch.errors import ConfigError
from effnet_batch.media.card_image import CardDecoder
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing

NVJPEG = "nvJPEG"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One line of the table."""

    decoder: str
    num_processes: int
    images_per_second: float


def measure_cores(
    machine: Machine, files: list[Path], preprocessing: Preprocessing, counts: list[int]
) -> list[Decoding]:
    """Decodes with so many processes each; what they decoded stays with them."""
    found = []
    for count in counts:
        with decoder_pool(count) as pool:
            groups = [[str(path) for path in files[start::count]] for start in range(count)]
            list(pool.map(_decode_for, groups, [preprocessing] * count, [0.0] * count))
            results = list(
                pool.map(_decode_for, groups, [preprocessing] * count, [machine.seconds] * count)
            )
        rate = sum(number / seconds for number, seconds in results)
        found.append(Decoding(decoder="Pillow", num_processes=count, images_per_second=rate))
    return found


def measure_nvjpeg(
    machine: Machine, files: list[Path], preprocessing: Preprocessing, batch_size: int
) -> list[Decoding]:
    """Decodes and resizes batches on the card, in one thread."""
    decoder = open_card_decoder(preprocessing)
    if decoder is None:
        return []
    data = [path.read_bytes() for path in files[:batch_size]]
    seconds = machine.time(lambda: decoder.decode(data))
    return [Decoding(decoder=NVJPEG, num_processes=1, images_per_second=len(data) / seconds)]


def open_card_decoder(preprocessing: Preprocessing) -> CardDecoder | None:
    """Returns nvJPEG, or says why there is none."""
    try:
        return CardDecoder(preprocessing, ImageLimits())
    except ConfigError as error:
        print(f"{NVJPEG} is left out: {error}", flush=True)
        return None


def decoder_pool(num_processes: int) -> ProcessPoolExecutor:
    """Returns processes that know nothing of the card that this one holds."""
    return ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))


def _decode_for(
    paths: list[str], preprocessing: Preprocessing, seconds: float
) -> tuple[int, float]:
    """Decodes files over and over for some time, at least once; returns how many and how long."""
    limits, number, start = ImageLimits(), 0, time.perf_counter()
    while not number or time.perf_counter() < start + seconds:
        for path in paths:
            decode_image(Path(path).read_bytes(), preprocessing, limits)
            number += 1
    return number, time.perf_counter() - start
