"""Many JPEGs at once to the frames that a model sees, decoded and resized on a card.

What a card's decoder is known to read as Pillow does goes there; all else (other formats, CMYK,
files that do not end as they should, extreme shapes) is decoded by `image.decode_image`, so that a
record's status does not depend on where it was decoded. Pixels differ by rounding: a card decodes
in full, resizes in float32 and rounds once.
"""

import dataclasses
import importlib
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from PIL import JpegImagePlugin
from torch.nn import functional

from effnet_batch.errors import ConfigError, RecordError
from effnet_batch.media.image import ImageLimits, check_size, decode_image, orientation_of
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.signature import detect_type

CARD_INTERPOLATIONS: Final = ("bilinear", "bicubic")
"""Kernels that torch has antialiased as Pillow has them."""

DecodeJPEGs = Callable[[list[bytes]], list[torch.Tensor]]
"""JPEGs to uint8 [3, H, W] each, RGB as stored, on the card; RuntimeError if one is damaged."""

_END_OF_IMAGE: Final = b"\xff\xd9"
_MAX_OVERHANG: Final = 16
"""Beyond this many times the pixels of the model's input, a resized image is made on the CPU."""
_MAX_GROUP_PIXELS: Final = 16 << 20
"""Of images of one size that are resized together."""
_MAX_PORTION_PIXELS: Final = 32 << 20
"""Of images that lie on the card in full at once: 96 MiB, some 170 of 500 x 375 pixels."""

_Fitted = dict[int, tuple[tuple[int, int], torch.Tensor]]
"""By the image's number: upright width and height in pixels, and uint8 [S, S, 3] on the card."""


@dataclasses.dataclass(frozen=True, eq=False)
class CardFrames:
    """What became of some images."""

    frames: torch.Tensor
    """uint8 [N, S, S, 3] on the card, of those that decoded, in their order."""
    outcomes: list[tuple[int, int] | RecordError]
    """Upright width and height in pixels of each image, or why there is no frame of it."""


