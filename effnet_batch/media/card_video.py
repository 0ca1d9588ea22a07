"""Frames of a video, and faces in them, as a model sees them: decoded and resized on a card.

A card's decoder (NVDEC, by torchcodec) takes videos of `_CONTAINERS`, `_CODECS` and
`_PIXEL_FORMATS` whose packets are all there and say when each frame is shown. Which frames there
are is still what `timeline` read: the decoder is told so, and checked. All else, and what it fails
at, is decoded on the CPU, so that no record's status depends on where it was decoded; only damage
inside a packet, which makes a video partial where a CPU decodes, goes unseen by a card.

Resizing is torch's: antialiased with Pillow's kernels, rounded once. FFmpeg's scaler, which resizes
on the CPU, has kernels of its own: on real videos 40 dB PSNR lie between the two, on faces 48 dB.
What is resized comes back to the host and joins there what others decoded; of a 224-pixel input
that is 150 kB, of a bus of 25 GB/s nothing.

Faces are resized on the card where videos are decoded on it, and nowhere else. From a decode task
they would travel through the object store in their own size, which costs there about what it saves
a CPU (0.3 against 0.5 ms for a face of 320 pixels and an input of 224, 1.0 against 1.0 ms for one
of 480). And where a model runs must not change its numbers, while what decodes may: that is part of
the fingerprint.
"""

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from effnet_batch.errors import ConfigError
from effnet_batch.media.card_image import check_interpolation, fit, fits_card
from effnet_batch.media.container import Cursor, describe
from effnet_batch.media.h264 import tiny_video
from effnet_batch.media.pixels import PixelConverter, Pixels
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.signature import NUM_BYTES_LOOKED_AT, detect_type
from effnet_batch.media.timeline import Timeline
from effnet_batch.media.video import CPU, Frame, VideoReader

NVDEC: Final = "nvdec"
"""What decoded a video whose frames all came from a card."""

_CONTAINERS: Final = ("an MP4 video", "a QuickTime video", "a Matroska or WebM video")
"""By their first bytes: torchcodec opens them with any demuxer that FFmpeg has."""
_CODECS: Final = ("h264", "hevc", "vp9", "av1")
_PIXEL_FORMATS: Final = ("yuv420p", "yuvj420p")
_MAX_FRAMES: Final = 1 << 20
"""Of a video; the decoder is told of each in some 50 bytes."""
_MAX_TOGETHER: Final = 16
"""Frames that are decoded at once."""
_MAX_PIXELS: Final = 16 << 20
"""Of frames that lie on the card in full at once: 48 MiB, and 192 MiB while they are resized."""
_SAME_SECONDS: Final = 1e-6
"""Times of one frame by two libraries differ by less, those of two frames by more."""


class CardVideos:
    """Opens videos on a card; one serves all threads of a worker.

    Args:
        recipes: what frames and faces are resized by, to be checked.
        device: that decodes and resizes.
        decoder_type: by default torchcodec's ``VideoDecoder``.

    Raises:
        ConfigError: a kernel cannot be had on a card, or there is no torchcodec that decodes on it.
    """

    def __init__(
        self,
        recipes: Iterable[Preprocessing] = (),
        *,
        device: torch.device | str = "cuda",
        decoder_type: Any = None,
    ) -> None:
        for recipe in recipes:
            check_interpolation(recipe)
        self._device = torch.device(device)
        self._decoder_type = decoder_type or _load_torchcodec()
        self._check_decoder()

    def open(self, reader: VideoReader) -> "CardVideo":
        """Returns the video of an open reader, decoded on the card where that can be."""
        decoder = None
        if _is_for_card(reader):
            try:
                decoder = self._open_decoder(reader)
            except Exception:  # noqa: BLE001  the CPU's decoder says what is wrong with it
                decoder = None
        return CardVideo(reader, decoder)

    def fit(self, crop: Pixels, recipe: Preprocessing) -> torch.Tensor:
        """Returns uint8 [S, S, 3] of uint8 [H, W, 3], such as a face.

        It lies on the card, or where the card has no room for it in host memory.
        """
        if fits_card(recipe, crop.shape[1], crop.shape[0]):
            try:
                # torch warns of memory that it may not write to.
                pixels = torch.from_numpy(np.require(crop, requirements="W")).to(self._device)
                return fit(pixels.permute(2, 0, 1)[None], recipe)[0]
            except torch.OutOfMemoryError:
                pass  # Left here, so that the traceback does not keep the tensors.
        return torch.from_numpy(PixelConverter(recipe).fit(crop))

    def stack(self, fitted: list[torch.Tensor]) -> Pixels:
        """Returns uint8 [n, S, S, 3] in host memory."""
        return _to_host(torch.stack([each.cpu() for each in fitted]))

    def _open_decoder(self, reader: VideoReader) -> Any:
        """Returns a decoder for the frames of the timeline; None where the card has none."""
        decoder = self._decoder_type(
            Cursor(reader.source),
            stream_index=reader.stream_index,
            device=str(self._device),
            custom_frame_mappings=_frame_mappings(reader.timeline),
        )
        return None if decoder.cpu_fallback else decoder

    def _check_decoder(self) -> None:
        try:
            decoder = self._decoder_type(tiny_video(), device=str(self._device))
            decoder.get_frames_at([0])
            reason = str(decoder.cpu_fallback) if decoder.cpu_fallback else None
        except Exception as error:  # noqa: BLE001  of a build for CPUs, or one for another CUDA
            reason = describe(type(error).__name__, error)
        if reason:
            raise ConfigError(
                f"gpu_decode needs a torchcodec built for CUDA like torch {torch.__version__}, and "
                f"a driver with NVDEC; leave --gpu-decode out where there is none ({reason})"
            )


