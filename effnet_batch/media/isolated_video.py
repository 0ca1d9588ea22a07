"""Decoding a video in a killable child process, for one that may kill or hang its decoder.

The child inherits the open file of the video. What it answers (`effnet_batch.media.video_process`)
is checked against what can be right.
"""

import contextlib
import dataclasses
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from effnet_batch.errors import CrashedError, TimeoutRecordError
from effnet_batch.media.child_process import (
    ChildGoneError,
    ChildProcess,
    DeadlineError,
    NonsenseError,
    explain_death,
)
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.decoder_process import KIND_ERRORS, KIND_READY, MAX_MESSAGE_BYTES, REQUEST
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.video import CPU, Frame, VideoInfo
from effnet_batch.media.video_process import (
    KIND_END,
    KIND_FRAME,
    KIND_PROGRESS,
    KIND_TIMES,
    KIND_VIDEO,
    MESSAGE,
)

_MODULE: Final = "effnet_batch.media.video_process"
_INFO_KINDS: Final[dict[str, Any]] = {
    "container": str,
    "codec": str,
    "pixel_format": str,
    "width": int,
    "height": int,
    "num_frames": int,
    "start_seconds": float,
    "duration_seconds": float,
    "fps": float | None,
}


@contextlib.contextmanager
def open_isolated_video(
    file: BinaryIO, limits: VideoLimits, *, timeout_seconds: float, memory_bytes: int
) -> Iterator["IsolatedVideo"]:
    """Opens a video like `open_video`, in a child process that ends with the context.

    Args:
        file: the whole video in an open file with a descriptor that nobody else reads from
            meanwhile, such as `storage.spool` makes. The child gets it as it is, so give it none
            that matters to somebody else.
        limits: what a video may cost.
        timeout_seconds: longest wait for the child's next sign of life.
        memory_bytes: address space that the child may take on top of what it has mapped before.

    Raises:
        RecordError: whatever `open_video` raised in the child.
        TimeoutRecordError: no answer within the limit; the child was killed.
        CrashedError: the child died; names the signal.
        OutOfMemoryError: over the limit on memory, or killed by the system for want of it.
        JobError: the child cannot be started at all, which is no fault of the video.
    """
    settings = {
        "limits": dataclasses.asdict(limits),
        "timeout_seconds": timeout_seconds,
        "memory_bytes": memory_bytes,
        "video_descriptor": file.fileno(),
    }
    ready = MESSAGE.pack(KIND_READY, 0, 0, 0, 0)
    child = ChildProcess(_MODULE, json.dumps(settings), ready, descriptors=[file.fileno()])
    try:
        yield IsolatedVideo(child, limits, timeout_seconds)
    finally:
        child.end()


class IsolatedVideo:
    """A video in a child process, to be used like `VideoReader`; made by `open_isolated_video`.

    Attributes:
        decoder: what decodes it, which is a CPU.
    """

    decoder = CPU

    def __init__(self, child: ChildProcess, limits: VideoLimits, timeout_seconds: float) -> None:
        self._child = child
        self._limits = limits
        self._timeout_seconds = timeout_seconds
        self._is_partial = False
        with self._deaths():
            self.info: VideoInfo = self._read_info()
            self.pts_seconds: npt.NDArray[np.float64] = self._read_times()
        self._check_info()

    @property
    def is_partial(self) -> bool:
        """Whether the file is cut or damaged, as far as the frames read up to now tell."""
        return self._is_partial

    def read(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *recipes: Preprocessing | None
    ) -> Iterator[Frame]:
        """Decodes the given frames like `VideoReader.read`; each reading is to be finished.

        Raises:
            RecordError: as for `VideoReader.read` and `open_isolated_video`.
        """
        wanted = [int(index) for index in indices]
        if not wanted:
            return
        request = {
            "indices": wanted,
            "recipes": [recipe and recipe.to_dict() for recipe in recipes],
        }
        with self._deaths():
            self._ask(json.dumps(request).encode())
        allowed = iter(wanted)
        forms, last = deque(recipes), -1
        while True:
            with self._deaths():
                kind, width, height, index, payload = self._receive(3 * self._limits.max_pixels)
                is_new = len(forms) == len(recipes)
                if kind == KIND_END and is_new:
                    self._is_partial |= bool(index)
                    return
                recipe = forms.popleft()
                side = recipe.image_size if recipe else None
                if (
                    kind != KIND_FRAME
                    # Looking for it also uses up what comes before it.
                    or (index not in allowed if is_new else index != last)
                    or len(payload) != 3 * width * height
                    or not payload
                    or (side and (width, height) != (side, side))
                ):
                    raise NonsenseError(f"a frame of {width}x{height} pixels, number {index}")
            last = index
            forms = forms or deque(recipes)
            yield Frame(
                index=index,
                pts_seconds=float(self.pts_seconds[index]),
                pixels=np.frombuffer(payload, np.uint8).reshape(height, width, 3),
            )

    def _ask(self, data: bytes) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        # A child that gives up while receiving closes the pipe, and its answer is still to be read.
        with contextlib.suppress(ChildGoneError):
            self._child.write(REQUEST.pack(len(data)), deadline)
            self._child.write(data, deadline)

    def _receive(self, max_bytes: int) -> tuple[int, int, int, int, bytearray]:
        kind = KIND_PROGRESS
        while kind == KIND_PROGRESS:
            deadline = time.monotonic() + self._timeout_seconds
            head = self._child.read(MESSAGE.size, deadline)
            kind, width, height, index, length = MESSAGE.unpack(head)
        if length > max(max_bytes, MAX_MESSAGE_BYTES):
            raise NonsenseError(f"an answer of {length:,} bytes")
        payload = self._child.read(length, deadline)
        if kind in KIND_ERRORS:
            message = payload.decode("utf-8", errors="replace")
            raise KIND_ERRORS[kind](" ".join(message.split()))
        return kind, width, height, index, payload

    def _read_info(self) -> VideoInfo:
        kind, *_, payload = self._receive(MAX_MESSAGE_BYTES)
        try:
            values = json.loads(payload)
            if kind != KIND_VIDEO or not all(
                isinstance(values[name], expected) for name, expected in _INFO_KINDS.items()
            ):
                raise NonsenseError("no description of a video")
            return VideoInfo(**values)
        except (ValueError, TypeError, KeyError):
            raise NonsenseError("no description of a video") from None

    def _read_times(self) -> npt.NDArray[np.float64]:
        kind, *_, payload = self._receive(8 * self._limits.max_packets)
        if kind != KIND_TIMES or len(payload) % 8 or not payload:
            raise NonsenseError("no presentation times")
        return np.frombuffer(payload, "<f8").astype(np.float64)

    def _check_info(self) -> None:
        times = self.pts_seconds
        if (
            not 0 < self.info.width * self.info.height <= self._limits.max_pixels
            or self.info.num_frames != len(times)
            or not (np.isfinite(times).all() and (np.diff(times) > 0).all())
        ):
            raise CrashedError("the decoder's process went wrong: an impossible video")

    @contextlib.contextmanager
    def _deaths(self) -> Iterator[None]:
        """Turns the child's end into the record's error."""
        try:
            yield
        except DeadlineError:
            raise TimeoutRecordError(
                f"decoding stood still for {self._timeout_seconds:g} s and was ended"
            ) from None
        except ChildGoneError:
            raise explain_death(self._child.wait()) from None
        except NonsenseError as error:
            raise CrashedError(f"the decoder's process went wrong: {error}") from None
