"""Pictures as JPEG files."""

import io
import tempfile
from typing import Final

from PIL import Image

from effnet_batch.media.pixels import Pixels

QUALITY: Final = 90
"""Of Pillow's encoder, with colours as finely sampled as brightness (4:4:4)."""

_SPOOL_BYTES: Final = 16 << 20
"""Bytes of JPEG files that stay in memory; more go to a file without a name."""


def encode_jpeg(pixels: Pixels) -> bytes:
    """Returns uint8 [H, W, 3], RGB, as a JPEG file of `QUALITY`; the same bytes every time."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


class JpegSpool:
    """Many pictures, of which few will be wanted; 16 MiB of them in memory, the rest on disk."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115  see close
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, pixels: Pixels) -> None:
        """Takes one picture, uint8 [H, W, 3], RGB."""
        data = encode_jpeg(pixels)
        self._file.seek(self._ends[-1])
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def read(self, number: int) -> bytes:
        """Returns one of the pictures as a JPEG file; the first is 0."""
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])

    def close(self) -> None:
        """Lets go of all pictures."""
        self._file.close()
