"""Videos as a card decodes them: here on the CPU, by torchcodec or by what does the same."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from photographs import PHOTOGRAPHS, photograph
from read_sources import source
from test_card_image import psnr
from test_crops import FakeDetector
from tiny_checkpoint import tiny_checkpoint
from video_files import B_FRAMES, CLIPS, decode_plainly, encode, encoded

import effnet_batch
from effnet_batch.config import EmbedConfig, ScoreConfig, VideoLimitSettings
from effnet_batch.errors import ConfigError
from effnet_batch.media import card_video
from effnet_batch.media.card_video import CardVideos
from effnet_batch.media.faces import FaceSettings
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import EveryNth
from effnet_batch.media.video import Frame, open_video
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.pipelines import score_resolve, video_workers
from effnet_batch.pipelines.embed_videos import resolve_videos
from effnet_batch.pipelines.rescore_resolve import _find
from effnet_batch.pipelines.score_resolve import ResolvedScoring, resolve_scoring
from effnet_batch.stages import show as show_module
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.show import Pictures, Stretch, View, Viewing, show

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
RECIPE = Preprocessing(image_size=64, resize_size=72)
HAS_TORCHCODEC = "torchcodec is not installed, or not for this torch or FFmpeg"
SOME = [0, 3, 4, 25, 26, 40, 59]


def plain_decoder(
    *, fails_at: int | None = None, late_at: int | None = None, error: Exception | None = None
) -> Any:
    """What torchcodec's decoder does, by PyAV; it may fail, or show another frame."""

    class PlainDecoder:
        cpu_fallback = False
        num_calls = 0
        num_opened = 0

        def __init__(self, source: Any, *, device: str, **options: Any) -> None:
            type(self).num_opened += 1
            data = source if isinstance(source, bytes) else source.read(1 << 30)
            self._frames = decode_plainly(data)
            self._is_tried = not options
            if options:
                assert options["stream_index"] == 0
                assert options["custom_frame_mappings"].count("pts") == len(self._frames)

        def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
            type(self).num_calls += not self._is_tried
            if fails_at in indices and not self._is_tried:
                raise error or RuntimeError("NVDEC failed")
            shown = [index + (index == late_at) for index in indices]
            pixels = np.stack([self._frames[index][1] for index in shown])
            seconds = [self._frames[index][0] for index in shown]
            return SimpleNamespace(
                data=torch.from_numpy(pixels).permute(0, 3, 1, 2),
                pts_seconds=torch.tensor(seconds, dtype=torch.float64),
            )

    return PlainDecoder


def on_cpu(decoder_type: Any) -> CardVideos:
    return CardVideos(device="cpu", decoder_type=decoder_type)


def read_both(
    card: CardVideos, data: bytes, indices: list[int], *recipes: Preprocessing | None
) -> tuple[str, list[Frame], list[Frame]]:
    """Which decoder was at work, its frames, and those of the CPU's own way."""
    with open_video(data) as reader:
        video = card.open(reader)
        mine, wanted = list(video.read(indices, *recipes)), list(reader.read(indices, *recipes))
        assert (video.info, video.is_partial) == (reader.info, reader.is_partial)
    places = [(frame.index, frame.pts_seconds) for frame in wanted]
    assert [(frame.index, frame.pts_seconds) for frame in mine] == places
    return video.decoder, mine, wanted


def assert_same(mine: list[Frame], wanted: list[Frame]) -> None:
    for one, other in zip(mine, wanted, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.pixels.flags.c_contiguous


def test_frames_are_those_of_the_cpu_but_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_video, "_MAX_TOGETHER", 3)
    decoder_type = plain_decoder()
    decoder, mine, wanted = read_both(on_cpu(decoder_type), CARPHONE, SOME, None, RECIPE)
    assert (decoder, decoder_type.num_calls) == ("nvdec", 3)
    assert_same(mine[::2], wanted[::2])
    for one, other in zip(mine[1::2], wanted[1::2], strict=True):
        assert one.pixels.shape == (64, 64, 3)
        assert psnr(one.pixels, other.pixels) > 35


@pytest.mark.parametrize(
    "failure",
    [
        {"fails_at": 26},
        {"fails_at": 26, "error": torch.OutOfMemoryError("CUDA out of memory")},
        {"late_at": 26},
        {"fails_at": 0},
    ],
)
def test_a_video_at_which_a_card_fails_is_decoded_as_ever(
    failure: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_video, "_MAX_TOGETHER", 2)
    decoder_type = plain_decoder(**failure)
    decoder, mine, wanted = read_both(on_cpu(decoder_type), CARPHONE, SOME, None)
    assert (decoder, decoder_type.num_calls) == ("cpu", 1 if failure.get("fails_at") == 0 else 3)
    assert_same(mine, wanted)


