"""CIFAR-100 and Flowers-102 from their usual files."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
from hypothesis import given, strategies as st
from PIL import Image

from effnet_batch.errors import InputError
from effnet_batch.layouts import read_layout
from effnet_batch.layouts.matlab import read_matrices
from effnet_batch.pipelines.labels import list_labels
from effnet_batch.storage import Storage

NAMES = ["apple", "aquarium_fish", "baby"]


def write_cifar(folder: Path, num_train: int = 7, num_test: int = 3) -> dict[str, np.ndarray]:
    """Writes files as Krizhevsky's page describes them; returns images [N, 32, 32, 3] by split."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "coarse_label_names.txt").write_text("fruit\nfish\npeople\n")
    images = {}
    for split, count in (("train", num_train), ("test", num_test)):
        images[split] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        rows = b""
        for number, image in enumerate(images[split]):
            planes = b"".join(image[..., channel].tobytes() for channel in range(3))
            rows += bytes([19 - number, number % len(NAMES)]) + planes
        (folder / f"{split}.bin").write_bytes(rows)
    return images


def test_cifar_100_becomes_shards_pixel_by_pixel(tmp_path: Path) -> None:
    images = write_cifar(tmp_path / "root/cifar-100-binary")
    found = list_labels(str(tmp_path / "root"), str(tmp_path / "cifar.csv"))
    assert found.layout == "cifar100"
    assert found.report.counts == {
        "test, apple": 1, "test, aquarium_fish": 1, "test, baby": 1,
        "train, apple": 3, "train, aquarium_fish": 2, "train, baby": 2,
    }  # fmt: skip
    with (tmp_path / "cifar.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train", "test"]
    for row in rows:
        shard = pq.read_table(row["uri"].removeprefix("file://"))
        split = row["split"]
        assert shard["label"].to_pylist() == [NAMES[n % 3] for n in range(len(images[split]))]
        for mine, original in zip(shard["image"].to_pylist(), images[split], strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(mine))), original)


def test_cifar_100_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(InputError) as caught:
            read_layout(str(tmp_path / name), Storage())
        return str(caught.value)

    for name in ("train", "test", "meta"):
        path = tmp_path / "python" / "cifar-100-python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x80\x02cposix\nsystem\n")
    assert "pickle and never loaded; take the binary version (cifar-100-bin" in refused("python")
    write_cifar(tmp_path / "nameless")
    (tmp_path / "nameless/fine_label_names.txt").unlink()
    assert "fine_label_names.txt is missing" in refused("nameless")
    write_cifar(tmp_path / "cut")
    with (tmp_path / "cut/train.bin").open("r+b") as file:
        file.truncate(5000)
    assert "5,000 bytes, no multiple of 3,074" in refused("cut")
    write_cifar(tmp_path / "few")
    (tmp_path / "few/fine_label_names.txt").write_text("apple\nfish\n")
    assert "holds class 2, and fine_label_names.txt names 2" in refused("few")
    (tmp_path / "few/fine_label_names.txt").write_text("apple\nfish\napple\n")
    assert "fine_label_names.txt names a class twice" in refused("few")


def write_flowers(folder: Path, *, compressed: bool = False) -> None:
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 8):
        Image.new("RGB", (40, 30)).save(folder / f"jpg/image_{number:05}.jpg")
    scipy.io.savemat(
        folder / "imagelabels.mat",
        {"labels": np.array([[77, 77, 3, 3, 102, 1, 1]], np.uint8)},
        do_compression=compressed,
    )
    scipy.io.savemat(
        folder / "setid.mat",
        # As in the original: doubles in one row. Image 4 is in no set, image 8 is not there.
        {"trnid": [[1.0, 3, 5]], "valid": [[2.0]], "tstid": [[7.0, 6, 8]]}
        | {"note": "a text is passed over"},
        do_compression=compressed,
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_flowers_102(tmp_path: Path, *, compressed: bool) -> None:
    write_flowers(tmp_path, compressed=compressed)
    labels = np.append(scipy.io.loadmat(tmp_path / "imagelabels.mat")["labels"], [9])
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": labels}, do_compression=compressed)
    found = read_layout(str(tmp_path), Storage())
    assert found.layout == "flowers102"
    assert {(item.info.uri[-9:-4], item.label, item.split) for item in found.items} == {
        ("00001", "077", "train"), ("00003", "003", "train"), ("00005", "102", "train"),
        ("00002", "077", "val"), ("00006", "001", "test"), ("00007", "001", "test"),
    }  # fmt: skip
    assert found.notes == (
        "1 images that setid.mat names are not there",
        "1 images are in no set of setid.mat and are left out",
    )


def test_flowers_102_that_cannot_be_read(tmp_path: Path) -> None:
    write_flowers(tmp_path)
    with pytest.raises(InputError, match=r"names image 8, and imagelabels\.mat has 7 labels"):
        read_layout(str(tmp_path), Storage())
    sets = {"trnid": [1.0, 2.0], "valid": [3.0], "tstid": [2.0]}
    scipy.io.savemat(tmp_path / "setid.mat", sets)
    with pytest.raises(InputError, match=r"setid\.mat has an image in two sets"):
        read_layout(str(tmp_path), Storage())
    scipy.io.savemat(tmp_path / "setid.mat", {**sets, "valid": [float("inf")]})
    with pytest.raises(InputError, match=r"setid\.mat: cannot convert float infinity"):
        read_layout(str(tmp_path), Storage())
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [1.0]})
    with pytest.raises(InputError, match=r"setid\.mat has no matrix 'valid'"):
        read_layout(str(tmp_path), Storage())
    (tmp_path / "setid.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(126) + b"IM" + b"\x89HDF")
    with pytest.raises(InputError, match=r"setid\.mat: .* save it with -v7"):
        read_layout(str(tmp_path), Storage())
    (tmp_path / "setid.mat").unlink()
    with pytest.raises(InputError, match=r"setid\.mat is missing; Flowers-102 is jpg/, "):
        read_layout(str(tmp_path), Storage())


def test_matrices_are_what_scipy_wrote() -> None:
    values = {
        "f": np.arange(6.0).reshape(2, 3),
        "i": np.array([[-1, 2**40]]),
        "b": np.array([[1], [200]], np.uint8),
    }
    file = io.BytesIO()
    scipy.io.savemat(file, {**values, "text": "no number", "cell": np.array([1, "a"], object)})
    found = read_matrices(file.getvalue())
    assert sorted(found) == ["b", "f", "i"]
    for name, value in values.items():
        assert np.array_equal(found[name], value)


@given(st.data())
def test_damaged_matrices_are_refused(data: st.DataObject) -> None:
    file = io.BytesIO()
    compressed = data.draw(st.booleans())
    scipy.io.savemat(file, {"labels": np.arange(40.0)}, do_compression=compressed)
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(100, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(100, len(damaged))) :]
    try:
        found = read_matrices(bytes(damaged))
    except ValueError:
        return
    assert all(isinstance(value, np.ndarray) for value in found.values())
