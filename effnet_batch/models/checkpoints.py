"""Loads and saves forgery checkpoints: our own files, and what others publish."""

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import Any, Final

from effnet_batch.errors import WeightsError
from effnet_batch.models.checkpoint import read_state_dict
from effnet_batch.models.checkpoint_file import build_classifier, checkpoint_bytes, read_info
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoint_layouts import (
    CHECKPOINT_LAYOUTS,
    recognise,
    to_sequence_state,
)
from effnet_batch.models.forgery_registry import (
    FORGERY_REGISTRY,
    PROTOCOLS,
    PublishedCheckpoint,
    find_published,
)
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.weights_file import WeightsFile, local_weights
from effnet_batch.storage import Storage, canonical_uri

OWN_LAYOUT: Final = "effnet_batch"
"""Layout of the files that `save_checkpoint` writes."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A forgery classifier ready to run, and everything that its scores depend on."""

    model: SequenceClassifier
    """On the CPU in float32, in evaluation mode."""
    info: CheckpointInfo
    """How to run it."""
    layout: str
    """`OWN_LAYOUT`, or a name of `checkpoint_layouts.CHECKPOINT_LAYOUTS`."""
    source: str
    """The specification that it was loaded from, without secrets."""
    sha256: str
    """Of the file, 64 hex digits."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Returns what the scores depend on, as JSON values; the name and source do not count.

        ``encoder_sha256``, ``preprocessing``, ``sampling`` and ``faces`` are what stored frame
        embeddings depend on: where they agree, another head may take them.
        """
        described = self.info.to_dict()
        for name in ("name", "licence", "training_fingerprint"):
            del described[name]
        return {
            "checkpoint_sha256": self.sha256,
            "encoder_sha256": self.model.encoder_sha256(),
            **described,
        }


def load_checkpoint(spec: str, *, storage: Storage | None = None) -> Checkpoint:
    """Loads a forgery checkpoint, our own or a published one, ready to run.

    Args:
        spec: a published name, a path (a folder holds ``model.safetensors``), a URL,
            ``hf://owner/repo[@revision][:file]``, or ``NAME=PATH`` for a file that is known to be
            the published NAME.
        storage: reads URLs; with default options if None.

    Raises:
        WeightsError: there is no such file, a person must fetch it, it is damaged, of no known
            layout, or not what it is said to be.
    """
    entry, spec = _published(spec)
    with local_weights(spec, storage or Storage()) as file:
        if entry and entry.sha256 and file.sha256 != entry.sha256:
            raise WeightsError(
                f"checkpoint {file.source} has sha256 {file.sha256}, published is {entry.sha256}: "
                "the download is damaged or the file was replaced"
            )
        info = read_info(file.path, file.source)
        if info is None:
            return _load_published(file, entry)
        if entry is not None:
            raise WeightsError(
                f"checkpoint {file.source} is one of effnet_batch's own, not {entry.name}"
            )
        tensors = read_state_dict(file.path, file.source)
        return Checkpoint(
            model=build_classifier(tensors, info.sequence, file.source),
            info=info,
            layout=OWN_LAYOUT,
            source=file.source,
            sha256=file.sha256,
        )


def save_checkpoint(
    uri: str,
    model: SequenceClassifier,
    info: CheckpointInfo,
    *,
    storage: Storage | None = None,
) -> str:
    """Writes a classifier and its description as one file, at once or not at all.

    Args:
        uri: path or URL, ending in ``.safetensors`` by custom.
        model: on any device.
        info: describes ``model``.
        storage: writes URLs; with default options if None.

    Returns:
        The SHA-256 of the file, 64 hex digits.

    Raises:
        ValueError: ``info`` describes another network.
        OutageError: the place cannot be written.
    """
    data = checkpoint_bytes(model, info)
    (storage or Storage()).write(canonical_uri(uri), data)
    return hashlib.sha256(data).hexdigest()


def _published(spec: str) -> tuple[PublishedCheckpoint | None, str]:
    """Returns the published checkpoint that is asked for, if any, and where its file is."""
    name, separator, place = spec.partition("=")
    entry = FORGERY_REGISTRY.get(name)
    if entry is not None and separator:
        return entry, place
    if entry is not None:
        if entry.url is None:
            raise WeightsError(
                f"checkpoint {name} is not fetched for you (licence: {entry.licence}): get "
                f"{entry.file} from {entry.page}, then give {name}=PATH"
            )
        return entry, entry.url
    if "://" not in spec and not Path(spec).expanduser().exists():
        near = difflib.get_close_matches(name, FORGERY_REGISTRY, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise WeightsError(f"checkpoint {spec!r} is neither a file nor a published name{hint}")
    return None, spec


def _load_published(file: WeightsFile, entry: PublishedCheckpoint | None) -> Checkpoint:
    state = read_state_dict(file.path, file.source)
    layout = recognise(state)
    if layout is None:
        raise WeightsError(
            f"checkpoint {file.source} is of no known layout; known are {OWN_LAYOUT}, "
            f"{', '.join(CHECKPOINT_LAYOUTS)}. Its first keys: {', '.join(list(state)[:5])}"
        )
    name = file.source.rstrip("/").rpartition("/")[2]
    entry = entry or find_published(file.sha256, name, layout.name)
    if entry is not None and entry.layout != layout.name:
        raise WeightsError(
            f"checkpoint {file.source} is of layout {layout.name}, but {entry.name} is of "
            f"{entry.layout}"
        )
    protocol = entry.protocol if entry else PROTOCOLS[layout.name]
    tensors = to_sequence_state(state, layout, file.source)
    return Checkpoint(
        model=build_classifier(tensors, layout.sequence, file.source),
        info=CheckpointInfo(
            name=entry.name if entry else name,
            sequence=layout.sequence,
            preprocessing=protocol.preprocessing,
            sampling=protocol.sampling,
            faces=protocol.faces,
            aggregation=protocol.aggregation,
            licence=entry.licence if entry else None,
        ),
        layout=layout.name,
        source=file.source,
        sha256=file.sha256,
    )
