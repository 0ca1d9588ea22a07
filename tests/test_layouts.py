"""Known datasets, made small in their own shapes, with their traps."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from effnet_batch.cli import main
from effnet_batch.errors import InputError
from effnet_batch.layouts import Dataset, read_layout
from effnet_batch.manifest import build_manifest
from effnet_batch.storage import Storage


def make(root: Path, files: dict[str, Any]) -> Path:
    """Writes files; a dict or list becomes JSON, None an empty file."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict | list) else content or ""
        path.write_text(text)
    return root


def rows(dataset: Dataset, root: Path) -> dict[str, tuple[str | None, ...]]:
    """Returns (label, group, split, method, compression) by path."""
    found = {
        item.info.uri.removeprefix(f"{root}/"): (
            item.label,
            item.group,
            item.split,
            item.method,
            item.compression,
        )
        for item in dataset.items
    }
    assert len(found) == len(dataset.items)  # no file twice
    return found


def read(root: Path, layout: str = "auto") -> tuple[Dataset, dict[str, tuple[str | None, ...]]]:
    dataset = read_layout(str(root), Storage(), layout)
    return dataset, rows(dataset, root)


def test_dfdc(tmp_path: Path) -> None:
    fake = {"label": "FAKE", "split": "train", "original": "real.mp4"}
    files = {
        "dfdc_train_part_0/metadata.json": {
            "real.mp4": {"label": "REAL", "split": "train"},  # some copies omit `original`
            "fake.mp4": fake,
            "gone.mp4": fake,
        },
        "dfdc_train_part_0/real.mp4": None,
        "dfdc_train_part_0/fake.mp4": None,
        "dfdc_train_part_0/unlisted.mp4": None,
        "dfdc_train_part_36/metadata.json": {
            "a.mp4": {"label": "REAL", "split": "train", "original": None}
        },
        "dfdc_train_part_36/a.mp4": None,
        "dfdc_train_part_49/metadata.json": {"b.mp4": fake},
        "dfdc_train_part_49/b.mp4": None,
    }
    dataset, found = read(make(tmp_path, files))
    assert dataset.layout == "dfdc"
    assert found == {
        "dfdc_train_part_0/real.mp4": ("real", "real", "train", None, None),
        "dfdc_train_part_0/fake.mp4": ("fake", "real", "train", None, None),
        "dfdc_train_part_36/a.mp4": ("real", "a", "val", None, None),
        # Its original lies in another part: the check for leaks will find the group twice.
        "dfdc_train_part_49/b.mp4": ("fake", "real", "test", None, None),
    }
    assert dataset.notes == (
        "1 videos that metadata.json names are not there",
        "of 5 videos in the folder, 1 are left out: they are no part of what is labelled",
    )


def test_dfdc_preview_and_test(tmp_path: Path) -> None:
    preview = make(
        tmp_path / "preview",
        {
            "dataset.json": {
                "method_A/12/34/x.mp4": {"label": "fake", "set": "train", "target_id": "12"},
                "original_videos/12/y.mp4": {"label": "real", "set": "test"},
            },
            "method_A/12/34/x.mp4": None,
            "original_videos/12/y.mp4": None,
        },
    )
    dataset, found = read(preview)
    assert dataset.layout == "dfdc_preview"
    assert found == {
        "method_A/12/34/x.mp4": ("fake", "12", "train", "method_A", None),
        "original_videos/12/y.mp4": ("real", "12", "test", None, None),
    }
    test = make(
        tmp_path / "test",
        {"labels.csv": "filename,label\na.mp4,1\nb.mp4,0\n", "a.mp4": None, "videos/b.mp4": None},
    )
    dataset, found = read(test)
    assert dataset.layout == "dfdc_test"
    assert found == {
        "a.mp4": ("fake", "a", "test", None, None),
        "videos/b.mp4": ("real", "b", "test", None, None),
    }