class CardVideo:
    """A video whose frames come from a card as long as that can be; made by `CardVideos`.

    Attributes:
        decoder: what decoded all frames up to now: ``nvdec`` or ``cpu``.
    """

    def __init__(self, reader: VideoReader, decoder: Any) -> None:
        self._reader = reader
        self._decoder = decoder
        self.decoder = NVDEC if decoder else CPU
        self.info = reader.info
        self.pts_seconds = reader.pts_seconds

    @property
    def is_partial(self) -> bool:
        """As the reader says."""
        return self._reader.is_partial

    def read(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *recipes: Preprocessing | None
    ) -> Iterator[Frame]:
        """Decodes the given frames and yields each in every form asked for, as `VideoReader` does.

        Some are decoded together.
        """
        wanted = [int(index) for index in indices]
        size = (self.info.width, self.info.height)
        num_together = max(1, min(_MAX_TOGETHER, _MAX_PIXELS // (size[0] * size[1])))
        if not all(recipe is None or fits_card(recipe, *size) for recipe in recipes):
            self._decoder, self.decoder = None, CPU
        num_read = 0
        while self._decoder and num_read < len(wanted):
            together = wanted[num_read : num_read + num_together]
            forms = self._decode(together, recipes)
            if forms is None:
                self._decoder, self.decoder = None, CPU
                break
            self._reader.source.on_progress()
            for number, index in enumerate(together):
                for pixels in forms:
                    yield self._frame(index, pixels[number])
            num_read += len(together)
        if num_read < len(wanted):
            # All of them, so that the video's status is that of a decode on the CPU.
            for frame in self._reader.read(wanted, *recipes):
                if num_read == 0 or frame.index > wanted[num_read - 1]:
                    yield frame

    def _decode(
        self, indices: list[int], recipes: Sequence[Preprocessing | None]
    ) -> list[Pixels] | None:
        """Returns uint8 [n, H, W, 3] for each recipe; None where the card cannot do it."""
        try:
            batch = self._decoder.get_frames_at(indices)
            shown = batch.pts_seconds.numpy()
            if batch.data.shape[2:] != (self.info.height, self.info.width) or not np.allclose(
                shown, self.pts_seconds[indices], rtol=0, atol=_SAME_SECONDS
            ):
                return None
            return [_to_host(_as_wanted(batch.data, recipe)) for recipe in recipes]
        except Exception:  # noqa: BLE001  the CPU's decoder says what is wrong with it
            return None

    def _frame(self, index: int, pixels: Pixels) -> Frame:
        return Frame(index=index, pts_seconds=float(self.pts_seconds[index]), pixels=pixels)


def _is_for_card(reader: VideoReader) -> bool:
    timeline, head = reader.timeline, reader.source.read_at(0, NUM_BYTES_LOOKED_AT)
    return (
        timeline.is_indexed
        and not timeline.is_partial
        and timeline.is_plain
        and len(timeline.pts) <= _MAX_FRAMES
        and timeline.info.codec in _CODECS
        and timeline.info.pixel_format in _PIXEL_FORMATS
        and detect_type(head) in _CONTAINERS
    )


def _frame_mappings(timeline: Timeline) -> str:
    """Returns the frames as torchcodec takes them: time, duration, whether decoding may start."""
    pts = timeline.pts
    lengths = np.diff(pts, append=pts[-1] + 1)
    is_keyframe = np.isin(pts, timeline.keyframe_pts)
    frames = [
        {"pts": time, "duration": length, "key_frame": int(is_key)}
        for time, length, is_key in zip(
            pts.tolist(), lengths.tolist(), is_keyframe.tolist(), strict=True
        )
    ]
    return json.dumps({"frames": frames})


def _as_wanted(frames: torch.Tensor, recipe: Preprocessing | None) -> torch.Tensor:
    """Returns uint8 [n, 3, H, W] as [n, S, S, 3] by a recipe, or whole as [n, H, W, 3]."""
    return frames.permute(0, 2, 3, 1) if recipe is None else fit(frames, recipe)


def _to_host(pixels: torch.Tensor) -> Pixels:
    return np.ascontiguousarray(pixels.cpu().numpy(), np.uint8)


def _load_torchcodec() -> Any:
    """Returns torchcodec's decoder.

    Raises:
        ConfigError: torchcodec is not installed, or not for this build of torch or FFmpeg.
    """
    try:
        return importlib.import_module("torchcodec.decoders").VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"gpu_decode of videos needs torchcodec, built for CUDA like torch "
            f"{torch.__version__}, and FFmpeg's libraries: pip install 'effnet-batch[nvdec]' "
            f"({describe(type(error).__name__, error)})"
        ) from error
