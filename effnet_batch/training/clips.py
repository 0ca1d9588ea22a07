"""What is shown of a video, kept: decoded once, trained on often, judged as it was shown.

A file holds the pictures of one video and what they are, as `stages.show` yields them, so that
training and validation see exactly what scoring shows a model.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from effnet_batch.errors import DecodeError
from effnet_batch.media.tracks import Box
from effnet_batch.media.video import CPU, VideoInfo
from effnet_batch.stages.show import Pictures, Shot, Shown, Stretch, Viewing
from effnet_batch.training.augmentation import Clip

_METADATA_KEY: Final = "effnet_batch.clips"


@dataclasses.dataclass(frozen=True, eq=False)
class ShownClips:
    """A video as it was shown once; stands for the video itself (`stages.video.ShownVideo`)."""

    decoder = CPU
    """No attribute of its own: clips are prepared in decode tasks."""

    info: VideoInfo
    is_partial: bool
    stretches: list[Stretch]
    """One per segment."""
    pixels: list[Clip]
    """uint8 [N, S, S, 3] each, the pictures of every stretch in the order of its shots."""

    def show(self, viewing: Viewing) -> Iterator[Shown]:
        """Shows it again; the viewing is the one that it was shown in."""
        for stretch, pixels in zip(self.stretches, self.pixels, strict=True):
            for start in range(0, len(pixels), viewing.num_together):
                yield Pictures(0, pixels[start : start + viewing.num_together])
            yield stretch

    def clips(self) -> list[Clip]:
        """Returns the clips of all stretches, uint8 [T, S, S, 3] each."""
        return [
            pixels[positions]
            for stretch, pixels in zip(self.stretches, self.pixels, strict=True)
            for _, positions in stretch.clips
        ]

    @property
    def clip_lengths(self) -> list[int]:
        """Pictures of each of `clips`."""
        return [len(positions) for stretch in self.stretches for _, positions in stretch.clips]


def gather(info: VideoInfo, shown: Iterable[Shown]) -> tuple[list[Stretch], list[Clip]]:
    """Returns the stretches of a video that is shown in one recipe, and their pictures."""
    stretches: list[Stretch] = []
    pixels: list[Clip] = []
    waiting: list[Clip] = []
    for each in shown:
        if isinstance(each, Pictures):
            waiting.append(each.pixels)
            continue
        stretches.append(each)
        pixels.append(np.concatenate(waiting) if waiting else np.empty((0, 1, 1, 3), np.uint8))
        waiting = []
    return stretches, pixels


def pack(clips: ShownClips) -> bytes:
    """Returns a video's clips as one safetensors file."""
    about = {
        "info": dataclasses.asdict(clips.info),
        "is_partial": clips.is_partial,
        "stretches": [
            {
                "expected": stretch.expected,
                "read": stretch.read,
                "shots": [dataclasses.asdict(shot) for shot in stretch.shots],
                "clips": [[track, positions.tolist()] for track, positions in stretch.clips],
            }
            for stretch in clips.stretches
        ],
    }
    arrays = {str(number): pixels for number, pixels in enumerate(clips.pixels)}
    return safetensors.numpy.save(arrays, metadata={_METADATA_KEY: json.dumps(about)})


def unpack(data: bytes) -> ShownClips:
    """Returns what `pack` made.

    Raises:
        DecodeError: the file is damaged or another one.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_METADATA_KEY])
        arrays = safetensors.numpy.load(data)
        stretches = [_stretch(each) for each in about["stretches"]]
        return ShownClips(
            info=VideoInfo(**about["info"]),
            is_partial=about["is_partial"],
            stretches=stretches,
            pixels=[arrays[str(number)] for number in range(len(stretches))],
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"stored clips are damaged: {error}") from None


def _stretch(about: dict[str, Any]) -> Stretch:
    return Stretch(
        expected=about["expected"],
        read=about["read"],
        shots=[
            Shot(**{**shot, "box": None if shot["box"] is None else Box(**shot["box"])})
            for shot in about["shots"]
        ],
        clips=[(track, np.asarray(positions, np.int64)) for track, positions in about["clips"]],
    )