class CardDecoder:
    """Decodes JPEGs in batches; may be called from several threads.

    Args:
        preprocessing: geometry and kernel; its mean and std are applied by the engine.
        limits: bounds on bytes and pixels.
        device: of the frames.
        decode_jpegs: by default nvJPEG.

    Raises:
        ConfigError: the kernel cannot be had on a card, or there is no nvJPEG.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        *,
        device: torch.device | str = "cuda",
        decode_jpegs: DecodeJPEGs | None = None,
    ) -> None:
        check_interpolation(preprocessing)
        self._preprocessing = preprocessing
        self._limits = limits
        self._device = torch.device(device)
        self._decode_jpegs = decode_jpegs or load_nvjpeg()

    def decode(
        self, images: Sequence[bytes], beat: Callable[[], None] = lambda: None
    ) -> CardFrames:
        """Decodes, orients, resizes and crops encoded images of any format.

        Args:
            images: encoded.
            beat: is called whenever some images were tried on the card, and before each one that
                is decoded on the CPU.
        """
        outcomes: list[tuple[int, int] | RecordError | None] = [None] * len(images)
        frames: dict[int, torch.Tensor] = {}
        orientations: dict[int, int] = {}
        portions: list[list[int]] = []
        room = 0
        for number, data in enumerate(images):
            if (header := self._card_header(data)) is None:
                continue
            orientations[number], num_pixels = header
            if num_pixels > room:
                portions.append([])
                room = _MAX_PORTION_PIXELS
            portions[-1].append(number)
            room -= num_pixels
        for portion in portions:
            for number, (size, frame) in self._on_card(portion, images, orientations, beat).items():
                outcomes[number], frames[number] = size, frame
        for number, data in enumerate(images):
            if outcomes[number] is None:
                beat()
                try:
                    decoded = decode_image(data, self._preprocessing, self._limits)
                except RecordError as error:
                    outcomes[number] = error
                else:
                    outcomes[number] = (decoded.width, decoded.height)
                    frames[number] = torch.from_numpy(decoded.frame).to(self._device)
        side = self._preprocessing.image_size
        empty = torch.empty((0, side, side, 3), dtype=torch.uint8, device=self._device)
        joined = torch.stack([frames[number] for number in sorted(frames)]) if frames else empty
        if self._device.type == "cuda":
            # Whoever takes them from here works in queues of its own.
            torch.cuda.current_stream(self._device).synchronize()
        return CardFrames(joined, [each for each in outcomes if each is not None])

    def _on_card(
        self,
        numbers: list[int],
        images: Sequence[bytes],
        orientations: Mapping[int, int],
        beat: Callable[[], None],
    ) -> _Fitted:
        """Returns those of the numbered images that the card can decode and has room for."""
        fitted = self._fitted(numbers, images, orientations)
        beat()
        if fitted is not None:
            return fitted
        if len(numbers) == 1:
            return {}
        half = len(numbers) // 2
        first = self._on_card(numbers[:half], images, orientations, beat)
        return first | self._on_card(numbers[half:], images, orientations, beat)

    def _fitted(
        self, numbers: list[int], images: Sequence[bytes], orientations: Mapping[int, int]
    ) -> _Fitted | None:
        """Returns None where one is damaged, and nothing says which, or there is too little room.

        What was decoded in full is off the card then, so that fewer at once may fit.
        """
        try:
            decoded = self._decode_jpegs([images[number] for number in numbers])
        except RuntimeError:
            return None
        try:
            return self._fit_groups(numbers, decoded, orientations)
        except torch.OutOfMemoryError:
            return None

    def _fit_groups(
        self, numbers: list[int], decoded: list[torch.Tensor], orientations: Mapping[int, int]
    ) -> _Fitted:
        """Orients, resizes and crops decoded images, those of one size together."""
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for place, number in enumerate(numbers):
            decoded[place] = orient(decoded[place], orientations[number])
            height, width = decoded[place].shape[1:]
            groups[width, height, orientations[number]].append(place)
        fitted: _Fitted = {}
        for (width, height, _), places in groups.items():
            most = max(1, _MAX_GROUP_PIXELS // (height * width))
            for start in range(0, len(places), most):
                alike = places[start : start + most]
                frames = fit(torch.stack([decoded[at] for at in alike]), self._preprocessing)
                for place, frame in zip(alike, frames, strict=True):
                    fitted[numbers[place]] = ((width, height), frame)
        return fitted

    def _card_header(self, data: bytes) -> tuple[int, int] | None:
        """Returns orientation and pixels of an image for the card; None for one for the CPU."""
        is_whole = data[-64:].rstrip(b"\0").endswith(_END_OF_IMAGE)
        if len(data) > self._limits.max_bytes or not is_whole or detect_type(data) != "JPEG":
            return None
        try:
            with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
                check_size(*image.size, self._limits)
                is_plain = image.mode in ("RGB", "L") and image.info.get("adobe_transform", 1) == 1
                if not (is_plain and fits_card(self._preprocessing, *image.size)):
                    return None
                return orientation_of(image), image.width * image.height
        except Exception:  # noqa: BLE001  Pillow's decoder says what is wrong with it
            return None


def load_nvjpeg() -> DecodeJPEGs:
    """Returns nvJPEG by torchvision.

    Raises:
        ConfigError: torchvision is not installed, or not for this build of torch.
    """
    try:
        io_module = importlib.import_module("torchvision.io")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"gpu_decode needs torchvision, built for CUDA like torch {torch.__version__}: "
            f"pip install 'effnet-batch[nvjpeg]' ({error})"
        ) from error

    def decode(images: list[bytes]) -> list[torch.Tensor]:
        files = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
        return list(io_module.decode_jpeg(files, mode=io_module.ImageReadMode.RGB, device="cuda"))

    return decode


def check_interpolation(preprocessing: Preprocessing) -> None:
    """Raises ConfigError where a card has no such kernel."""
    if preprocessing.interpolation not in CARD_INTERPOLATIONS:
        raise ConfigError(
            f"gpu_decode resizes {' or '.join(CARD_INTERPOLATIONS)}, and these weights want "
            f"{preprocessing.interpolation}; leave --gpu-decode out"
        )


def fits_card(preprocessing: Preprocessing, width: int, height: int) -> bool:
    """Returns whether a source of this size is resized on a card; an extreme shape is not."""
    resized_width, resized_height = preprocessing.resized_size(width, height)
    return resized_width * resized_height <= _MAX_OVERHANG * preprocessing.image_size**2


def orient(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turns [..., H, W] upright by its EXIF orientation, 1..8."""
    if orientation >= 5:
        pixels = pixels.transpose(-2, -1)
    flips_x, flips_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    dims = [dim for dim, flips in ((-1, flips_x), (-2, flips_y)) if flips]
    return pixels.flip(dims) if dims else pixels


def fit(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Resizes and crops images of one size, with the geometry of `image.decode_image`.

    Args:
        pixels: uint8 [N, 3, H, W], upright.
        preprocessing: of `CARD_INTERPOLATIONS`.

    Returns:
        uint8 [N, S, S, 3], contiguous, on the same device.
    """
    size = preprocessing.image_size
    width, height = preprocessing.resized_size(pixels.shape[3], pixels.shape[2])
    resized = functional.interpolate(
        pixels.float(), (height, width), mode=preprocessing.interpolation, antialias=True
    )
    left, top = preprocessing.crop_origin(width, height)
    inside = resized[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
    above, before = max(-top, 0), max(-left, 0)
    below, behind = size - above - inside.shape[2], size - before - inside.shape[3]
    padded = functional.pad(inside, (before, behind, above, below))
    return padded.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