def test_faceforensics(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "original_sequences/youtube/c23/videos/953.mp4": None,
        "original_sequences/youtube/c23/videos/974.mp4": None,
        "original_sequences/youtube/c0/videos/100.mp4": None,
        "manipulated_sequences/Deepfakes/c23/videos/953_974.mp4": None,
        "manipulated_sequences/Face2Face/c40/videos/974_953.mp4": None,
        "manipulated_sequences/Deepfakes/masks/videos/953_974.mp4": None,
        "original_sequences/actors/c23/videos/24__outside_talking.mp4": None,
        "manipulated_sequences/DeepFakeDetection/c23/videos/24_07__outside__ABC.mp4": None,
        "dataset/splits/train.json": [["100", "101"]],
        "dataset/splits/val.json": [],
        "dataset/splits/test.json": [["953", "974"]],
    }
    dataset, found = read(make(tmp_path, files))
    assert dataset.layout == "faceforensics"
    pair = "953_974"
    videos = "original_sequences/youtube/c23/videos"
    assert found == {
        f"{videos}/953.mp4": ("real", pair, "test", None, "c23"),
        f"{videos}/974.mp4": ("real", pair, "test", None, "c23"),
        "original_sequences/youtube/c0/videos/100.mp4": ("real", "100_101", "train", None, "raw"),
        "manipulated_sequences/Deepfakes/c23/videos/953_974.mp4": (
            "fake", pair, "test", "Deepfakes", "c23",
        ),
        "manipulated_sequences/Face2Face/c40/videos/974_953.mp4": (
            "fake", pair, "test", "Face2Face", "c40",
        ),
        "original_sequences/actors/c23/videos/24__outside_talking.mp4": (
            "real", "actor 24", None, None, "c23",
        ),
        "manipulated_sequences/DeepFakeDetection/c23/videos/24_07__outside__ABC.mp4": (
            "fake", "actor 24", None, "DeepFakeDetection", "c23",
        ),
    }  # fmt: skip


def test_faceforensics_without_splits_keeps_pairs_together(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "original_sequences/youtube/raw/videos/000.mp4": None,
        "manipulated_sequences/FaceSwap/raw/videos/000_003.mp4": None,
        "manipulated_sequences/FaceSwap/raw/videos/003_000.mp4": None,
    }
    dataset, found = read(make(tmp_path, files))
    assert {(group, split) for _, group, split, _, _ in found.values()} == {("000_003", None)}
    assert "have no split" in dataset.notes[0]


@pytest.mark.parametrize("below", ["", "videos/"])
def test_celeb_df(tmp_path: Path, below: str) -> None:
    files: dict[str, Any] = {
        f"Celeb-real/{below}id0_0000.mp4": None,
        f"Celeb-real/{below}id1_0000.mp4": None,
        f"Celeb-synthesis/{below}id0_id1_0000.mp4": None,
        f"Celeb-synthesis/{below}id0_id2_0000.mp4": None,
        f"YouTube-real/{below}00170.mp4": None,
        # The first line is a video like any other; 1 means real.
        "List_of_testing_videos.txt": "1 YouTube-real/00170.mp4\n"
        "0 Celeb-synthesis/id0_id1_0000.mp4\n1 Celeb-real/id1_0000.mp4\n1 Celeb-real/id9_0.mp4\n",
    }
    dataset, found = read(make(tmp_path, files))
    assert dataset.layout == "celeb_df"
    assert found == {
        f"Celeb-real/{below}id0_0000.mp4": ("real", "id0", "train", None, None),
        f"Celeb-real/{below}id1_0000.mp4": ("real", "id1", "test", None, None),
        f"Celeb-synthesis/{below}id0_id1_0000.mp4": ("fake", "id0", "test", None, None),
        f"Celeb-synthesis/{below}id0_id2_0000.mp4": ("fake", "id0", "train", None, None),
        f"YouTube-real/{below}00170.mp4": ("real", "youtube 00170", "test", None, None),
    }
    assert dataset.notes == ("1 videos that List_of_testing_videos.txt names are not there",)


def test_a_celeb_df_list_with_swapped_flags_is_refused(tmp_path: Path) -> None:
    files = {"Celeb-real/id1_0.mp4": None, "List_of_testing_videos.txt": "0 Celeb-real/id1_0.mp4"}
    with pytest.raises(InputError, match=r"says fake of Celeb-real/id1_0\.mp4, which is real"):
        read(make(tmp_path, files))


