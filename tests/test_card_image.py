"""JPEGs to frames as a card makes them: here on the CPU, by the same code from the pixels on."""

import functools
import io
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cpu_card import CPUCard
from photographs import PHOTOGRAPHS, encode, photograph
from PIL import Image
from read_sources import source

from effnet_batch.config import EmbedConfig
from effnet_batch.errors import ConfigError, FetchError, RecordError
from effnet_batch.media import card_image
from effnet_batch.media.card_image import CardDecoder, load_nvjpeg, orient
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.engine_cuda import CUDAEngine
from effnet_batch.pipelines import resolution
from effnet_batch.pipelines.progress import Silent
from effnet_batch.pipelines.resolve import Resolved, resolve
from effnet_batch.schema import KIND_TAR
from effnet_batch.stages.decode import decode_batch, decode_on_card
from effnet_batch.stages.embed import EmbeddingColumns, embed_batch
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp

LIMITS = ImageLimits()


def decode_in_full(images: list[bytes]) -> list[torch.Tensor]:
    """What nvJPEG does, by Pillow: no scaled decode, no orientation; an error if one is damaged."""
    decoded = []
    for data in images:
        with Image.open(io.BytesIO(data)) as image:
            try:
                pixels = np.array(image.convert("RGB"))
            except OSError as error:
                raise RuntimeError("nvJPEG failed") from error
        decoded.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return decoded


def recipe(**options: object) -> Preprocessing:
    return Preprocessing(**{"image_size": 224, "resize_size": 256, **options})


def decoder(
    preprocessing: Preprocessing, decode: Callable[[list[bytes]], list[torch.Tensor]]
) -> CardDecoder:
    return CardDecoder(preprocessing, LIMITS, device="cpu", decode_jpegs=decode)


