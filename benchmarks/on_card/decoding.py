"""Part 3: decoding, by CPU cores and by nvJPEG; videos are in `videos`."""

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
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
    num_workers: int
    """Processes, or threads that share a card."""
    images_per_second: float
    """Of videos, frames that a model would see."""


Decode = Callable[[str, Preprocessing], int]
"""Decodes a file; returns the number of images."""


def measure_cores(
    machine: Machine,
    files: list[Path],
    preprocessing: Preprocessing,
    counts: list[int],
    name: str,
    decode: Decode,
) -> list[Decoding]:
    """Decodes with so many processes each; what they decoded stays with them."""
    work = functools.partial(decode_for, decode=decode, preprocessing=preprocessing)
    return [
        measure_pool(machine, files, name, work, count, decoder_pool(count)) for count in counts
    ]


def measure_nvjpeg(
    machine: Machine, files: list[Path], preprocessing: Preprocessing, batch_size: int
) -> list[Decoding]:
    """Decodes and resizes batches on the card, in one thread."""
    decoder = open_card_decoder(preprocessing)
    if decoder is None:
        return []
    data = [path.read_bytes() for path in files[:batch_size]]
    seconds = machine.time(lambda: decoder.decode(data))
    return [Decoding(decoder=NVJPEG, num_workers=1, images_per_second=len(data) / seconds)]


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


def decode_one_image(path: str, preprocessing: Preprocessing) -> int:
    decode_image(Path(path).read_bytes(), preprocessing, ImageLimits())
    return 1


def decode_for(
    paths: list[str], seconds: float, *, decode: Decode, preprocessing: Preprocessing
) -> tuple[int, float]:
    """Decodes files over and over for some time, at least once; returns how many and how long."""
    number, start = 0, time.perf_counter()
    while not number or time.perf_counter() < start + seconds:
        for path in paths:
            number += decode(path, preprocessing)
    return number, time.perf_counter() - start


def measure_pool(
    machine: Machine,
    files: list[Path],
    name: str,
    work: Callable[[list[str], float], tuple[int, float]],
    count: int,
    pool: Executor,
) -> Decoding:
    """Lets so many workers of a pool decode for the machine's time, after they did it once."""
    with pool:
        groups = [[str(path) for path in files[start::count]] for start in range(count)]
        list(pool.map(work, groups, [0.0] * count))
        results = list(pool.map(work, groups, [machine.seconds] * count))
    rate = sum(number / seconds for number, seconds in results)
    return Decoding(decoder=name, num_workers=count, images_per_second=rate)