def test_deeperforensics(tmp_path: Path) -> None:
    fakes = "manipulated_videos/end_to_end"
    files: dict[str, Any] = {
        f"{fakes}/000_W004.mp4": None,
        f"{fakes}/001_M101.mp4": None,
        "manipulated_videos/reenact_postprocess/000_W004.mp4": None,
        "source_videos/W004/light_down/happy/camera_front/x.mp4": None,
        "lists/splits/train.txt": "000_W004.mp4\n",
        "lists/splits/val.txt": "",
        "lists/splits/test.txt": "001_M101.mp4\n",
        "original_sequences/youtube/c23/videos/000.mp4": None,
        "original_sequences/youtube/c23/videos/001.mp4": None,
        "original_sequences/youtube/c23/videos/999.mp4": None,
    }
    dataset, found = read(make(tmp_path, files))
    assert dataset.layout == "deeperforensics"
    variant = "reenact_postprocess"
    assert found == {
        f"{fakes}/000_W004.mp4": ("fake", "W004", "train", "end_to_end", None),
        f"{fakes}/001_M101.mp4": ("fake", "M101", "test", "end_to_end", None),
        f"manipulated_videos/{variant}/000_W004.mp4": ("fake", "W004", "train", variant, None),
        "original_sequences/youtube/c23/videos/000.mp4": ("real", "W004", "train", None, "c23"),
        "original_sequences/youtube/c23/videos/001.mp4": ("real", "M101", "test", None, "c23"),
    }
    source, *rest = dataset.notes
    assert source == "1 source videos of actors are left out: they are no reals"
    assert rest[0].startswith("of 7 videos in the folder, 2 are left out")  # 999 is no target
    assert len(rest) == 1


def test_what_deepfakebench_has_in_several_splits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    video = {"000": {"label": "DF_real", "frames": ["x/000/000.png"]}}
    document = {"DF": {"DF_real": dict.fromkeys(("train", "val", "test"), video)}}
    root = make(tmp_path / "data", {"DF.json": document, "x/000/000.png": None})
    done = CliRunner().invoke(main, ["labels", str(root), str(tmp_path / "labels.csv")])
    assert done.exit_code == 1
    told = " ".join(capfd.readouterr().err.split())
    assert "DF/DF_real/000 is in test and train and val" in told
    assert f"{root}/x/000/000.png is in test and train and val" in told
    assert "1 files in more than one split" in told
    assert "DF_real of DF.json are DeeperForensics's actors in a studio" in told


def test_deepfakebench(tmp_path: Path) -> None:
    document = {
        "UADFV": {
            "UADFV_Real": {
                "test": {"000": {"label": "UADFV_Real", "frames": [r".\x\000\000.png"]}}
            },
            "UADFV_Fake": {
                "test": {
                    "c23": {
                        "000": {
                            "label": "f",
                            "frames": ["./datasets/rgb/y/000/000.png", "gone.png"],
                        }
                    }
                }
            },
        }
    }
    document["UADFV"]["UADFV_Real"]["test"]["000"]["frames"] = [r"./datasets/rgb\x\000\000.png"]
    root = make(tmp_path, {"UADFV.json": document, "x/000/000.png": None, "y/000/000.png": None})
    dataset, found = read(root)
    assert dataset.layout == "deepfakebench"
    # Real 000 and fake 000 are two videos.
    assert found == {
        "x/000/000.png": ("real", "UADFV/UADFV_Real/000", "test", None, None),
        "y/000/000.png": ("fake", "UADFV/UADFV_Fake/000", "test", "UADFV_Fake", "c23"),
    }
    assert dataset.notes == ("1 frames that the JSON names are not there",)


def test_real_and_fake_folders(tmp_path: Path) -> None:
    root = make(tmp_path, {"fake/0001_fake.mp4": None, "real/0001.mp4": None, "readme.txt": None})
    dataset, found = read(root)
    assert dataset.layout == "real_fake"
    assert found == {
        "fake/0001_fake.mp4": ("fake", "0001", None, None, None),
        "real/0001.mp4": ("real", "0001", None, None, None),
    }


def test_deepfake_timit(tmp_path: Path) -> None:
    root = make(tmp_path, {"higher_quality/fadg0/sa1-video-fram1.avi": None})
    dataset, found = read(root)
    assert dataset.layout == "deepfake_timit"
    assert list(found.values()) == [("fake", "fadg0", None, "higher_quality", None)]


