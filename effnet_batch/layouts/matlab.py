"""Numbers in MATLAB's files of version 5 (and 6, 7), read without running or importing anything.

Format: MathWorks, *MAT-File Format*, chapter 1. Version 7.3 is HDF5 and refused.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

_HEADER_BYTES: Final = 128
_ENDIAN: Final = {b"IM": "<", b"MI": ">"}
_TYPES: Final = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_NUMERIC_CLASSES: Final = range(6, 16)
_MAX_BYTES: Final = 256 << 20


def read_matrices(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the matrices of real numbers in a file, by their name; all else is passed over.

    Raises:
        ValueError: the file is damaged, of version 7.3, or no MAT-file.
    """
    order = _ENDIAN.get(data[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None or data[:10] == b"MATLAB 7.3":
        raise ValueError("no MAT-file of version 5 to 7; save it with -v7")
    found = {}
    try:
        for kind, content in _elements(data[_HEADER_BYTES:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                content = unpacker.decompress(content, _MAX_BYTES)
                if unpacker.unconsumed_tail:
                    raise ValueError(f"a matrix unpacks to more than {_MAX_BYTES} bytes")
                ((kind, content),) = _elements(content, order)
            if kind == _MATRIX and (named := _matrix(content, order)):
                found[named[0]] = named[1]
    except (struct.error, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"the MAT-file is damaged: {error}") from None
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields type and content of the elements that stand one behind the other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # at most 4 bytes, which stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data):
            raise ValueError("the MAT-file is cut short")
        yield kind, data[start : start + size]
        place = start + size
        if kind != _COMPRESSED:
            place += -place % 8


def _matrix(data: bytes, order: str) -> tuple[str, npt.NDArray[np.generic]] | None:
    """Returns name and values of a numeric matrix; None for texts, cells and the like."""
    parts = list(_elements(data, order))
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in _NUMERIC_CLASSES:
        return None
    shape = np.frombuffer(parts[1][1], f"{order}i4")
    kind, content = parts[3]
    if kind not in _TYPES:
        raise ValueError(f"the MAT-file holds numbers of the unknown type {kind}")
    values = np.frombuffer(content, f"{order}{_TYPES[kind]}")
    return parts[2][1].decode(), values.reshape(shape, order="F")
