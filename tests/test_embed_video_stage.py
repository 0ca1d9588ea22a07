"""Videos to vectors without Ray: the pooled vectors against a plain decode and the same engine."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from skimage import data as photographs
from video_files import CLIPS, decode_plainly, encode

from effnet_batch.errors import FetchError
from effnet_batch.media.faces import FaceDetector, FaceSettings, crop_face
from effnet_batch.media.pixels import PixelConverter
from effnet_batch.media.sampling import EveryNth, Uniform
from effnet_batch.media.video import open_video
from effnet_batch.models.engine import Engine, build_engine
from effnet_batch.models.weights import load_model as load_backbone
from effnet_batch.schema import video_embeddings_schema
from effnet_batch.stages.embed_video import VideoEmbedder, embed_video
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item, Source
from effnet_batch.stages.records import Stamp
from effnet_batch.stages.show import View
from effnet_batch.stages.video import VideoHere

CARPHONE = (CLIPS / "carphone_pristine.mp4").read_bytes()
SOURCE = Source(
    uri="/videos/one.mp4",
    source_id="0" * 32,
    kind="video",
    size_bytes=None,
    etag=None,
    label="pet",
    group=None,
    split=None,
    source_version="7",
    attempt=2,
    skip=frozenset(),
    fetch_uri=None,
)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return load_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def engine(backbone: Any) -> Engine:
    return build_engine(backbone, backbone.weights_info.preprocessing, engine="torch", batch_size=3)


def embed(data: bytes, view: View, backbone: Any, engine: Engine, **settings: Any) -> dict:
    face_model = settings.pop("face_model", None)
    embedder = VideoEmbedder(
        view=view,
        preprocessing=backbone.weights_info.preprocessing,
        encoder=OwnEncoder(engine),
        **settings,
    )

    @contextlib.contextmanager
    def open_here(item: Item) -> Iterator[VideoHere]:
        assert item.data is not None
        with open_video(item.data) as reader:
            yield VideoHere(reader, face_model, StageClock())

    item = Item(SOURCE, data=data, size_bytes=len(data), num_source_records=1)
    if not data:
        item = Item(SOURCE, error=FetchError("gone", error_type="Gone"), num_source_records=1)
    table = embed_video(item, open_here, embedder, Stamp("run", "f" * 16), StageClock())
    assert table.schema == video_embeddings_schema(float16=settings.get("dtype") == "float16")
    (row,) = table.to_pylist()
    return row


def plain_embeddings(pictures: list[np.ndarray], engine: Engine) -> np.ndarray:
    """float32 [N, D] of uint8 [224, 224, 3], one picture at a time."""
    return np.concatenate([engine.run(picture[None]).embeddings for picture in pictures])


def plain_frames(data: bytes, indices: list[int]) -> list[np.ndarray]:
    """Decodes everything with PyAV, then shrinks to 256 and crops to 224 as Lite0 wants it."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    pictures = []
    for frame in (frames[index] for index in indices):
        side = min(frame.width, frame.height)
        width, height = 256 * frame.width // side, 256 * frame.height // side
        small = frame.reformat(
            width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        ).to_ndarray()
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        pictures.append(small[top : top + 224, left : left + 224])
    return pictures


def assert_same(found: list[float], pictures: list[np.ndarray], engine: Engine) -> None:
    expected = plain_embeddings(pictures, engine)
    assert np.abs(expected - expected[0]).max() > 0.05, "all alike, so nothing is tested"
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=0, atol=1e-6)


def test_a_video_is_the_mean_of_its_frames(backbone: Any, engine: Engine) -> None:
    row = embed(CARPHONE, View(sampling=Uniform(num_frames=8)), backbone, engine)
    assert_same(row["embedding"], plain_frames(CARPHONE, [i * 15 for i in range(8)]), engine)
    counts = ("num_frames_expected", "num_frames_sampled", "num_frames_used", "num_tracks")
    assert [row[name] for name in counts] == [8, 8, 8, 1]
    assert (row["num_faces"], row["is_partial"], row["codec"]) == (None, False, "h264")
    assert (row["width"], row["height"]) == (176, 144)
    assert (row["fps"], row["duration_seconds"]) == pytest.approx((29.97, 4.004), abs=1e-3)
    assert (row["status"], row["label"], row["attempt"]) == ("ok", "pet", 2)