def psnr(mine: np.ndarray, wanted: np.ndarray) -> float:
    error = np.mean((mine.astype(np.float64) - wanted.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_mode", ["crop", "squash", "pad"])
def test_frames_are_those_of_the_cpu_but_for_rounding(interpolation: str, resize_mode: str) -> None:
    preprocessing = recipe(interpolation=interpolation, resize_mode=resize_mode)
    images = [encode(photograph(name)) for name in PHOTOGRAPHS]
    decoded = decoder(preprocessing, decode_in_full).decode(images)
    assert decoded.frames.shape == (len(images), 224, 224, 3)
    assert decoded.frames.is_contiguous()
    for data, frame, size in zip(images, decoded.frames.numpy(), decoded.outcomes, strict=True):
        wanted = decode_image(data, preprocessing, LIMITS)
        assert size == (wanted.width, wanted.height)
        assert psnr(frame, wanted.frame) > 48


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph("coffee").resize((300, 200)), exif=exif)
    decoded = decoder(recipe(), decode_in_full).decode([data])
    wanted = decode_image(data, recipe(), LIMITS)
    assert decoded.outcomes == [(wanted.width, wanted.height)]
    assert psnr(decoded.frames[0].numpy(), wanted.frame) > 45
    turned = orient(torch.arange(6).view(1, 2, 3), orientation)
    assert turned.shape[1:] == ((2, 3) if orientation < 5 else (3, 2))


def test_what_is_not_for_the_card_is_decoded_as_ever() -> None:
    plain = photograph("coffee").resize((300, 200))
    whole = encode(plain)
    images = {
        "whole": whole,
        "grey": encode(plain.convert("L")),
        "png": encode(plain, "PNG"),
        "cmyk": encode(plain.convert("CMYK")),
        "cut": whole[: len(whole) // 2],
        "long": encode(plain.resize((3000, 20))),
        "empty": b"",
        "text": b"no image at all",
        "again": whole,
    }
    seen: list[int] = []

    def decode(files: list[bytes]) -> list[torch.Tensor]:
        seen.append(len(files))
        return decode_in_full(files)

    beats: list[int] = []
    decoded = decoder(recipe(), decode).decode(list(images.values()), lambda: beats.append(1))
    assert seen == [3]  # whole, grey, again
    assert len(beats) == len(images) - 3 + 1  # each of the others, and the three at once
    frames = iter(decoded.frames.numpy())
    for name, outcome in zip(images, decoded.outcomes, strict=True):
        try:
            wanted = decode_image(images[name], recipe(), LIMITS)
        except RecordError as error:
            assert isinstance(outcome, RecordError)
            assert (outcome.status, str(outcome)) == (error.status, str(error)), name
        else:
            assert outcome == (wanted.width, wanted.height), name
            frame = next(frames)
            if name not in ("whole", "grey", "again"):
                np.testing.assert_array_equal(frame, wanted.frame)
    assert next(frames, None) is None


def test_one_damaged_image_costs_the_others_nothing() -> None:
    good = [encode(photograph(name).resize((90, 80))) for name in ("coffee", "rocket")]
    # Without pixels, but whole by its ends.
    bad = good[0][: good[0].index(b"\xff\xda")] + b"\xff\xd9"
    calls: list[int] = []

    def decode(files: list[bytes]) -> list[torch.Tensor]:
        calls.append(len(files))
        return decode_in_full(files)

    decoded = decoder(recipe(), decode).decode([good[0], bad, good[1], good[1]])
    assert calls == [4, 2, 1, 1, 2]
    assert [isinstance(each, RecordError) for each in decoded.outcomes] == [0, 1, 0, 0]
    assert len(decoded.frames) == 3


def test_a_full_card_decodes_fewer_at_once() -> None:
    images = [encode(photograph("coffee").resize((90, 80)))] * 4

    def decode(files: list[bytes]) -> list[torch.Tensor]:
        if len(files) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode_in_full(files)

    assert len(decoder(recipe(), decode).decode(images).frames) == 4


@pytest.mark.parametrize("step", ["decode", "fit"])
def test_an_image_for_which_a_card_has_no_room_is_decoded_as_ever(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (encode(photograph("coffee").resize(size)) for size in ((90, 80), (900, 800)))
    fit = card_image.fit
    calls: list[int] = []
    beats: list[int] = []

    def decode(files: list[bytes]) -> list[torch.Tensor]:
        calls.append(len(files))
        if step == "decode" and large in files:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode_in_full(files)

    def fit_small(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
        if step == "fit" and pixels.shape[2] == 800:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(pixels, preprocessing)

    monkeypatch.setattr(card_image, "fit", fit_small)
    decoded = decoder(recipe(), decode).decode([small, large, small], lambda: beats.append(1))
    assert decoded.outcomes == [(90, 80), (900, 800), (90, 80)]
    wanted = decode_image(large, recipe(), LIMITS).frame
    np.testing.assert_array_equal(decoded.frames[1].numpy(), wanted)
    assert calls == [3, 1, 2, 1, 1]
    assert len(beats) == len(calls) + 1


def test_few_pixels_lie_on_the_card_in_full_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_image, "_MAX_PORTION_PIXELS", 4 * 90 * 80)
    sizes = [(90, 80)] * 5 + [(900, 800), (90, 80)]
    images = [encode(photograph("coffee").resize(size)) for size in sizes]
    images.insert(2, b"no image")
    calls: list[int] = []
    alive: list[weakref.ref[torch.Tensor]] = []

    def decode(files: list[bytes]) -> list[torch.Tensor]:
        assert not any(each() is not None for each in alive)  # the last portion is off the card
        calls.append(len(files))
        decoded = decode_in_full(files)
        alive[:] = map(weakref.ref, decoded)
        return decoded

    beats: list[int] = []
    decoded = decoder(recipe(), decode).decode(images, lambda: beats.append(1))
    assert calls == [4, 1, 1, 1]
    assert len(beats) == 4 + 1
    assert len(decoded.frames) == 7
    whole = decoder(recipe(), decode_in_full).decode(images)
    assert whole.outcomes[3:] == decoded.outcomes[3:]
    np.testing.assert_array_equal(decoded.frames.numpy(), whole.frames.numpy())


def test_a_batch_decoded_on_the_card_has_the_rows_of_one_decoded_on_the_cpu() -> None:
    preprocessing = recipe(image_size=64, resize_size=64)
    shard = source("file:///photographs.tar", KIND_TAR)
    contents = [encode(photograph("coffee")), b"no image", encode(photograph("rocket"), "PNG")]
    items = [Item(shard, member=str(n), data=data) for n, data in enumerate(contents)]
    items.insert(1, Item(shard, member="gone", error=FetchError("gone", error_type="Gone")))
    stamp = Stamp("run", "fingerprint")
    on_card = decode_on_card(items, decoder(preprocessing, decode_in_full), stamp, lambda: None)
    decode = functools.partial(decode_image, preprocessing=preprocessing, limits=LIMITS)
    on_cpu = decode_batch(items, decode, stamp, 64)
    assert on_card.rows.equals(on_cpu.rows)
    assert on_card.rows["status"].to_pylist() == ["ok", "fetch_error", "unsupported", "ok"]
    # Frames that lie on the card are run from there.
    torch.manual_seed(0)
    model = build_model("efficientnet_b0").eval()
    engine = CUDAEngine(model, preprocessing, precision="fp32", batch_size=1, card=CPUCard())
    rows = embed_batch(on_card, engine, EmbeddingColumns()).to_pylist()
    for row, index in ((rows[0], 0), (rows[3], 1)):
        alone = engine.run(on_card.frames[index : index + 1].numpy()).embeddings[0]
        np.testing.assert_array_equal(row["embedding"], alone)
    assert [row["embedding"] is None for row in rows] == [False, True, True, False]


def test_no_images_give_no_frames() -> None:
    decoded = decoder(recipe(), decode_in_full).decode([])
    assert decoded.frames.shape == (0, 224, 224, 3)
    assert decoded.outcomes == []


def test_a_kernel_that_a_card_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="bilinear or bicubic, and these weights want lanczos"):
        decoder(recipe(interpolation="lanczos"), decode_in_full)


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ConfigError, match=r"pip install 'effnet-batch\[nvjpeg\]'"):
        load_nvjpeg()


def test_a_model_on_a_cpu_has_no_card_to_decode_on() -> None:
    settings = {"model": "efficientnet_lite0", "weights": "random", "image_size": 64}
    with pytest.raises(ConfigError, match="this model runs on a CPU; leave --gpu-decode out"):
        resolve(EmbedConfig.from_flat({**settings, "device": "cpu", "gpu_decode": True}))


def test_nodes_without_a_card_may_belong_to_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EmbedConfig.from_flat(
        {"model": "efficientnet_lite0", "weights": "random", "image_size": 64, "gpu_decode": True}
    )
    resolved: list[Resolved] = []
    monkeypatch.setattr(resolution, "first_uri", lambda pending: None)
    monkeypatch.setattr(resolution, "check_nodes", lambda *found: resolved.append(found[3]()))
    run = SimpleNamespace(
        reporter=Silent(), paths=SimpleNamespace(root="out"), pending=None, storage=None
    )
    resolution._check_cluster(run, config, resolve, [(2.0, 1.0), (2.0, 0.0)])
    assert [each.engine.device for each in resolved] == ["cpu"]


@pytest.mark.needs_gpu
def test_nvjpeg_agrees_with_the_cpu() -> None:
    pytest.importorskip("torchvision.io")
    images = [encode(photograph(name)) for name in PHOTOGRAPHS]
    decoded = CardDecoder(recipe(), LIMITS).decode(images)
    assert decoded.frames.is_cuda
    for data, frame in zip(images, decoded.frames.cpu().numpy(), strict=True):
        assert psnr(frame, decode_image(data, recipe(), LIMITS).frame) > 38
