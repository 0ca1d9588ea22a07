"""Reads a file of weights without running anything that stands in it.

safetensors first; a pickle is read by torch's ``weights_only`` unpickler, which builds tensors and
plain containers and refuses everything else.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from effnet_batch.errors import WeightsError
from effnet_batch.models.keys import unwrap

MAX_WEIGHTS_BYTES: Final = 4 << 30
"""Larger files are refused; EfficientNet-L2 has 1.9 GB."""
_SCALAR: Final = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: Final[list[Any]] = [
    # The same function under its module's name in numpy 1 and in numpy 2.
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]
"""What training scripts keep beside the tensors, as a best loss; plain numbers, never run."""


def read_state_dict(path: Path, source: str) -> dict[str, torch.Tensor]:
    """Returns the named tensors of a safetensors or torch file, on the CPU.

    The tensors may be views of the mapped file: copy them before the file goes away.

    Args:
        path: a local file.
        source: what the user called it, for errors.

    Raises:
        WeightsError: the file is missing, damaged, too large, or holds other things than tensors.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read weights {source}: {error.strerror}") from error
    if size_bytes > MAX_WEIGHTS_BYTES:
        raise WeightsError(
            f"weights {source} have {size_bytes} bytes, allowed are {MAX_WEIGHTS_BYTES}"
        )
    if len(head) == 16 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size_bytes:
        loaded: object = _load_safetensors(path, source)
    else:
        loaded = _load_pickle(path, source, is_zip=head.startswith(b"PK"))
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"weights {source} hold a {type(loaded).__name__}, expected a state dict; "
            "save model.state_dict()"
        )
    state: Mapping[object, object] = unwrap(loaded)
    tensors = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"weights {source} hold a {type(value).__name__} under {key!r}, expected tensors "
                "only; save model.state_dict()"
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise WeightsError(f"weights {source}: {key} is not a dense tensor of numbers")
        tensors[key] = value
    return tensors


def _load_safetensors(path: Path, source: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weights {source} are damaged or cut short: {error}") from error


def _load_pickle(path: Path, source: str, *, is_zip: bool) -> object:
    """Returns what the file holds; only the current (zip) format can be mapped."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MAX_WEIGHTS_BYTES:
                raise WeightsError(
                    f"weights {source} unpack to {unpacked} bytes, allowed are {MAX_WEIGHTS_BYTES}"
                )
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message advises to run the file; ours only names what it asked for.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"{named[1]}, which is" if named else "something"
        raise WeightsError(
            f"weights {source} are no weights file, or hold {held} no tensor; nothing in it was "
            "run. Save the bare state dict, best as safetensors"
        ) from error
    except Exception as error:
        # A damaged pickle can raise nearly anything from inside the unpickler.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(
            f"weights {source} are damaged or cut short ({reason}); nothing in it was run"
        ) from error
