"""Readers of the forgery datasets; 1 file of the dataset to 1 row, whatever its name repeats.

Layouts and counts are those of the datasets' own READMEs.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from effnet_batch.errors import InputError
from effnet_batch.layouts.tree import FAKE, REAL, SPLITS, VIDEO_EXTENSIONS, Labelled, Tree, stem

_DFDC_LAST_PART: Final = {34: "train", 39: "val", 49: "test"}
"""Last folder of each split in the most used split of the training set."""
_DFDC_PART: Final = re.compile(r"_part_(\d+)(?:/|$)")
_FF_REALS: Final = re.compile(r"original_sequences/(youtube|actors)/(raw|c\d+)/videos/([^/]+)$")
_FF_FAKES: Final = re.compile(r"manipulated_sequences/(\w+)/(raw|c\d+)/videos/([^/]+)$")
_FF_DFD: Final = "DeepFakeDetection"
_FF_SPLIT: Final = re.compile(r"(?:^|/)(train|val|test)\.json$")
_CELEB: Final = re.compile(
    r"(celeb-real|celeb-synthesis|youtube-real)/(?:videos/)?[^/]+$", re.IGNORECASE
)
_CELEB_LIST: Final = "List_of_testing_videos.txt"
_DEEPER_FAKES: Final = re.compile(r"manipulated_videos/([^/]+)/(\d+)_(\w+)\.mp4$")
_REAL_FOLDERS: Final = ("real", "original", "original_videos", "pristine")
_FAKE_FOLDERS: Final = ("fake", "forged", "manipulated", "deepfake")
_TIMIT: Final = re.compile(r"(higher|lower)_quality/([^/]+)/.+\.avi$")


def is_dfdc(tree: Tree) -> bool:
    """Whether folders with a metadata.json beside their videos are there."""
    return any(name.rpartition("/")[2] == "metadata.json" for name in tree.files)


def read_dfdc(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """DFDC training set: ``metadata.json`` in each part, beside its videos.

    The group is the original that a fake was made from. Parts 0-34 are train, 35-39 val, 40-49
    test; a folder without a number has the split of its metadata.
    """
    num_absent = 0
    for place in tree.files:
        if place.rpartition("/")[2] != "metadata.json":
            continue
        folder = place.removesuffix("metadata.json")
        part = _DFDC_PART.search(folder)
        known = next(
            (s for last, s in _DFDC_LAST_PART.items() if part and int(part[1]) <= last), ""
        )
        for name, about in _entries(tree.document(place), place):
            info = tree.files.get(f"{folder}{name}")
            if info is None:
                num_absent += 1
                continue
            original = about.get("original")
            yield Labelled(
                info=info,
                label=_label(about.get("label"), place, name),
                group=stem(original) if isinstance(original, str) and original else stem(name),
                split=known or _split(about.get("split")),
            )
    _note_absent(num_absent, "metadata.json", notes)


def is_dfdc_preview(tree: Tree) -> bool:
    """Whether the preview's dataset.json is there."""
    return "dataset.json" in tree.files


