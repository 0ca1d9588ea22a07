"""Readers of image datasets that come in files of their own: CIFAR-100 and Flowers-102."""

import io
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from effnet_batch.errors import InputError, RecordError
from effnet_batch.layouts.matlab import read_matrices
from effnet_batch.layouts.tree import Labelled, Packed, Tree, stem
from effnet_batch.storage import join

_CIFAR_SIDE: Final = 32
_CIFAR_ROW_BYTES: Final = 2 + 3 * _CIFAR_SIDE**2
_CIFAR_NAMES: Final = "fine_label_names.txt"
_CIFAR_PICKLES: Final = ("train", "test", "meta")
_FLOWER: Final = re.compile(r"(?P<base>.*/)?jpg/image_(?P<number>\d{5})\.jpg")
_FLOWER_LABELS: Final = "imagelabels.mat"
_FLOWER_SPLITS: Final = "setid.mat"
_FLOWER_SETS: Final = {"trnid": "train", "valid": "val", "tstid": "test"}


def is_cifar100(tree: Tree) -> bool:
    """Whether there is CIFAR-100 in either version."""
    return _cifar_folder(tree, ("train.bin",)) is not None or _has_cifar_pickles(tree)


def _has_cifar_pickles(tree: Tree) -> bool:
    return _cifar_folder(tree, _CIFAR_PICKLES) is not None


def _cifar_folder(tree: Tree, files: tuple[str, ...]) -> str | None:
    for folder in ("", "cifar-100-binary/", "cifar-100-python/"):
        if all(f"{folder}{name}" in tree.files for name in files):
            return folder
    return None


def read_cifar100(tree: Tree, notes: list[str]) -> Iterator[Packed]:
    """CIFAR-100's binary version: a row is coarse label, fine label, 32 x 32 in planes of R, G, B.

    The classes are the fine ones. There is no split ``val``: fine-tuning holds out some of train.
    """
    folder = _cifar_folder(tree, ("train.bin",))
    if folder is None:
        raise InputError(
            f"{tree.root} is the python version of CIFAR-100, which is pickle and never loaded; "
            "take the binary version (cifar-100-binary.tar.gz with train.bin, test.bin and "
            f"{_CIFAR_NAMES})"
        )
    if f"{folder}{_CIFAR_NAMES}" not in tree.files:
        raise InputError(f"{tree.root}: {_CIFAR_NAMES} is missing beside train.bin")
    names = tree.lines(f"{folder}{_CIFAR_NAMES}")
    if len(set(names)) < len(names):
        raise InputError(f"{join(tree.root, folder + _CIFAR_NAMES)} names a class twice")
    for split in ("train", "test"):
        name = f"{folder}{split}.bin"
        if name not in tree.files:
            notes.append(f"{name} is not there")
            continue
        yield Packed(split=split, images=_unpack_cifar(tree, name, names))


def _unpack_cifar(tree: Tree, name: str, names: list[str]) -> pa.Table:
    data = _bytes(tree, name)
    if not data or len(data) % _CIFAR_ROW_BYTES:
        raise InputError(
            f"{join(tree.root, name)} has {len(data):,} bytes, no multiple of "
            f"{_CIFAR_ROW_BYTES:,}: it is cut short, or no file of CIFAR-100"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_ROW_BYTES)
    labels = rows[:, 1]
    if labels.max() >= len(names):
        raise InputError(
            f"{join(tree.root, name)} holds class {labels.max()}, and {_CIFAR_NAMES} names "
            f"{len(names)}"
        )
    pixels = rows[:, 2:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)
    return pa.table(
        {
            "image": pa.array([_png(image) for image in pixels], pa.binary()),
            "label": pa.array([names[label] for label in labels.tolist()]),
        }
    )


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def is_flowers102(tree: Tree) -> bool:
    """Whether there are images named like those of Flowers-102."""
    return any(_FLOWER.fullmatch(name) for name in tree.files)


def read_flowers102(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """Oxford Flowers-102: ``jpg/image_NNNNN.jpg``, ``imagelabels.mat`` and ``setid.mat``.

    Classes have numbers only, 1 to 102; they are named with three digits, so that they sort.
    """
    matches = [
        (match, info) for name, info in tree.files.items() if (match := _FLOWER.fullmatch(name))
    ]
    bases = {match["base"] or "" for match, _ in matches}
    base = min(bases, key=lambda each: (each + _FLOWER_LABELS not in tree.files, each))
    found = {int(match["number"]): info for match, info in matches if (match["base"] or "") == base}
    labels = _numbers(tree, base, _FLOWER_LABELS, ("labels",))["labels"]
    sets = _numbers(tree, base, _FLOWER_SPLITS, tuple(_FLOWER_SETS))
    splits = {number: split for name, split in _FLOWER_SETS.items() for number in sets[name]}
    if sum(map(len, sets.values())) > len(splits):
        raise InputError(f"{join(tree.root, base + _FLOWER_SPLITS)} has an image in two sets")
    if strange := [number for number in splits if not 1 <= number <= len(labels)]:
        raise InputError(
            f"{join(tree.root, base + _FLOWER_SPLITS)} names image {strange[0]}, and "
            f"{_FLOWER_LABELS} has {len(labels):,} labels"
        )
    for number, split in sorted(splits.items()):
        if number in found:
            info, label = found[number], f"{labels[number - 1]:03}"
            yield Labelled(info=info, label=label, group=stem(info.uri), split=split)
    if absent := len(splits.keys() - found.keys()):
        notes.append(f"{absent:,} images that {_FLOWER_SPLITS} names are not there")
    if unused := len(found.keys() - splits.keys()):
        notes.append(f"{unused:,} images are in no set of {_FLOWER_SPLITS} and are left out")


def _numbers(tree: Tree, base: str, name: str, wanted: tuple[str, ...]) -> dict[str, list[int]]:
    """Returns matrices of whole numbers of a MAT-file, each as one list."""
    where = join(tree.root, base + name)
    if base + name not in tree.files:
        raise InputError(
            f"{where} is missing; Flowers-102 is jpg/, {_FLOWER_LABELS} and {_FLOWER_SPLITS}, "
            "which its page offers beside the images"
        )
    try:
        matrices = read_matrices(_bytes(tree, base + name))
        return {each: [int(value) for value in matrices[each].ravel()] for each in wanted}
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None
    except KeyError as error:
        raise InputError(f"{where} has no matrix {error}") from None


def _bytes(tree: Tree, name: str) -> bytes:
    try:
        return tree.storage.read(tree.files[name].uri)
    except RecordError as error:
        raise InputError(f"{join(tree.root, name)}: {error}") from None