def test_segments_are_sampled_on_their_own_and_pooled_together(
    backbone: Any, engine: Engine
) -> None:
    data = encode(num_frames=60)  # 25 frames a second
    view = View(sampling=Uniform(num_frames=2), segment_seconds=1.0)
    row = embed(data, view, backbone, engine, dtype="float16")
    expected = plain_embeddings(plain_frames(data, [0, 12, 25, 37, 50, 55]), engine)
    np.testing.assert_allclose(row["embedding"], expected.mean(axis=0), rtol=1e-3, atol=1e-6)
    assert (row["num_frames_used"], row["num_tracks"]) == (6, 1)


def test_faces_are_pooled_over_frames_and_tracks(
    backbone: Any, engine: Engine, face_model: bytes
) -> None:
    settings = FaceSettings(margin=1.4)
    view = View(sampling=EveryNth(ratio=30), faces=settings)
    row = embed(CARPHONE, view, backbone, engine, face_model=face_model)
    fit = PixelConverter(backbone.weights_info.preprocessing).fit
    detector = FaceDetector(face_model, settings)
    crops = []
    for _, pixels in decode_plainly(CARPHONE)[::30]:
        (box,) = detector.detect(pixels)
        crops.append(fit(crop_face(pixels, box, margin=1.4)))
    assert_same(row["embedding"], crops, engine)
    assert (row["num_faces"], row["num_tracks"], row["num_frames_used"]) == (4, 1, 4)


def test_a_second_face_is_a_second_track(backbone: Any, engine: Engine, face_model: bytes) -> None:
    person = photographs.astronaut()[:300, 100:350]
    pair = np.concatenate([person, person[:, ::-1]], axis=1)
    data = still(pair, num_frames=6)
    fit = PixelConverter(backbone.weights_info.preprocessing).fit
    (_, pixels), *_ = decode_plainly(data)
    boxes = FaceDetector(face_model, FaceSettings()).detect(pixels)
    assert len(boxes) == 2
    crops = [fit(crop_face(pixels, box, margin=1.3)) for box in boxes]
    view = View(sampling=EveryNth(ratio=2), segment_seconds=0.16, faces=FaceSettings())
    row = embed(data, view, backbone, engine, face_model=face_model)
    # Frames of a still picture are coded alike, so every frame shows the same two faces.
    assert_same(row["embedding"], crops, engine)
    assert (row["num_faces"], row["num_frames_used"]) == (6, 3)
    assert row["num_tracks"] == 4, "two faces in each of two segments"


def still(picture: np.ndarray, num_frames: int) -> bytes:
    """A lossless video, 25 frames a second, of one picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "rgb24"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_without_what_it_needs_a_video_has_no_vector(
    backbone: Any, engine: Engine, face_model: bytes
) -> None:
    view = View(sampling=Uniform(num_frames=4))
    short = embed(encode(num_frames=3), view, backbone, engine, min_frames=4)
    assert (short["status"], short["num_frames_sampled"]) == ("too_short", 3)
    faceless = embed(
        encode(num_frames=3),
        View(sampling=Uniform(num_frames=4), faces=FaceSettings()),
        backbone,
        engine,
        face_model=face_model,
    )
    assert (faceless["status"], faceless["num_faces"]) == ("no_face", 0)
    text = embed(b"no video", view, backbone, engine)
    assert (text["status"], text["codec"], text["is_partial"]) == ("unsupported", None, None)
    gone = embed(b"", view, backbone, engine)
    assert (gone["status"], gone["error_type"]) == ("fetch_error", "Gone")
    for row in (short, faceless, text, gone):
        assert (row["embedding"], row["num_tracks"]) == (None, None)


def test_a_cut_video_is_embedded_by_the_frames_that_it_has(backbone: Any, engine: Engine) -> None:
    whole = encode(container="matroska", num_frames=100, options={"g": "10"})
    cut = whole[: len(whole) * 6 // 10]
    row = embed(cut, View(sampling=EveryNth(ratio=20)), backbone, engine)
    assert (row["status"], row["is_partial"]) == ("ok", True)
    num_frames = row["num_frames_used"]
    assert 1 < num_frames < 5
    assert_same(row["embedding"], plain_frames(whole, [20 * i for i in range(num_frames)]), engine)
