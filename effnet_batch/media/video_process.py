"""The child's side of isolated video decoding, and the messages that both sides exchange.

::

    child -> parent   KIND_PROGRESS  now and then, before any answer: it is still at work
                      KIND_VIDEO  payload: `VideoInfo` in JSON
                      KIND_TIMES  payload: presentation times, float64
    and then, any number of times,
    parent -> child   length (u64), JSON: ``indices`` and ``recipes``
    child -> parent   KIND_FRAME  width, height, index, payload: pixels; any number of times
                      KIND_END    index: 1 if the video is partial, else 0

The video is an open file that the child inherits. Every message of the child has the head
`MESSAGE`; an error ends the exchange, its payload being a message in UTF-8
(`decoder_process.KIND_ERRORS`). Numbers are little-endian.
"""

import dataclasses
import json
import os
import signal
import struct
import time
from typing import BinaryIO, Final

import numpy as np

from effnet_batch.errors import DecodeError, OutOfMemoryError, RecordError
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.decoder_process import (
    ERROR_KINDS,
    KIND_READY,
    ORPHAN_GRACE_SECONDS,
    REQUEST,
    be_silent,
    encode_message,
    limit_resources,
)
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.video import open_video

MESSAGE: Final = struct.Struct("<BIIQQ")
"""Kind, width, height, index, length of the payload."""
KIND_VIDEO: Final = 10
KIND_TIMES: Final = 11
KIND_FRAME: Final = 12
KIND_END: Final = 13
KIND_PROGRESS: Final = 14

_PROGRESS_SECONDS: Final = 0.1


def serve(settings_json: str) -> None:
    """Decodes one video for the parent until it closes the pipe or is gone.

    Args:
        settings_json: ``limits`` as the fields of `VideoLimits`, ``timeout_seconds``,
            ``video_descriptor``: the open file, and ``memory_bytes``: address space allowed on top
            of what is mapped before the video.
    """
    settings = json.loads(settings_json)
    requests = os.fdopen(os.dup(0), "rb")
    answers = _Answers(
        os.fdopen(os.dup(1), "wb"), settings["timeout_seconds"] + ORPHAN_GRACE_SECONDS
    )
    be_silent()
    limit_resources(settings["memory_bytes"])
    answers.send(KIND_READY)
    try:
        answers.arm()
        with (
            open(settings["video_descriptor"], "rb") as file,
            open_video(file, VideoLimits(**settings["limits"]), answers.progress) as reader,
        ):
            answers.send(KIND_VIDEO, payload=json.dumps(dataclasses.asdict(reader.info)).encode())
            answers.send(KIND_TIMES, payload=reader.pts_seconds.astype("<f8").tobytes())
            while text := _receive(requests):
                request = json.loads(text)
                indices = np.array(request["indices"], np.int64)
                recipes = [each and Preprocessing(**each) for each in request["recipes"]]
                answers.arm()
                for frame in reader.read(indices, *recipes):
                    height, width = frame.pixels.shape[:2]
                    answers.send(KIND_FRAME, width, height, frame.index, frame.pixels.tobytes())
                    answers.arm()
                answers.send(KIND_END, index=int(reader.is_partial))
    except RecordError as error:
        kind = ERROR_KINDS.get(type(error), ERROR_KINDS[DecodeError])
        answers.send(kind, payload=encode_message(error))
    except MemoryError:
        message = "out of memory: the video or one of its frames is over the limit"
        answers.send(ERROR_KINDS[OutOfMemoryError], payload=message.encode())


class _Answers:
    """What is sent to the parent; the kernel ends this process when the next answer takes long."""

    def __init__(self, stream: BinaryIO, alarm_seconds: float) -> None:
        self._stream = stream
        self._alarm_seconds = alarm_seconds
        self._next_progress = 0.0

    def arm(self) -> None:
        """Starts the time for the next answer."""
        # SIGALRM keeps its default action, which also ends a decoder that never returns to Python.
        signal.setitimer(signal.ITIMER_REAL, self._alarm_seconds)

    def progress(self) -> None:
        """Tells the parent that work goes on, unless it was told a moment ago."""
        if time.monotonic() >= self._next_progress:
            self.send(KIND_PROGRESS)
            self.arm()
            self._next_progress = time.monotonic() + _PROGRESS_SECONDS

    def send(
        self, kind: int, width: int = 0, height: int = 0, index: int = 0, payload: bytes = b""
    ) -> None:
        """Sends one message, however long the parent takes to read it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._stream.write(MESSAGE.pack(kind, width, height, index, len(payload)))
        self._stream.write(payload)
        self._stream.flush()


def _receive(requests: BinaryIO) -> bytes:
    """Returns the next request; empty when the parent has closed the pipe."""
    head = requests.read(REQUEST.size)
    return requests.read(REQUEST.unpack(head)[0]) if len(head) == REQUEST.size else b""
