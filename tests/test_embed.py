"""The embedding job from end to end: every kind of input, both placements, every option."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from overflowing import PREPROCESSING, make_overflow
from photographs import encode, photograph, small_jpegs
from PIL import Image
from shard_files import make_parquet, make_tar, make_zip

import effnet_batch
from effnet_batch.errors import ConfigError, FingerprintError, InputError
from effnet_batch.models.architectures import build_model
from effnet_batch.models.classifier_file import ClassifierInfo, classifier_bytes
from effnet_batch.pipelines.listing import list_input
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify

MODEL = {"model": "efficientnet_lite0", "engine": "torch"}
NUM_IMAGES = 12
IMAGES = small_jpegs(NUM_IMAGES)


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    """One Ray for all runs of this file; each of them uses the connection that there is."""
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, 1280] and logits [N, 1000] of IMAGES, with Pillow and plain PyTorch."""
    model = effnet_batch.load_model("efficientnet_lite0")
    frames = []
    for data in IMAGES:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 256 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        frames.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    batch = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        embeddings, logits = model.embed((batch - 0.5) / 0.5), model((batch - 0.5) / 0.5)
    return embeddings.numpy(), logits.numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGES in two folders, ``left/00.jpg`` to ``right/11.jpg``."""
    root = tmp_path_factory.mktemp("images")
    for index, data in enumerate(IMAGES):
        path = root / ("left" if index < NUM_IMAGES // 2 else "right") / f"{index:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def embedded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, embedded with all that can be asked for."""
    output = tmp_path_factory.mktemp("embedded") / "out"
    summary = effnet_batch.embed(
        str(folder), str(output), label_from="parent", top_k=3, logits=True, **MODEL
    )
    assert (summary.state, summary.num_new_records) == ("complete", NUM_IMAGES)
    return output


