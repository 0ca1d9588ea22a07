"""What all shard formats share: members, their names, how they are counted, and the stream."""

import dataclasses
import errno
import hashlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from effnet_batch.errors import FetchError, RecordError
from effnet_batch.schema import KIND_IMAGE, KIND_VIDEO

IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
"""Extensions, in lower case, by which a file or member counts as an image."""

VIDEO_EXTENSIONS: Final = frozenset(
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg"}
)
"""The same for videos: the containers that are decoded, under their usual names."""

MAX_NAME_CHARS: Final = 4096
"""Longer member names are cut here and told apart by a hash, before their extension."""

MAX_HELD_BYTES: Final = 32 << 20
"""Larger videos are not held in memory but spooled to this machine's disk."""

MAX_EXPANSION: Final = 100
"""How many times its own size a compressed shard may unpack to, over ``4 * max_bytes``."""

IsWanted = Callable[[str | None, int], bool]
"""(name, occurrence) of a member -> whether to read it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One image or video of a shard, or why there is none: one of data, file and error is set."""

    name: str | None
    """Name inside the shard as valid UTF-8; None stands for all that could not be read."""
    occurrence: int = 0
    """How often this name came before in the same shard."""
    data: bytes | None = None
    """The encoded image or video."""
    file: BinaryIO | None = None
    """A video over `MAX_HELD_BYTES`, seekable; closed by who takes the member."""
    error: RecordError | None = None
    """Why there are no bytes."""
    size_bytes: int | None = None
    """Size of the encoded bytes as found, or as the shard declares it."""
    num_members: int | None = None
    """Number of members of the shard; set on its last member only."""
    label: str | None = None
    """The label the shard gives this member."""


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """The label of the member directly before it."""

    text: str


class Census:
    """Counts the members of a shard and asks which of them are wanted."""

    def __init__(self, is_wanted: IsWanted) -> None:
        self._is_wanted = is_wanted
        self._num_by_name: dict[str, int] = {}
        self.num_members = 0

    def admit(self, name: str) -> int | None:
        """Counts a member; returns its occurrence, or None when it is not wanted."""
        occurrence = self._num_by_name.get(name, 0)
        self._num_by_name[name] = occurrence + 1
        self.num_members += 1
        return occurrence if self._is_wanted(name, occurrence) else None

    def rest(self, error: RecordError) -> Member | None:
        """Counts and returns the record that stands for all that could not be read."""
        self.num_members += 1
        return Member(None, error=error) if self._is_wanted(None, 0) else None


class Source(io.RawIOBase):
    """A read-only view of a shard's stream that remembers whether reading it ever failed.

    Format libraries catch, replace or swallow exceptions of the stream under them; a failed
    request must not come out as a damaged file.

    Attributes:
        uri: canonical URI of the shard.
        size_bytes: size of the whole shard.
        failure: the first exception the stream raised.
    """

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self._stream = stream
        self.uri = uri
        self.failure: Exception | None = None
        self.size_bytes = self._seek(0, io.SEEK_END)
        self._seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads ``size`` bytes, fewer only at the end, all when negative."""
        missing = self.size_bytes if size is None or size < 0 else size
        pieces: list[bytes] = []
        try:
            # An unbuffered stream may give less than asked for.
            while missing and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except Exception as error:
            raise self._fail(error) from error

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a writable buffer; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position; one before the start is the shard's fault, not the stream's."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size_bytes}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, f"position {origin + offset} is before the start")
        return self._seek(origin + offset)

    def _seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            self._stream.seek(offset, whence)
            return self._stream.tell()
        except Exception as error:
            raise self._fail(error) from error

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._stream.tell()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def _fail(self, error: Exception) -> Exception:
        failure: Exception = error
        if isinstance(error, OSError):
            failure = FetchError(
                f"{self.uri}: reading failed: {error}", error_type=type(error).__name__
            )
        self.failure = self.failure or failure
        return failure


def medium_of(name: str) -> str | None:
    """Returns which of `schema.MEDIA` a path's extension names; macOS's ``._`` twins name none."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    if not (dot and stem) or base.startswith("._"):
        return None
    if extension.lower() in IMAGE_EXTENSIONS:
        return KIND_IMAGE
    return KIND_VIDEO if extension.lower() in VIDEO_EXTENSIONS else None


def member_name(raw: bytes) -> str:
    r"""Returns a member's name as text that is valid UTF-8, has no NUL, and is bounded.

    Bytes that are not UTF-8 are written as ``\xff``. A name is a label only: it is never opened
    or joined to a path, so ``../`` stays as it is.
    """
    name = raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    if len(name) > MAX_NAME_CHARS:
        extension = name.rpartition(".")[2][:8]
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return f"{name[:MAX_NAME_CHARS]}~{digest}.{extension}"
    return name


def is_spooled(medium: str, size_bytes: int) -> bool:
    """Tells whether a member comes as a file; images always come as bytes."""
    return medium == KIND_VIDEO and size_bytes > MAX_HELD_BYTES


def max_unpacked_bytes(size_bytes: int, max_bytes: int) -> int:
    """Returns how many bytes a compressed shard of ``size_bytes`` may unpack to in all.

    The bound is a function of the whole shard's size, so that it does not move with what was
    read of it.
    """
    return 4 * max_bytes + MAX_EXPANSION * size_bytes