@pytest.mark.parametrize(
    "data",
    [
        lambda: encoded("H.264 in avi"),
        lambda: encoded("H.264 in mpegts"),
        lambda: encoded("MPEG-4 in mp4"),
        lambda: encoded("H.264 10-bit"),
        lambda: encoded("H.264 interlaced"),
        lambda: encode(is_mirrored=True),
        lambda: encode(container="matroska", num_frames=100, options={"g": "10"})[:-20_000],
    ],
)
def test_what_is_not_for_a_card_never_reaches_it(data: Callable[[], bytes]) -> None:
    decoder_type = plain_decoder()
    decoder, mine, wanted = read_both(on_cpu(decoder_type), data(), [0, 3, 5], RECIPE)
    assert decoder_type.num_opened == 1  # to be tried
    assert decoder == "cpu"
    assert_same(mine, wanted)


def test_an_extreme_shape_is_resized_as_ever() -> None:
    wide = encode(size=(1600, 32), num_frames=6)
    decoder, mine, wanted = read_both(on_cpu(plain_decoder()), wide, [0, 5], RECIPE)
    assert decoder == "cpu"
    assert_same(mine, wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_faces_are_resized_as_the_cpu_does_it(interpolation: str) -> None:
    recipe = Preprocessing(image_size=224, resize_size=224, interpolation=interpolation)
    card, cpu = on_cpu(plain_decoder()), PixelConverter(recipe)
    crops = [
        np.array(photograph(name).convert("RGB").resize(size))
        for name, size in zip(PHOTOGRAPHS, [(120, 120), (320, 300), (480, 480)], strict=False)
    ]
    fitted = card.stack([card.fit(crop, recipe) for crop in crops])
    assert (fitted.shape, fitted.dtype) == ((3, 224, 224, 3), np.uint8)
    assert min(psnr(cpu.fit(crop), one) for crop, one in zip(crops, fitted, strict=True)) > 45
    long = np.ascontiguousarray(crops[0][:2])
    (one,) = card.stack([card.fit(long, recipe)])
    np.testing.assert_array_equal(one, cpu.fit(long))


def test_a_view_of_faces_has_them_resized_by_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "FaceDetector", FakeDetector)
    small = Preprocessing(image_size=32, resize_size=32, interpolation="bilinear")
    view = View(sampling=EveryNth(ratio=30), faces=FaceSettings(margin=1.5))
    viewing, card = Viewing(view, (RECIPE, small), 4), on_cpu(plain_decoder())
    fitted: list[tuple[int, ...]] = []
    fit = card.fit
    monkeypatch.setattr(
        card, "fit", lambda crop, recipe: (fitted.append(crop.shape), fit(crop, recipe))[1]
    )
    with open_video(CARPHONE) as reader:
        wanted = list(show(reader, viewing, b"model", StageClock()))
        mine = list(show(card.open(reader), viewing, b"model", StageClock(), card))
    assert [type(part) for part in mine] == [type(part) for part in wanted]
    shown = [part for part in wanted if isinstance(part, Stretch)]
    assert [part.shots for part in mine if isinstance(part, Stretch)] == [p.shots for p in shown]
    assert len(fitted) == 2 * len(shown[0].shots) > 8
    for one, other in zip(mine, wanted, strict=True):
        if isinstance(one, Pictures) and isinstance(other, Pictures):
            assert (one.recipe, one.pixels.shape) == (other.recipe, other.pixels.shape)
            assert psnr(one.pixels, other.pixels) > 35


def test_a_worker_hands_its_videos_to_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker(video_workers.VideoWorker):
        viewings = (Viewing(View(sampling=EveryNth(ratio=30)), (RECIPE,), 4),)

        def work(self, item: Item, open_video: Any, clock: Any, frames: Any) -> pa.Table:
            with open_video(item) as video:
                list(video.show(self.viewings[0]))
                return pa.table({"decoder": [video.decoder], "status": ["ok"]})

    card = on_cpu(plain_decoder())
    monkeypatch.setattr(video_workers, "CardVideos", lambda: card)
    found = {}
    for gpu_decode in (True, False):
        task: Any = SimpleNamespace(
            storage=None,
            limits=VideoLimitSettings(),
            config=None,
            resolved=SimpleNamespace(gpu_decode=gpu_decode, frames={}),
        )
        monkeypatch.setattr(video_workers, "Storage", lambda options: None)
        worker = Worker(task, board=None)
        for is_suspect in (False, True):
            with worker._working_here(StageClock(), is_suspect=is_suspect) as work:
                table, _ = work(Item(source("file:///one.mp4", "video"), data=CARPHONE))
            found[gpu_decode, is_suspect] = table["decoder"][0].as_py()
    # What may kill its decoder is decoded in a child.
    assert [key for key, decoder in found.items() if decoder == "nvdec"] == [(True, False)]


def test_a_decoder_that_does_not_use_the_card_is_refused() -> None:
    decoder_type = plain_decoder()
    decoder_type.cpu_fallback = "[CUDA] Fallback status: NVcuvid unavailable"
    with pytest.raises(ConfigError, match=r"a driver with NVDEC.*NVcuvid unavailable"):
        on_cpu(decoder_type)

    def of_another_build(source: Any, *, device: str) -> None:
        raise RuntimeError(f"Unsupported device: {device}")

    with pytest.raises(ConfigError, match=r"torchcodec built for CUDA.*Unsupported device: cuda"):
        CardVideos(decoder_type=of_another_build)
    with pytest.raises(ConfigError, match="bilinear or bicubic, and these weights want lanczos"):
        CardVideos([Preprocessing(image_size=8, resize_size=8, interpolation="lanczos")])