def number_of(name: str) -> int:
    return int(Path(name).stem)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Compares vectors by their distance as a share of their length."""
    distance = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    assert (distance <= tolerance * np.linalg.norm(expected, axis=1)).all(), distance.max()


def test_a_folder_becomes_vectors_logits_and_classes(
    folder: Path, embedded: Path, reference: tuple[np.ndarray, np.ndarray]
) -> None:
    table = effnet_batch.read_embeddings(str(embedded)).sort_by("uri")
    assert table["uri"].to_pylist() == sorted(str(path) for path in folder.glob("*/*.jpg"))
    assert table["label"].to_pylist() == ["left"] * 6 + ["right"] * 6
    assert set(table["member"].to_pylist()) == {None}
    assert table["size_bytes"].to_pylist() == [len(data) for data in IMAGES]
    assert set(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == {
        (96, 80)
    }
    embeddings, logits = reference
    vectors = effnet_batch.embedding_matrix(table)
    assert vectors.dtype == np.float32
    # Pillow's own order of the two resampling passes differs by single grey levels.
    assert_close(vectors, embeddings, 0.01)
    stored = effnet_batch.embedding_matrix(table, "logits")
    assert_close(stored, logits, 0.01)
    best = np.argsort(-stored, axis=1)[:, :3]
    assert table["top_k_classes"].to_pylist() == best.tolist()
    shares = torch.softmax(torch.from_numpy(stored), 1).numpy()
    np.testing.assert_allclose(
        np.array(table["top_k_scores"].to_pylist()), np.take_along_axis(shares, best, 1), rtol=1e-5
    )


def test_vectors_are_one_view_and_any_reader_opens_the_parts(embedded: Path) -> None:
    table = effnet_batch.read_embeddings(str(embedded), columns=["uri", "embedding"])
    parts = list(effnet_batch.iter_embeddings(str(embedded), columns=["uri", "embedding"]))
    assert len(parts) == len(list((embedded / "data").iterdir()))
    assert pa.concat_tables(parts) == table
    assert table.column_names == ["uri", "embedding"]
    one = table.combine_chunks()
    vectors = effnet_batch.embedding_matrix(one)
    address = one["embedding"].chunk(0).flatten().buffers()[1].address
    assert vectors.__array_interface__["data"][0] == address
    frame = pd.read_parquet(embedded / "data")
    assert len(frame) == NUM_IMAGES
    by_uri = dict(zip(frame["uri"], frame["embedding"], strict=True))
    for uri, vector in zip(one["uri"].to_pylist(), vectors, strict=True):
        np.testing.assert_array_equal(by_uri[uri], vector)
    (part,) = (embedded / "data").glob("part-*.parquet")
    stamp = json.loads(pq.read_schema(part).metadata[b"effnet_batch"])
    record = json.loads((embedded / "run.json").read_text())
    assert record["state"] == "complete"
    assert stamp["fingerprint_fields"] == record["fingerprint_fields"]
    assert stamp["fingerprint_fields"]["architecture"] == "efficientnet_lite0"
    assert record["config"]["top_k"] == 3


def write_shards(root: Path) -> dict[str, dict[str, tuple[int, str | None]]]:
    """Writes shards of IMAGES; returns name -> member -> (image, label)."""
    files = [(f"a/{index:02}.jpg", data) for index, data in enumerate(IMAGES[:3])]
    labelled = [*files]
    labelled.insert(1, ("a/00.cls", b"7"))
    (root / "one.tar").write_bytes(make_tar(labelled))
    (root / "two.tar.zst").write_bytes(zstandard.compress(make_tar(files)))
    (root / "five.tar.gz").write_bytes(gzip.compress(make_tar(files)))
    (root / "three.zip").write_bytes(make_zip(files))
    rows = [{"bytes": data, "path": name} for name, data in files]
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": images, "label": [4, 5, 6]})
    (root / "four.parquet").write_bytes(make_parquet(table))
    plain: dict[str, tuple[int, str | None]] = {
        name: (index, None) for index, (name, _) in enumerate(files)
    }
    return {
        "one.tar": {**plain, "a/00.jpg": (0, "7")},
        "two.tar.zst": plain,
        "three.zip": plain,
        "five.tar.gz": plain,
        "four.parquet": {name: (index, str(index + 4)) for name, (index, _) in plain.items()},
    }


def test_shards_give_the_vectors_of_their_images(tmp_path: Path, embedded: Path) -> None:
    (tmp_path / "in").mkdir()
    expected = write_shards(tmp_path / "in")
    summary = effnet_batch.embed(str(tmp_path / "in"), str(tmp_path / "out"), **MODEL)
    assert summary.report.num_sources == len(expected)
    assert summary.num_new_records == 3 * len(expected)
    table = effnet_batch.read_embeddings(str(tmp_path / "out"))
    found: dict[str, dict[str, tuple[int, str | None]]] = {}
    for row in table.select(["uri", "member", "label"]).to_pylist():
        members = found.setdefault(Path(row["uri"]).name, {})
        members[row["member"]] = (number_of(row["member"]), row["label"])
    assert found == expected
    plain = effnet_batch.read_embeddings(str(embedded)).sort_by("uri")
    numbers = [number_of(name) for name in table["member"].to_pylist()]
    vectors = effnet_batch.embedding_matrix(table)
    assert_close(vectors, effnet_batch.embedding_matrix(plain)[numbers], 1e-5)
    assert verify(str(tmp_path / "out"), is_deep=True).is_proven


def test_split_placement_and_float16_give_the_same_numbers(
    tmp_path: Path, folder: Path, embedded: Path
) -> None:
    lines = ["path,label,group,split"]
    for index, path in enumerate(sorted(folder.glob("*/*.jpg"))):
        lines.append(f"{path},label {index},g{index % 2},{'train' if index else 'test'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    effnet_batch.embed(
        str(tmp_path / "list.csv"),
        str(tmp_path / "out"),
        placement="split",
        dtype="float16",
        rows_per_part=5,
        **MODEL,
    )
    table = effnet_batch.read_embeddings(str(tmp_path / "out")).sort_by("uri")
    assert table["label"].to_pylist() == [f"label {index}" for index in range(NUM_IMAGES)]
    assert table["group"].to_pylist() == ["g0", "g1"] * 6
    assert table["split"].to_pylist() == ["test"] + ["train"] * 11
    vectors = effnet_batch.embedding_matrix(table)
    assert vectors.dtype == np.float16
    plain = effnet_batch.read_embeddings(str(embedded)).sort_by("uri")
    assert_close(vectors, effnet_batch.embedding_matrix(plain), 1e-3)
    parts = list((tmp_path / "out" / "data").iterdir())
    assert sum(pq.read_metadata(part).num_rows for part in parts) == NUM_IMAGES
    assert max(pq.read_metadata(part).num_rows for part in parts) <= 5
    assert verify(str(tmp_path / "out"), is_deep=True).is_proven


def test_parts_are_cut_as_whole_batches_unless_these_are_large(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(600):
        (tmp_path / "in" / f"{index:03}.jpg").write_bytes(IMAGES[index % NUM_IMAGES])
    settings: dict[str, Any] = {**MODEL, "weights": "random", "image_size": 32, "num_actors": 1}
    # A batch of more than the smallest part's 128 rows, as on cards, counts as one of so many.
    for batch_size, wanted in ((32, [160, 160, 160, 120]), (500, [256, 256, 88])):
        output = tmp_path / f"out-{batch_size}"
        effnet_batch.embed(str(tmp_path / "in"), str(output), batch_size=batch_size, **settings)
        parts = sorted((output / "data").iterdir())
        assert [pq.read_metadata(part).num_rows for part in parts] == wanted


def test_a_glob_a_manifest_a_limit_and_a_run_with_nothing_to_do(
    tmp_path: Path, folder: Path
) -> None:
    manifest = str(tmp_path / "images.parquet")
    counts = list_input(str(folder / "*" / "*[0-4].jpg"), manifest, {"label_from": "parent"})
    assert counts["sources"] == 7
    arguments: dict[str, Any] = {**MODEL, "weights": "random", "image_size": 64, "limit": 6}
    summary = effnet_batch.embed(manifest, str(tmp_path / "out"), **arguments)
    assert summary.num_new_records == 6
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["resolved"]["weights"] == "random:0"
    table = effnet_batch.read_embeddings(str(tmp_path / "out"))
    names = ["00", "01", "02", "03", "04", "10"]
    assert sorted(Path(uri).stem for uri in table["uri"].to_pylist()) == names
    assert set(table["label"].to_pylist()) == {"left", "right"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    again = effnet_batch.embed(manifest, str(tmp_path / "out"), **arguments)
    assert (again.state, again.num_new_records) == ("complete", 0)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert after == before


@pytest.mark.parametrize("placement", ["fused", "split"])
def test_images_that_the_model_gives_no_numbers_for_fail_alone(
    placement: str, tmp_path: Path
) -> None:
    model = build_model("mobilenet_v2", num_classes=2)
    make_overflow(model)
    info = ClassifierInfo(
        architecture="mobilenet_v2",
        padding=model.padding,
        bn_eps=model.bn_eps,
        bn_momentum=0.1,
        preprocessing=PREPROCESSING,
        class_names=("a", "b"),
    )
    (tmp_path / "model.safetensors").write_bytes(classifier_bytes(model, info))
    (tmp_path / "in").mkdir()
    for index in range(6):
        colour = (90 * (index in (1, 4)),) * 3
        Image.new("RGB", (64, 64), colour).save(tmp_path / "in" / f"{index}.png")
    arguments: dict[str, Any] = {
        "model": "mobilenet_v2",
        "weights": str(tmp_path / "model.safetensors"),
        "engine": "torch",
        "top_k": 1,
        "placement": placement,
        "max_failures": 1.0,
    }
    output = str(tmp_path / "out")
    summary = effnet_batch.embed(str(tmp_path / "in"), output, **arguments)
    assert summary.report.records_by_status == {"ok": 4, "model_error": 2}
    (rows,) = (pq.read_table(part) for part in (tmp_path / "out" / "data").iterdir())
    failed = rows.filter(pc.equal(rows["status"], "model_error"))
    assert sorted(Path(uri).name for uri in failed["uri"].to_pylist()) == ["1.png", "4.png"]
    assert set(failed["error_message"].to_pylist()) == {
        "the model's output is not finite in fp32, stored as float32"
    }
    assert verify(output, is_deep=True).is_proven
    again = effnet_batch.embed(str(tmp_path / "in"), output, **arguments)
    assert (again.state, again.num_new_records) == ("complete", 0)


def test_an_output_inside_its_input_is_not_embedded(tmp_path: Path) -> None:
    for index, data in enumerate(IMAGES[:2]):
        (tmp_path / f"{index}.jpg").write_bytes(data)
    output = tmp_path / "embeddings"
    arguments: dict[str, Any] = {**MODEL, "weights": "random", "image_size": 64}
    effnet_batch.embed(str(tmp_path), str(output), **arguments)
    (output / "2.jpg").write_bytes(IMAGES[2])
    (tmp_path / "3.jpg").write_bytes(IMAGES[3])
    (tmp_path / "1.jpg").write_bytes(encode(photograph("coins")))
    summary = effnet_batch.embed(str(tmp_path), str(output), update=True, **arguments)
    assert summary.num_new_records == 2
    table = effnet_batch.read_embeddings(str(output)).sort_by("uri")
    assert table["uri"].to_pylist() == [f"{tmp_path}/{index}.jpg" for index in (0, 1, 3)]
    assert table["width"].to_pylist() == [96, 384, 96]
    assert table["attempt"].to_pylist() == [1, 2, 1]
    # A plain reader of all parts sees the row that the second attempt replaced, too.
    assert len(pq.read_table(output / "data")) == 4


def test_an_output_of_other_numbers_or_of_another_input_is_refused(
    tmp_path: Path, folder: Path, embedded: Path
) -> None:
    files = sorted(path for path in embedded.rglob("*") if path.is_file())
    asked: dict[str, Any] = {"label_from": "parent", "top_k": 3, "logits": True, **MODEL}
    changes = {"model": "mobilenet_v2", "weights": "random", "image_size": 96, "dtype": "float16"}
    with pytest.raises(FingerprintError) as caught:
        effnet_batch.embed(str(folder), str(embedded), **{**asked, **changes})
    message = str(caught.value)
    assert "  architecture: output has 'efficientnet_lite0', this run 'mobilenet_v2'" in message
    assert "  dtype: output has 'float32', this run 'float16'" in message
    differing = {line.split(":")[0].strip() for line in message.splitlines() if ": output" in line}
    differing = {name.partition(".")[0] for name in differing}
    assert {"architecture", "weights_sha256", "preprocessing", "dtype"} <= differing
    assert differing.isdisjoint({"job", "engine", "precision", "top_k", "logits"})
    with pytest.raises(ConfigError, match=f"was made from {folder}, not {folder}/left; use"):
        effnet_batch.embed(str(folder / "left"), str(embedded), **asked)
    assert sorted(path for path in embedded.rglob("*") if path.is_file()) == files
    with pytest.raises(InputError, match="no images"):
        effnet_batch.embed(str(tmp_path), str(tmp_path / "out"), **asked)
