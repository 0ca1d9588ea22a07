"""The child's side of isolated decoding, and the frames that both sides exchange.

::

    parent -> child   length (u64), encoded image
    child -> parent   kind (u8), width (u32), height (u32), length (u64), payload

The payload is the pixels of the frame (`KIND_IMAGE`), nothing (`KIND_READY`) or a message in UTF-8
(`KIND_ERRORS`). Integers are little-endian.
"""

import json
import os
import resource
import signal
import struct
from pathlib import Path
from typing import BinaryIO, Final

from effnet_batch.errors import (
    DecodeError,
    OutOfMemoryError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing

REQUEST: Final = struct.Struct("<Q")
ANSWER: Final = struct.Struct("<BIIQ")
KIND_READY: Final = 0
KIND_IMAGE: Final = 1
KIND_ERRORS: Final[dict[int, type[RecordError]]] = {
    2: DecodeError,
    3: UnsupportedError,
    4: TooLargeError,
    5: OutOfMemoryError,
}
MAX_MESSAGE_BYTES: Final = 4096

ERROR_KINDS: Final = {error: kind for kind, error in KIND_ERRORS.items()}
# The kernel ends an orphan in a hung decoder this long after its parent would have.
ORPHAN_GRACE_SECONDS: Final = 30.0


def serve(settings_json: str) -> None:
    """Answers one image after the other until the parent closes the pipe or is gone.

    Args:
        settings_json: ``preprocessing`` and ``limits`` as their fields, ``timeout_seconds``, and
            ``memory_bytes``: address space allowed on top of what is mapped before the first image.
    """
    settings = json.loads(settings_json)
    preprocessing = Preprocessing(**settings["preprocessing"])
    limits = ImageLimits(**settings["limits"])
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    be_silent()
    # SIGALRM keeps its default action, which also ends a decoder that never returns to Python.
    alarm_seconds = settings["timeout_seconds"] + ORPHAN_GRACE_SECONDS
    limit_resources(settings["memory_bytes"])
    _send(answers, KIND_READY)
    while header := requests.read(REQUEST.size):
        signal.setitimer(signal.ITIMER_REAL, alarm_seconds)
        try:
            data = requests.read(REQUEST.unpack(header)[0])
        except MemoryError:
            # The rest of the image is still in the pipe: there is no next request to find.
            message = "out of memory before decoding: the encoded image alone is over the limit"
            _send(answers, ERROR_KINDS[OutOfMemoryError], payload=message.encode())
            return
        try:
            image = decode_image(data, preprocessing, limits)
        except RecordError as error:
            _send(answers, ERROR_KINDS[type(error)], payload=encode_message(error))
        else:
            _send(answers, KIND_IMAGE, image.width, image.height, image.frame.tobytes())
        signal.setitimer(signal.ITIMER_REAL, 0)


def be_silent() -> None:
    """Closes both outputs: what C libraries print about damage must not stand between answers."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def limit_resources(memory_bytes: int) -> None:
    """Bounds this process: address space on top of what is mapped now; no files, no core dump."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most_bytes = num_pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # It has no file to write; pipes and devices are not counted.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def encode_message(error: RecordError) -> bytes:
    """Returns what the parent is told of an error."""
    return str(error).encode(errors="replace")[:MAX_MESSAGE_BYTES]


def _send(
    answers: BinaryIO, kind: int, width: int = 0, height: int = 0, payload: bytes = b""
) -> None:
    answers.write(ANSWER.pack(kind, width, height, len(payload)) + payload)
    answers.flush()