def test_a_missing_torchcodec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ConfigError, match=r"pip install 'effnet-batch\[nvdec\]'"):
        CardVideos()


def test_what_decodes_is_part_of_the_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "tiny.safetensors")
    save_checkpoint(file, *tiny_checkpoint())
    settings = {"checkpoint": [file], "device": "cpu", "engine": "torch", "embeddings": True}
    with pytest.raises(ConfigError, match="this model runs on a CPU; leave --gpu-decode out"):
        resolve_scoring(ScoreConfig.from_flat({**settings, "gpu_decode": True}))
    monkeypatch.setattr(score_resolve, "check_gpu_decode", lambda choice: None)
    monkeypatch.setattr(score_resolve, "CardVideos", list)
    plain = resolve_scoring(ScoreConfig.from_flat(settings))
    mine = resolve_scoring(ScoreConfig.from_flat({**settings, "gpu_decode": True}))
    again = ResolvedScoring.from_dict(json.loads(json.dumps(mine.to_dict())))
    assert again.fingerprint.digest == mine.fingerprint.digest != plain.fingerprint.digest
    assert mine.fingerprint.to_dict() == {**plain.fingerprint.to_dict(), "decoder": "nvdec"}
    (digest, stored), (own,) = *mine.frames.items(), plain.frames.values()
    assert stored == {**own, "decoder": "nvdec"}
    # Stored frames are judged by any checkpoint that would see them so, whoever decoded them.
    wanted = plain.frame_fingerprint(plain.checkpoints[0], "")
    assert _find("tiny", wanted, mine.frames, "out") == digest


def test_a_model_on_a_cpu_has_no_card_to_decode_videos_on() -> None:
    settings = {"model": "efficientnet_lite0", "weights": "random", "image_size": 64}
    with pytest.raises(ConfigError, match="this model runs on a CPU; leave --gpu-decode out"):
        resolve_videos(EmbedConfig.from_flat({**settings, "device": "cpu", "gpu_decode": True}))


@pytest.mark.parametrize(
    "name",
    [
        "H.264 in mp4",
        "H.264 in matroska",
        "H.264 open GOP",
        "HEVC in mp4",
        "VP9 in webm",
        "AV1 in mp4",
        "variable frame rate",
        "fragmented mp4",
        "several streams",
        "turned",
        "from a file",
    ],
)
def test_torchcodec_shows_the_same_frames(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchcodec.decoders", reason=HAS_TORCHCODEC, exc_type=Exception)
    data = encode(rotation_degrees=90) if name == "turned" else encoded_or_plain(name)
    if name == "from a file":
        with open_video(io.BytesIO(data)) as reader:
            video = CardVideos(device="cpu").open(reader)
            mine, wanted = list(video.read(SOME, None)), list(reader.read(SOME, None))
        decoder = video.decoder
    else:
        decoder, mine, wanted = read_both(CardVideos(device="cpu"), data, SOME, None)
    assert decoder == "nvdec"
    assert_same(mine, wanted)


def encoded_or_plain(name: str) -> bytes:
    return encode(options=B_FRAMES) if name == "from a file" else encoded(name)


@pytest.mark.needs_gpu
@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4"])
def test_nvdec_agrees_with_the_cpu(name: str) -> None:
    pytest.importorskip("torchcodec.decoders", reason=HAS_TORCHCODEC, exc_type=Exception)
    data = (CLIPS / name).read_bytes()
    decoder, mine, wanted = read_both(CardVideos([RECIPE]), data, SOME, None, RECIPE)
    assert decoder == "nvdec"
    for one, other in zip(mine, wanted, strict=True):
        assert psnr(one.pixels, other.pixels) > 32


@pytest.mark.needs_gpu
def test_faces_are_resized_on_a_card() -> None:
    pytest.importorskip("torchcodec.decoders", reason=HAS_TORCHCODEC, exc_type=Exception)
    card, crop = CardVideos([RECIPE]), np.array(photograph("coffee").convert("RGB"))
    fitted = card.fit(crop, RECIPE)
    assert fitted.is_cuda
    assert psnr(card.stack([fitted])[0], PixelConverter(RECIPE).fit(crop)) > 45


@pytest.mark.needs_gpu
def test_a_job_decodes_on_a_card(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec.decoders", reason=HAS_TORCHCODEC, exc_type=Exception)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.mp4").write_bytes(CARPHONE)
    (tmp_path / "in" / "two.ts").write_bytes(encoded("H.264 in mpegts"))
    file = str(tmp_path / "tiny.safetensors")
    save_checkpoint(file, *tiny_checkpoint())
    effnet_batch.score(
        str(tmp_path / "in"), str(tmp_path / "out"), checkpoint=[file], gpu_decode=True
    )
    rows = pq.read_table(tmp_path / "out" / "data").sort_by("uri").to_pylist()
    found = [(row["status"], row["decoder"]) for row in rows]
    assert found == [("ok", "nvdec"), ("ok", "cpu")]