def test_a_folder_a_class(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {"train/rose/1.jpg": None, "valid/rose/1.jpg": None, "test/daisy/1.PNG": None},
    )
    dataset, found = read(root)
    assert dataset.layout == "image_folder"
    assert [(row[0], row[2]) for row in found.values()] == [
        ("daisy", "test"),
        ("rose", "train"),
        ("rose", "val"),
    ]
    # The same name in two folders is two groups.
    assert Counter(row[1] for row in found.values()).most_common(1)[0][1] == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": None}, r"is none of the layouts .*; it holds a\.txt"),
        ({"dfdc_train_part_1/metadata.json": "[", "dfdc_train_part_1/a.mp4": None}, "is no JSON"),
        ({"p/metadata.json": {"a.mp4": 3}, "p/a.mp4": None}, "'a.mp4' is described by 3"),
        ({"p/metadata.json": {"a.mp4": {"label": "X"}}, "p/a.mp4": None}, "has the label 'X'"),
        ({"p/metadata.json": {"a.mp4": {"label": "REAL"}}}, "no labelled files .* 1 videos"),
        ({"Celeb-real/a.mp4": None, "List_of_testing_videos.txt": "x"}, "'x' is not"),
    ],
)
def test_datasets_that_will_not_do(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(make(tmp_path, files))


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layout 'x': allowed are auto, deeperforensics"):
        read(tmp_path, "x")


def test_labels_become_a_list_and_leaks_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, Any] = {
        "Celeb-real/id1_0000.mp4": None,
        "Celeb-synthesis/id1_id2_0000.mp4": None,
        "Celeb-synthesis/id3_id2_0000.mp4": None,
        "List_of_testing_videos.txt": "1 Celeb-real/id1_0000.mp4\n",
    }
    root = make(tmp_path / "data", files)
    target = tmp_path / "labels.csv"
    done = CliRunner().invoke(main, ["labels", str(root), str(target)])
    assert done.exit_code == 1
    told = capfd.readouterr().err
    assert "id1 is in test and train" in told
    assert "1 groups in more than one split" in told
    lines = target.read_text().splitlines()
    assert lines[0] == '"uri","label","group","split","method","compression"'
    assert lines[1] == f'"{root}/Celeb-real/id1_0000.mp4","real","id1","test",,'
    found = build_manifest(str(target), Storage(), medium="video")
    (table,) = found.tables()
    assert table.select(["label", "group", "split"]).to_pylist()[1] == {
        "label": "fake",
        "group": "id1",
        "split": "train",
    }
    (root / "Celeb-synthesis/id1_id2_0000.mp4").unlink()
    done = CliRunner().invoke(main, ["labels", str(root), str(target)])
    assert done.exit_code == 0, done.output
    assert re.search(r"test, real +1\n", done.stdout)
    done = CliRunner().invoke(main, ["labels", str(root), str(tmp_path / "labels.txt")])
    assert done.exit_code == 2


def test_a_manifest_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"one", "d": b"longer", "e": b"longer", "f": b"x"}
    for name, data in contents.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
    rows = [
        "uri,label,group,split",
        "a.mp4,fake,g1,train",
        "b.mp4,real,g2,train",
        "c.mp4,fake,g3,val",
        "d.mp4,fake,g4,val",
        "e.mp4,real,g5,val",
        "f.mp4,real,g6,test",
    ]
    listed, manifest = tmp_path / "videos.csv", str(tmp_path / "videos.parquet")

    def check(*flags: str) -> tuple[int, str, str]:
        listed.write_text("\n".join(rows))
        done = CliRunner().invoke(main, ["manifest", str(listed), manifest, *flags])
        return done.exit_code, done.stdout, capfd.readouterr().err

    code, facts, told = check("--check")
    assert (code, told.count("split")) == (0, 0)  # what is inside the files was not asked for
    assert re.search(r"train, fake +1\n.*train, real +1\n.*val, fake +2\n", facts, re.DOTALL)
    code, _, told = check("--contents")
    assert code == 1
    text = " ".join(told.split())
    assert f"the same content is train ({tmp_path}/a.mp4) and val ({tmp_path}/c.mp4)" in text
    assert f"the same content is fake ({tmp_path}/d.mp4) and real ({tmp_path}/e.mp4)" in text
    assert "1 contents in more than one split" in text
    assert "1 contents with more than one label" in text
    rows += ["gone.mp4,fake,g1,test"]
    code, _, told = check("--check")
    assert code == 1
    assert "g1 is in test and train" in told
    assert "gone.mp4" in told
    assert "1 missing files" in told
    for again, message in (
        ("a.mp4,real,g1,train", "more than one label, such as {} with fake and real; list each"),
        ("a.mp4,,g1,val", "more than one split, such as {} with train and val; list each"),
    ):
        rows[-1] = again
        code, _, told = check()
        assert code == 2
        assert message.format(tmp_path / "a.mp4") in " ".join(told.split())
    rows[-1] = "a.mp4,,g1,"
    assert check()[0] == 0  # nothing else is said
