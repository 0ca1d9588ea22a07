"""Readers of image datasets: a folder a class, and the frames of DeepfakeBench."""

import re
from collections.abc import Iterator
from typing import Any, Final

from effnet_batch.errors import InputError
from effnet_batch.layouts.tree import (
    FAKE,
    IMAGE_EXTENSIONS,
    REAL,
    SPLITS,
    VIDEO_EXTENSIONS,
    Labelled,
    Tree,
    stem,
)

_SPLIT_NAMES: Final = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_BENCH_LABELS: Final = {
    **dict.fromkeys(("ff-real", "dfd_real", "celebdfv1_real", "celebdfv2_real"), REAL),
    **dict.fromkeys(("dfdcp_real", "dfdc_real", "df_real", "uadfv_real", "roop_real"), REAL),
    **dict.fromkeys(("ff-df", "ff-f2f", "ff-fs", "ff-nt", "ff-fh", "ff-sh", "dfd_fake"), FAKE),
    **dict.fromkeys(("celebdfv1_fake", "celebdfv2_fake", "dfdcp_fakea", "dfdcp_fakeb"), FAKE),
    **dict.fromkeys(("dfdc_fake", "df_fake", "uadfv_fake", "roop_fake"), FAKE),
}
_BENCH_SOURCES: Final = "df_real"
_BENCH_ROOTS: Final = ("datasets/rgb/", "datasets/")


def is_image_folder(tree: Tree) -> bool:
    """Whether every file of the media lies in a folder that can be its class."""
    names = [name for name, _ in tree.named((*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS))]
    return bool(names) and all(len(_class_folders(name)) == 1 for name in names)


def read_image_folder(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """``CLASS/file`` or ``SPLIT/CLASS/file``: the class is the folder's name, never its number."""
    for name, info in tree.named((*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)):
        (label,) = _class_folders(name)
        split = name.split("/")[0].lower()
        yield Labelled(
            info=info,
            label=label,
            group=name,
            split=_SPLIT_NAMES.get(split) if name.count("/") == 2 else None,
        )


def _class_folders(name: str) -> list[str]:
    folders = name.split("/")[:-1]
    return folders[1:] if folders and folders[0].lower() in _SPLIT_NAMES else folders


def is_deepfakebench(tree: Tree) -> bool:
    """Whether a JSON file of DeepfakeBench's shape stands in the root."""
    return any(_is_bench(tree, name) for name in _bench_files(tree))


def read_deepfakebench(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    r"""DeepfakeBench: ``NAME.json`` to the frames of each video, with ``\`` or ``/`` between.

    The group is label and video: a real and a fake may both be called 000.
    """
    num_absent = 0
    for place in _bench_files(tree):
        if not _is_bench(tree, place):
            continue
        for dataset, labels in tree.document(place).items():
            for label_name, splits in labels.items():
                label = _BENCH_LABELS.get(label_name.lower())
                if label is None:
                    raise InputError(f"{place}: label {label_name!r} means neither fake nor real")
                if label_name.lower() == _BENCH_SOURCES:
                    notes.append(
                        f"{label_name} of {place} are DeeperForensics's actors in a studio, not "
                        "the reals that its fakes are made from"
                    )
                for split, videos in splits.items():
                    for compression, video, about in _bench_videos(videos):
                        for frame in about["frames"]:
                            info = tree.files.get(_bench_path(frame))
                            if info is None:
                                num_absent += 1
                                continue
                            yield Labelled(
                                info=info,
                                label=label,
                                group=f"{dataset}/{label_name}/{video}",
                                split=split if split in SPLITS else None,
                                method=label_name if label == FAKE else None,
                                compression=compression,
                            )
    if num_absent:
        notes.append(f"{num_absent:,} frames that the JSON names are not there")


def _bench_files(tree: Tree) -> list[str]:
    return [name for name in tree.files if re.fullmatch(r"(?:dataset_json/)?[^/]+\.json", name)]


def _is_bench(tree: Tree, place: str) -> bool:
    try:
        document = tree.document(place)
    except InputError:
        return False
    if not (isinstance(document, dict) and list(document) == [stem(place)]):
        return False
    labels = document[stem(place)]
    return isinstance(labels, dict) and all(isinstance(each, dict) for each in labels.values())


def _bench_videos(videos: Any) -> Iterator[tuple[str | None, str, dict[str, Any]]]:
    """Yields compression, name and description; the compression is a level only in some files."""
    for name, about in videos.items():
        if isinstance(about, dict) and "frames" in about:
            yield None, name, about
        elif isinstance(about, dict):
            for video, inner in about.items():
                yield name, video, inner


def _bench_path(frame: str) -> str:
    path = frame.replace("\\", "/").removeprefix("./")
    for root in _BENCH_ROOTS:
        path = path.removeprefix(root)
    return path
