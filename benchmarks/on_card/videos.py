"""Part 3, continued: decoding videos, by CPU cores and by NVDEC."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from on_card.decoding import Decoding, decode_for, measure_cores, measure_pool
from on_card.machine import Machine
from score_videos import write_videos

from effnet_batch.errors import ConfigError
from effnet_batch.media.card_video import NVDEC, CardVideos
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.video import open_video


def measure_videos(
    machine: Machine, folder: Path, preprocessing: Preprocessing, counts: list[int], seconds: int
) -> list[Decoding]:
    """Decodes videos of so many seconds in so many processes each, then in threads of a card."""
    folder.mkdir()
    write_videos(folder / "videos", max(counts), seconds)
    files = sorted((folder / "videos").iterdir())
    lines = measure_cores(machine, files, preprocessing, counts, "PyAV", decode_video)
    try:
        card = CardVideos([preprocessing], device=machine.device)
        decode = functools.partial(decode_video, card=card)
        work = functools.partial(decode_for, decode=decode, preprocessing=preprocessing)
        for count in counts:
            pool = ThreadPoolExecutor(count)
            lines.append(measure_pool(machine, files, "NVDEC", work, count, pool))
    except ConfigError as error:
        print(f"NVDEC is left out: {error}", flush=True)
    return lines


def decode_video(path: str, preprocessing: Preprocessing, card: CardVideos | None = None) -> int:
    """Decodes every 5th frame, as `score` does by default."""
    with open_video(Path(path).read_bytes()) as opened:
        reader = card.open(opened) if card else opened
        indices = list(range(0, len(reader.pts_seconds), 5))
        num_frames = sum(1 for _ in reader.read(indices, preprocessing))
        if card and reader.decoder != NVDEC:
            raise ConfigError("the card does not decode H.264 of 1280x720")
        return num_frames
