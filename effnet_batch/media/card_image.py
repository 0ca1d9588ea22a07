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
from collections.abc import Callable, Sequence
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
        if preprocessing.interpolation not in CARD_INTERPOLATIONS:
            raise ConfigError(
                f"gpu_decode resizes {' or '.join(CARD_INTERPOLATIONS)}, and these weights want "
                f"{preprocessing.interpolation}; leave --gpu-decode out"
            )
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
            beat: is called whenever another image was decoded on the CPU.
        """
        outcomes: list[tuple[int, int] | RecordError | None] = [None] * len(images)
        frames: dict[int, torch.Tensor] = {}
        orientations = {
            number: orientation
            for number, data in enumerate(images)
            if (orientation := self._card_orientation(data)) is not None
        }
        groups: dict[tuple[int, int, int], list[tuple[int, torch.Tensor]]] = defaultdict(list)
        for number, pixels in self._decoded([*orientations], images).items():
            upright = orient(pixels, orientations[number])
            height, width = upright.shape[1:]
            outcomes[number] = (width, height)
            groups[height, width, orientations[number]].append((number, upright))
        for (height, width, _), members in groups.items():
            most = max(1, _MAX_GROUP_PIXELS // (height * width))
            for start in range(0, len(members), most):
                alike = members[start : start + most]
                fitted = fit(torch.stack([each for _, each in alike]), self._preprocessing)
                frames.update(zip((number for number, _ in alike), fitted, strict=True))
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
        size = self._preprocessing.image_size
        empty = torch.empty((0, size, size, 3), dtype=torch.uint8, device=self._device)
        joined = torch.stack([frames[number] for number in sorted(frames)]) if frames else empty
        if self._device.type == "cuda":
            # Whoever takes them from here works in queues of its own.
            torch.cuda.current_stream(self._device).synchronize()
        return CardFrames(joined, [each for each in outcomes if each is not None])

    def _decoded(self, numbers: list[int], images: Sequence[bytes]) -> dict[int, torch.Tensor]:
        """Returns those of the numbered images that the card can decode."""
        if not numbers:
            return {}
        try:
            decoded = self._decode_jpegs([images[number] for number in numbers])
        except torch.OutOfMemoryError:
            if len(numbers) == 1:
                raise
        except RuntimeError:
            # One is damaged, and nothing says which; Pillow decides what becomes of it.
            if len(numbers) == 1:
                return {}
        else:
            return dict(zip(numbers, decoded, strict=True))
        half = len(numbers) // 2
        return self._decoded(numbers[:half], images) | self._decoded(numbers[half:], images)

    def _card_orientation(self, data: bytes) -> int | None:
        """Returns the EXIF orientation of an image for the card; None for one for the CPU."""
        is_whole = data[-64:].rstrip(b"\0").endswith(_END_OF_IMAGE)
        if len(data) > self._limits.max_bytes or not is_whole or detect_type(data) != "JPEG":
            return None
        try:
            with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
                check_size(*image.size, self._limits)
                is_plain = image.mode in ("RGB", "L") and image.info.get("adobe_transform", 1) == 1
                width, height = self._preprocessing.resized_size(*image.size)
                is_bounded = width * height <= _MAX_OVERHANG * self._preprocessing.image_size**2
                return orientation_of(image) if is_plain and is_bounded else None
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
