"""Part 4: the pipeline's stages without Ray: JPEG files, decoded, through the card, to Parquet.

``Pillow``: processes decode into shared memory, threads submit what is decoded and write parts.
``nvJPEG``: threads read, the card decodes, and frames stay there.
"""

import dataclasses
import functools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from on_card.decoding import NVJPEG, decoder_pool, open_card_decoder
from on_card.forward import batch_of
from on_card.machine import Machine

from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import ARCHITECTURES, build_model
from effnet_batch.models.engine_cuda import CUDAEngine
from effnet_batch.schema import KIND_IMAGE, source_id
from effnet_batch.sink import OutputPaths, commit_part
from effnet_batch.stages.decode import DecodedBatch, decode_batch, decode_on_card
from effnet_batch.stages.embed import EmbeddingColumns, embed_batch
from effnet_batch.stages.read import Item, Source
from effnet_batch.stages.records import Stamp
from effnet_batch.storage import Storage

_THREADS: Final = 3
"""As an actor has: one batch is computed, one goes up, one becomes rows."""
_STAMP: Final = Stamp("benchmark", "benchmark")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """One line of the table."""

    model: str
    precision: str
    decoder: str
    num_processes: int
    images_per_second: float
    """From the first file to the last part."""
    forward_images_per_second: float
    card_busy_share: float
    """Of the time; what the forward pass alone would have taken."""
    decode_share: float | None
    """Of what the decoders achieve alone; None where that was not measured."""


def measure_stages(
    machine: Machine,
    files: list[Path],
    folder: Path,
    name: str,
    precision: str,
    *,
    num_processes: int,
    limit: int | None,
    decoding_rates: dict[str, float],
    image_size: int | None = None,
) -> list[Stages]:
    side = image_size or ARCHITECTURES[name].resolution
    preprocessing = Preprocessing(image_size=side, resize_size=side)
    batch_size = batch_of(side, limit)
    engine = CUDAEngine(
        build_model(name).eval(),
        preprocessing,
        precision=precision,
        batch_size=batch_size,
        num_streams=_THREADS,
        card=machine.card(),
    )
    forward = batch_size / machine.time(engine.forward_step())
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    ways = {"Pillow": functools.partial(_by_cores, num_processes=num_processes)}
    if machine.device.type == "cuda" and open_card_decoder(preprocessing):
        ways[NVJPEG] = _by_card
    found = []
    for decoder, way in ways.items():
        seconds = way(batches, engine, preprocessing, folder / decoder)
        rate = len(files) / seconds
        alone = decoding_rates.get(decoder)
        found.append(
            Stages(
                model=name,
                precision=precision,
                decoder=decoder,
                num_processes=num_processes if decoder != NVJPEG else 1,
                images_per_second=rate,
                forward_images_per_second=forward,
                card_busy_share=rate / forward,
                decode_share=None if alone is None else rate / alone,
            )
        )
    return found


def _by_cores(
    batches: list[list[Path]],
    engine: CUDAEngine,
    preprocessing: Preprocessing,
    folder: Path,
    *,
    num_processes: int,
) -> float:
    """Returns the seconds that it takes, without the processes' start."""
    side = preprocessing.image_size
    size_bytes = max(map(len, batches)) * 3 * side**2
    blocks = [SharedMemory(create=True, size=size_bytes) for _ in range(num_processes + _THREADS)]
    free: queue.SimpleQueue[SharedMemory] = queue.SimpleQueue()
    for block in blocks:
        free.put(block)
    try:
        with decoder_pool(num_processes) as decoders, ThreadPoolExecutor(_THREADS) as threads:
            # Every process is up once each has had something to do.
            warm = [decoders.submit(time.sleep, 0.2) for _ in range(num_processes)]
            for each in warm:
                each.result()
            room = threading.Semaphore(len(blocks))

            def finish(number: int, block: SharedMemory, decoding: object) -> None:
                try:
                    rows, num_frames = decoding.result()  # type: ignore[attr-defined]
                    frames = np.ndarray((num_frames, side, side, 3), np.uint8, block.buf)
                    _write(DecodedBatch(rows, frames), engine, folder, number)
                    del frames
                finally:
                    free.put(block)
                    room.release()

            start = time.perf_counter()
            written = []
            for number, batch in enumerate(batches):
                room.acquire()
                block = free.get()
                paths = [str(path) for path in batch]
                decoding = decoders.submit(_decode_into, paths, block.name, preprocessing)
                written.append(threads.submit(finish, number, block, decoding))
            for each in written:
                each.result()
            return time.perf_counter() - start
    finally:
        for block in blocks:
            block.close()
            block.unlink()


def _by_card(
    batches: list[list[Path]], engine: CUDAEngine, preprocessing: Preprocessing, folder: Path
) -> float:
    decoder = open_card_decoder(preprocessing)
    assert decoder is not None

    def work(number: int) -> None:
        batch = decode_on_card(_items(batches[number]), decoder, _STAMP, lambda: None)
        _write(batch, engine, folder, number)

    with ThreadPoolExecutor(_THREADS) as threads:
        work(0)
        start = time.perf_counter()
        list(threads.map(work, range(len(batches))))
        return time.perf_counter() - start


def _decode_into(
    paths: list[str], block: str, preprocessing: Preprocessing
) -> tuple[pa.Table, int]:
    """Decodes a batch into shared memory; returns its rows and the number of frames."""
    decode = functools.partial(decode_image, preprocessing=preprocessing, limits=ImageLimits())
    items = _items([Path(path) for path in paths])
    batch = decode_batch(items, decode, _STAMP, preprocessing.image_size)
    # The owner unlinks it; this process must not do so when it ends.
    memory = SharedMemory(name=block)
    try:
        np.ndarray(batch.frames.shape, np.uint8, memory.buf)[:] = batch.frames
    finally:
        memory.close()
    return batch.rows, len(batch.frames)


def _items(paths: list[Path]) -> list[Item]:
    found = []
    for path in paths:
        uri = str(path)
        source = Source(
            uri=uri,
            source_id=source_id(uri),
            kind=KIND_IMAGE,
            size_bytes=None,
            etag=None,
            label=None,
            group=None,
            split=None,
            source_version=None,
            attempt=1,
            skip=frozenset(),
            fetch_uri=None,
        )
        data = path.read_bytes()
        found.append(Item(source, data=data, size_bytes=len(data), num_source_records=1))
    return found


def _write(batch: DecodedBatch, engine: CUDAEngine, folder: Path, number: int) -> None:
    table = embed_batch(batch, engine, EmbeddingColumns())
    commit_part(Storage(), OutputPaths(str(folder)).part("benchmark", number), table, {})
