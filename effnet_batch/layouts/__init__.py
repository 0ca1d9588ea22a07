"""Known datasets: a root folder to labelled sources.

1 is fake everywhere; a dataset that says otherwise is inverted by its reader. Nothing is dropped
without a note.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

from effnet_batch.errors import InputError
from effnet_batch.layouts.classes import (
    is_deepfakebench,
    is_image_folder,
    read_deepfakebench,
    read_image_folder,
)
from effnet_batch.layouts.forgery import (
    is_celeb_df,
    is_deeperforensics,
    is_dfdc,
    is_dfdc_preview,
    is_dfdc_test,
    is_faceforensics,
    is_real_fake,
    is_timit,
    read_celeb_df,
    read_deeperforensics,
    read_dfdc,
    read_dfdc_preview,
    read_dfdc_test,
    read_faceforensics,
    read_real_fake,
    read_timit,
)
from effnet_batch.layouts.images import (
    is_cifar100,
    is_flowers102,
    read_cifar100,
    read_flowers102,
)
from effnet_batch.layouts.tree import (
    VIDEO_EXTENSIONS,
    Labelled,
    Packed,
    Tree,
)
from effnet_batch.storage import Storage

AUTO: Final = "auto"

_Reader = Callable[[Tree, list[str]], Iterator[Labelled | Packed]]

_LAYOUTS: Final[dict[str, tuple[Callable[[Tree], bool], _Reader]]] = {
    # In the order of trial: the more a layout asks for, the earlier.
    "deeperforensics": (is_deeperforensics, read_deeperforensics),
    "faceforensics": (is_faceforensics, read_faceforensics),
    "celeb_df": (is_celeb_df, read_celeb_df),
    "dfdc": (is_dfdc, read_dfdc),
    "dfdc_preview": (is_dfdc_preview, read_dfdc_preview),
    "dfdc_test": (is_dfdc_test, read_dfdc_test),
    "deepfakebench": (is_deepfakebench, read_deepfakebench),
    "deepfake_timit": (is_timit, read_timit),
    "real_fake": (is_real_fake, read_real_fake),
    "cifar100": (is_cifar100, read_cifar100),
    "flowers102": (is_flowers102, read_flowers102),
    "image_folder": (is_image_folder, read_image_folder),
}
LAYOUTS: Final = tuple(_LAYOUTS)
"""Names of the layouts that are known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """What was read of a dataset."""

    layout: str
    """One of `LAYOUTS`."""
    items: list[Labelled]
    """In the order of the listing or of the dataset's own lists."""
    packed: list[Packed]
    """What lies inside files of the dataset's own format."""
    notes: tuple[str, ...]
    """What a person should know: what is missing, what was left out."""


def read_layout(root: str, storage: Storage, layout: str = AUTO) -> Dataset:
    """Reads a dataset's folder.

    Args:
        root: the folder, local or remote.
        storage: how it is reached.
        layout: one of `LAYOUTS`, or ``auto``.

    Raises:
        InputError: no layout fits, or the dataset's own lists are damaged or contradict it.
        StorageError: the folder cannot be listed.
    """
    if layout != AUTO and layout not in LAYOUTS:
        raise InputError(f"layout {layout!r}: allowed are {AUTO}, {', '.join(LAYOUTS)}")
    tree = Tree.scan(root, storage)
    if layout == AUTO:
        layout = next((name for name, (fits, _) in _LAYOUTS.items() if fits(tree)), AUTO)
        if layout == AUTO:
            shown = ", ".join(sorted({name.split("/")[0] for name in tree.files})[:10])
            raise InputError(
                f"{tree.root} is none of the layouts {', '.join(LAYOUTS)}; it holds {shown or '-'}"
            )
    notes: list[str] = []
    items: list[Labelled] = []
    packed: list[Packed] = []
    for found in _LAYOUTS[layout][1](tree, notes):
        if isinstance(found, Packed):
            packed.append(found)
        else:
            items.append(found)
    if not (items or packed):
        raise InputError(
            f"{tree.root} has no labelled files of the layout {layout}"
            + "".join(f"; {note}" for note in notes)
        )
    used = {item.info.uri for item in items}
    videos = [info.uri for _, info in tree.named(VIDEO_EXTENSIONS)]
    if num_left_out := sum(uri not in used for uri in videos):
        notes.append(
            f"of {len(videos):,} videos in the folder, {num_left_out:,} are left out: they are no "
            "part of what is labelled"
        )
    return Dataset(layout=layout, items=items, packed=packed, notes=tuple(notes))