def read_dfdc_preview(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """DFDC preview: ``dataset.json``; the method is the first folder, the group the target."""
    num_absent = 0
    for name, about in _entries(tree.document("dataset.json"), "dataset.json"):
        info = tree.files.get(name)
        if info is None:
            num_absent += 1
            continue
        label = _label(about.get("label"), "dataset.json", name)
        folders = name.split("/")
        yield Labelled(
            info=info,
            label=label,
            group=str(about.get("target_id") or (folders[1] if len(folders) > 2 else stem(name))),
            split=_split(about.get("set")),
            method=folders[0] if label == FAKE else None,
        )
    _note_absent(num_absent, "dataset.json", notes)


def is_dfdc_test(tree: Tree) -> bool:
    """Whether the test set's labels.csv is there."""
    return any(name in tree.files for name in ("labels.csv", "test/labels.csv"))


def read_dfdc_test(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """DFDC test set: ``labels.csv`` of file name and 0 or 1; videos beside it or in ``videos/``."""
    place = next(name for name in ("labels.csv", "test/labels.csv") if name in tree.files)
    folder = place.removesuffix("labels.csv")
    lines = tree.lines(place)
    num_absent = 0
    for line in lines[1:] if lines and lines[0].lower().startswith("filename") else lines:
        name, _, label = (cell.strip() for cell in line.partition(","))
        found = (tree.files.get(f"{folder}{below}{name}") for below in ("", "videos/"))
        info = next((info for info in found if info is not None), None)
        if info is None:
            num_absent += 1
            continue
        yield Labelled(info=info, label=_label(label, place, name), group=stem(name), split="test")
    _note_absent(num_absent, "labels.csv", notes)


def is_faceforensics(tree: Tree) -> bool:
    """Whether the folders of FaceForensics++ are there."""
    return any(_FF_REALS.search(name) or _FF_FAKES.search(name) for name in tree.files)


def read_faceforensics(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """FaceForensics++ with its split pairs, and DeepFakeDetection.

    A pair of ids makes two fakes, each with the other's face, so the group is the pair. The group
    of DeepFakeDetection is the actor; it has no official split.
    """
    pairs: dict[str, str] = {}
    splits: dict[str, str] = {}
    for name in tree.files:
        if found := _FF_SPLIT.search(name):
            for pair in _pairs(tree.document(name), name):
                pairs |= dict.fromkeys(pair, "_".join(sorted(pair)))
                splits |= dict.fromkeys(pair, found[1])
    if not splits:
        notes.append("no splits/train.json, val.json, test.json: the videos have no split")
    for name in tree.files:  # where there are no splits, the fakes' names say who belongs together
        found = _FF_FAKES.search(name)
        if found and found[1] != _FF_DFD and len(ids := stem(found[3]).split("_")) == 2:
            for one in ids:
                pairs.setdefault(one, "_".join(sorted(ids)))
    for name, info in tree.named(VIDEO_EXTENSIONS):
        if found := _FF_REALS.search(name):
            method, compression, file = None, found[2], found[3]
            is_dfd = found[1] == "actors"
        elif found := _FF_FAKES.search(name):
            method, compression, file = found[1], found[2], found[3]
            is_dfd = method == _FF_DFD
        else:  # masks, and whatever else stands about
            continue
        first = stem(file).split("_")[0]
        yield Labelled(
            info=info,
            label=REAL if method is None else FAKE,
            group=f"actor {first}" if is_dfd else pairs.get(first, first),
            split=None if is_dfd else splits.get(first),
            method=method,
            compression="raw" if compression == "c0" else compression,
        )


def is_celeb_df(tree: Tree) -> bool:
    """Whether the folders of Celeb-DF are there."""
    return any(_CELEB.search(name) for name in tree.files)


def read_celeb_df(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """Celeb-DF v1 and v2; the test list says 1 for real, and its first line is a video as well.

    The group is the person whose video it is. What is not in the list is train.
    """
    tests: dict[str, str] = {}
    place = next((name for name in tree.files if name.rpartition("/")[2] == _CELEB_LIST), None)
    if place is None:
        notes.append(f"no {_CELEB_LIST}: the videos have no split")
    else:
        for line in tree.lines(place):
            flag, _, name = line.partition(" ")
            if flag not in ("0", "1") or not name:
                raise InputError(f"{place}: {line!r} is not '<0 or 1> <folder>/<file>'")
            tests[_celeb_key(name.strip())] = REAL if flag == "1" else FAKE
    for name, info in tree.named(VIDEO_EXTENSIONS):
        if not (found := _CELEB.search(name)):
            continue
        folder = found[1].lower()
        label = FAKE if folder == "celeb-synthesis" else REAL
        key = _celeb_key(name)
        listed = tests.pop(key, None)
        if listed not in (None, label):
            raise InputError(f"{place} says {listed} of {name}, which is {label} by its folder")
        yield Labelled(
            info=info,
            label=label,
            group=f"youtube {stem(name)}" if folder == "youtube-real" else stem(name).split("_")[0],
            split=None if place is None else "train" if listed is None else "test",
        )
    _note_absent(len(tests), _CELEB_LIST, notes)


def _celeb_key(name: str) -> str:
    folders = name.lower().split("/")
    return "/".join([folders[-3] if folders[-2] == "videos" else folders[-2], folders[-1]])


def is_deeperforensics(tree: Tree) -> bool:
    """Whether the manipulated videos of DeeperForensics-1.0 are there."""
    return any(_DEEPER_FAKES.search(name) for name in tree.files)


def read_deeperforensics(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """DeeperForensics-1.0, with the reals from a FaceForensics++ tree under the same root.

    ``source_videos`` show the actors and are no reals. Splits are by the fakes' names; a real has
    that of its target's fakes. The group is the actor whose face was taken, and of a real that of
    the fakes made from it.
    """
    splits: dict[str, str] = {}
    for name in tree.files:
        for split in SPLITS:
            if name.endswith(f"lists/splits/{split}.txt"):
                splits |= {stem(line.split()[0]): split for line in tree.lines(name)}
    if not splits:
        notes.append("no lists/splits/train.txt, val.txt, test.txt: the videos have no split")
    targets: dict[str, tuple[str, str | None]] = {}
    num_sources = num_reals = 0
    for name, info in tree.named(VIDEO_EXTENSIONS):
        if found := _DEEPER_FAKES.search(name):
            of_fake = splits.get(f"{found[2]}_{found[3]}")
            targets[found[2]] = (found[3], of_fake)
            yield Labelled(info=info, label=FAKE, group=found[3], split=of_fake, method=found[1])
        num_sources += "source_videos/" in name
    for name, info in tree.named(VIDEO_EXTENSIONS):
        found = _FF_REALS.search(name)
        if found and found[1] == "youtube" and stem(name) in targets:
            source, of_fakes = targets[stem(name)]
            num_reals += 1
            yield Labelled(
                info=info, label=REAL, group=source, split=of_fakes, compression=found[2]
            )
    if num_sources:
        notes.append(f"{num_sources:,} source videos of actors are left out: they are no reals")
    if not num_reals:
        notes.append(
            "no reals: put FaceForensics++'s original_sequences/youtube under the same root"
        )


def is_timit(tree: Tree) -> bool:
    """Whether the folders of DeepfakeTIMIT are there."""
    return any(_TIMIT.search(name) for name in tree.files)


def read_timit(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """DeepfakeTIMIT: fakes in two qualities, by person; its reals are VidTIMIT's."""
    notes.append("no reals: those are VidTIMIT's")
    for name, info in tree.named(VIDEO_EXTENSIONS):
        if found := _TIMIT.search(name):
            method = f"{found[1]}_quality"
            yield Labelled(info=info, label=FAKE, group=found[2], method=method)


def is_real_fake(tree: Tree) -> bool:
    """Whether a folder of reals and one of fakes are there, whatever is around them."""
    found = {_class_of(name) for name, _ in tree.named(VIDEO_EXTENSIONS)}
    return {REAL, FAKE} <= found


def read_real_fake(tree: Tree, notes: list[str]) -> Iterator[Labelled]:
    """Folders ``real`` and ``fake``, such as UADFV; by name, never by the order of names.

    A file in ``x_fake`` and one in ``x`` are one group. A folder ``train``, ``val`` or ``test``
    above is the split.
    """
    for name, info in tree.named(VIDEO_EXTENSIONS):
        label = _class_of(name)
        if label is None:
            continue
        above = [folder.lower() for folder in name.split("/")[:-1]]
        yield Labelled(
            info=info,
            label=label,
            group=re.sub(r"_(fake|real)$", "", stem(name)),
            split=next((split for split in SPLITS if split in above), None),
        )


def _class_of(name: str) -> str | None:
    for folder in reversed(name.lower().split("/")[:-1]):
        if folder in _REAL_FOLDERS:
            return REAL
        if folder in _FAKE_FOLDERS:
            return FAKE
    return None


def _entries(document: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(document, dict):
        raise InputError(f"{place}: expected an object of file names")
    for name, about in document.items():
        if not isinstance(about, dict):
            raise InputError(f"{place}: {name!r} is described by {about!r}, not by an object")
        yield name, about


def _pairs(document: Any, place: str) -> Iterator[tuple[str, str]]:
    if not isinstance(document, list):
        raise InputError(f"{place}: expected a list of pairs")
    for pair in document:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise InputError(f"{place}: {pair!r} is no pair of ids")
        yield str(pair[0]), str(pair[1])


def _label(value: object, place: str, name: str) -> str:
    label = {"fake": FAKE, "1": FAKE, "real": REAL, "0": REAL}.get(str(value).lower())
    if label is None:
        raise InputError(f"{place}: {name} has the label {value!r}, not FAKE or REAL")
    return label


def _split(value: object) -> str | None:
    return value if value in SPLITS else None


def _note_absent(num_absent: int, place: str, notes: list[str]) -> None:
    if num_absent:
        notes.append(f"{num_absent:,} videos that {place} names are not there")
