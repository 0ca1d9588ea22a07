"""Fine-tuning on images: what is trained on, and the classifier that comes of it."""

import hashlib
import json
from collections import Counter

import pyarrow as pa

from effnet_batch.config import FinetuneConfig
from effnet_batch.errors import InputError
from effnet_batch.ledger import Ledger
from effnet_batch.pipelines.open_images import image_limits
from effnet_batch.pipelines.prepare import prepared_data
from effnet_batch.pipelines.prepare_images import ResolvedImages
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.pipelines.splits import (
    ABOUT,
    labelled_records,
    split_records,
    training_fingerprint,
)
from effnet_batch.storage import Storage
from effnet_batch.training.image_feed import IMAGES_SCHEMA
from effnet_batch.training.images import ImageObjective
from effnet_batch.training.network import load_backbone

_COLUMNS = ("uri", "member", *ABOUT, "status", "record_id", "images_uri", "offset", "size_bytes")
_MAX_SHOWN = 5


def image_objective(
    prepared: str,
    resolved: ResolvedImages,
    config: FinetuneConfig,
    storage: Storage,
    reporter: Reporter,
) -> tuple[ImageObjective, dict[str, int]]:
    """Returns what is trained on prepared images, and how many are left out, by reason.

    Classes are the labels of the images to train on, in alphabetical order.

    Args:
        prepared: folder that the images were kept in.
        resolved: how they are shown.
        config: of the training.
        storage: reads them.
        reporter: is told how many there are.

    Raises:
        InputError: there are fewer than two classes, a split is empty, or validation has a class
            that training has not.
    """
    tables = Ledger.scan(storage, prepared_data(prepared)).live(_COLUMNS)
    rows = (row for table in tables for row in table.to_pylist())
    images, left_out = labelled_records(rows, config, storage, _parse_label)
    train, validation, lost = split_records(images, config)
    class_names = _classes(train, validation)
    samples, judged = (_numbered(part, class_names) for part in (train, validation))
    counts = Counter(samples["label"].to_pylist())
    reporter.message(
        f"training on {len(samples):,} images of {len(class_names):,} classes, "
        f"{min(counts.values()):,} to {max(counts.values()):,} each, validating on {len(judged):,}"
    )
    digest = json.dumps([resolved.fingerprint.digest, class_names])
    info = load_backbone(config.network, storage).weights_info
    assert info is not None
    objective = ImageObjective(
        network=config.network,
        optimisation=config.optimisation,
        augmentation=config.augmentation,
        storage=storage.options,
        start_sha256=info.sha256,
        fingerprint=training_fingerprint(config, digest, info.sha256, samples, judged),
        samples=samples,
        validation=judged,
        preprocessing=resolved.preprocessing,
        limits=image_limits(config.limits),
        class_names=class_names,
    )
    return objective, left_out | lost


def _parse_label(text: str | None) -> str | None:
    return (text or "").strip() or None


def _classes(train: pa.Table, validation: pa.Table) -> tuple[str, ...]:
    names = sorted(set(train["label"].to_pylist()))
    if not len(validation):
        raise InputError("no image is left to validate on; label more, or give some the split val")
    if len(names) < 2:
        raise InputError(
            f"images to train on are of {len(names)} class ({', '.join(names) or '-'}); two are "
            "needed at least. Labels come from the column label, from the folders' names with "
            "--label-from parent, or from --labels"
        )
    if strange := sorted(set(validation["label"].to_pylist()) - set(names)):
        raise InputError(
            f"{len(strange)} classes stand in validation alone, {', '.join(strange[:_MAX_SHOWN])}: "
            "give every class images of the split train, or take these out of val"
        )
    return tuple(names)


def _numbered(images: pa.Table, class_names: tuple[str, ...]) -> pa.Table:
    """Returns rows of `IMAGES_SCHEMA`."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[name] for name in images["label"].to_pylist()]
    columns = {"uri": images["images_uri"], "label": pa.array(labels, pa.int32())}
    return pa.Table.from_arrays(
        [columns[name] if name in columns else images[name] for name in IMAGES_SCHEMA.names],
        schema=IMAGES_SCHEMA,
    )


def export_classifier(storage: Storage, best: str, target: str) -> str:
    """Copies the best checkpoint, which is complete; returns its SHA-256."""
    data = storage.read(best)
    storage.write(target, data)
    return hashlib.sha256(data).hexdigest()
