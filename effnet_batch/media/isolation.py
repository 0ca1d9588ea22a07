"""Decoding in one killable child process, for images that may kill or hang their decoder.

What the child answers (`effnet_batch.media.decoder_process`) is checked against what can be right.
"""

import contextlib
import dataclasses
import json
import time
from types import TracebackType
from typing import Final, Self

import numpy as np

from effnet_batch.errors import (
    CrashedError,
    OutOfMemoryError,
    RecordError,
    TimeoutRecordError,
    TooLargeError,
)
from effnet_batch.media.child_process import (
    ChildGoneError,
    ChildProcess,
    DeadlineError,
    NonsenseError,
    explain_death,
)
from effnet_batch.media.decoder_process import (
    ANSWER,
    KIND_ERRORS,
    KIND_IMAGE,
    KIND_READY,
    MAX_MESSAGE_BYTES,
    REQUEST,
)
from effnet_batch.media.image import DecodedImage, ImageLimits
from effnet_batch.media.preprocess import Preprocessing

_MODULE: Final = "effnet_batch.media.decoder_process"


class IsolatedDecoder:
    """Decodes like `decode_image`, in a child process that is replaced when it dies.

    One caller at a time: give every thread a decoder of its own. The child starts with the first
    image and serves until one kills it or memory runs out. A death after earlier images is tried
    once more in a fresh child, so that damage left by one image is not blamed on the next.

    Attributes:
        num_started: child processes started so far.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        timeout_seconds: float,
        memory_bytes: int,
    ) -> None:
        """Prepares a decoder; no process is started yet.

        Args:
            preprocessing: as for `decode_image`.
            limits: as for `decode_image`.
            timeout_seconds: wall-clock limit for one image, its transfer included.
            memory_bytes: address space that one image may take on top of what the idle child has
                mapped, the encoded image included.
        """
        if timeout_seconds <= 0 or memory_bytes <= 0:
            raise ValueError(
                f"timeout_seconds and memory_bytes must be positive, "
                f"got {timeout_seconds} and {memory_bytes}"
            )
        self._preprocessing = preprocessing
        self._limits = limits
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._child: ChildProcess | None = None
        self.num_started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """Ends the child. A later `decode` starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def decode(self, data: bytes) -> DecodedImage:
        """Decodes one encoded image in the child.

        Raises:
            RecordError: whatever `decode_image` raised in the child.
            TimeoutRecordError: no answer within the limit; the child was killed.
            CrashedError: the child died; names the signal.
            OutOfMemoryError: over the limit on memory, or killed by the system for want of it.
            JobError: the child cannot be started at all, which is no fault of the image.
        """
        if len(data) > self._limits.max_bytes:
            raise TooLargeError(  # The child would say so too, after a transfer for nothing.
                f"the image has {len(data):,} bytes; at most {self._limits.max_bytes:,} are allowed"
            )
        has_served = self._child is not None and self._child.is_alive()
        try:
            return self._decode_once(data)
        except (CrashedError, OutOfMemoryError):
            if not has_served:
                raise
        return self._decode_once(data)

    def _decode_once(self, data: bytes) -> DecodedImage:
        child = self._running_child()
        deadline = time.monotonic() + self._timeout_seconds
        max_bytes = max(3 * self._preprocessing.image_size**2, MAX_MESSAGE_BYTES)
        try:
            _ask(child, data, deadline)
            return self._open_answer(*_read_answer(child, max_bytes, deadline))
        except DeadlineError:
            self.close()
            raise TimeoutRecordError(
                f"decoding took longer than {self._timeout_seconds:g} s and was ended"
            ) from None
        except ChildGoneError:
            exit_status = child.wait()
            self.close()
            raise explain_death(exit_status) from None
        except NonsenseError as error:
            self.close()
            raise CrashedError(f"the decoder's process went wrong: {error}") from None
        except OutOfMemoryError:
            self.close()  # Its memory is in pieces; the next image gets a whole one.
            raise
        except RecordError:
            raise
        except BaseException:
            self.close()  # Interrupted: a late answer must not be taken for the next image's.
            raise

    def _running_child(self) -> ChildProcess:
        if self._child is None or not self._child.is_alive():
            self.close()
            settings = {
                "preprocessing": self._preprocessing.to_dict(),
                "limits": dataclasses.asdict(self._limits),
                "timeout_seconds": self._timeout_seconds,
                "memory_bytes": self._memory_bytes,
            }
            ready = ANSWER.pack(KIND_READY, 0, 0, 0)
            self._child = ChildProcess(_MODULE, json.dumps(settings), ready)
            self.num_started += 1
        return self._child

    def _open_answer(self, kind: int, width: int, height: int, payload: bytearray) -> DecodedImage:
        if kind in KIND_ERRORS:
            message = payload.decode("utf-8", errors="replace")
            raise KIND_ERRORS[kind](" ".join(message.split()))
        size = self._preprocessing.image_size
        if kind != KIND_IMAGE or len(payload) != 3 * size * size:
            raise NonsenseError(f"an answer of kind {kind} with {len(payload)} bytes")
        if not 0 < width * height <= self._limits.max_pixels:
            raise NonsenseError(f"an image of {width}x{height} pixels")
        frame = np.frombuffer(payload, dtype=np.uint8).reshape(size, size, 3)
        return DecodedImage(frame=frame, width=width, height=height)


def _ask(child: ChildProcess, data: bytes, deadline: float) -> None:
    # A child that gives up while receiving closes the pipe, and its answer is still to be read.
    with contextlib.suppress(ChildGoneError):
        child.write(REQUEST.pack(len(data)), deadline)
        child.write(data, deadline)


def _read_answer(
    child: ChildProcess, max_payload_bytes: int, deadline: float
) -> tuple[int, int, int, bytearray]:
    kind, width, height, length = ANSWER.unpack(child.read(ANSWER.size, deadline))
    if length > max_payload_bytes:
        raise NonsenseError(f"an answer of {length:,} bytes")
    return kind, width, height, child.read(length, deadline)
