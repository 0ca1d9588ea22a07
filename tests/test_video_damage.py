"""Videos that are cut, damaged, hostile or no videos at all: a record's error and nothing else."""

import contextlib
import http.server
import io
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from skimage import data as photographs
from video_files import (
    B_FRAMES,
    CLIPS,
    PLAYLISTS,
    VP9,
    decode_plainly,
    encode,
    encoded,
    sound_only,
    with_size,
)

from effnet_batch.errors import (
    DecodeError,
    FetchError,
    OutageError,
    RecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.sampling import EveryNth, sample
from effnet_batch.media.video import VideoLimits, open_video

CUT: dict[str, tuple[Callable[[], bytes], int]] = {
    "mp4": (lambda: encode(num_frames=100, muxer_options={"moov_size": "20000"}), 30),
    "fragmented": (
        lambda: encode(
            num_frames=100,
            options={"g": "24"},
            muxer_options={"movflags": "frag_keyframe+empty_moov"},
        ),
        30,
    ),
    "mkv": (lambda: encode("libx264", "matroska", num_frames=100), 30),
    "webm": (lambda: encode("libvpx-vp9", "webm", options=VP9, num_frames=100), 30),
    "avi": (lambda: encode("mjpeg", "avi", pixel_format="yuvj420p", num_frames=100), 50),
    "MPEG-4 avi": (lambda: encode("mpeg4", "avi", num_frames=100), 30),
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_gives_its_readable_frames(name: str) -> None:
    make, least = CUT[name]
    data = make()
    data = data[: len(data) * 6 // 10]
    expected = decode_plainly(data)
    with open_video(data) as video:
        frames = list(video.read(range(video.info.num_frames), None))
        assert video.is_partial
    assert least < len(expected) < 100
    assert len(frames) == len(expected)
    for frame, (_, pixels) in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, pixels)


def test_damage_is_seen_and_gives_the_frames_of_a_full_decode() -> None:
    data = bytearray(encode(num_frames=100, options=B_FRAMES))
    middle = data.index(b"mdat") + len(data) // 3
    data[middle : middle + 900] = bytes(900)
    expected = dict(decode_plainly(bytes(data)))
    with open_video(bytes(data)) as video:
        indices = sample(video.pts_seconds, EveryNth(ratio=5)).indices
        frames = list(video.read(indices, None))
        assert video.is_partial
    assert len(frames) > 10
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, expected[frame.pts_seconds])


def png_file() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(photographs.astronaut()).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: b"", DecodeError, r"empty \(0 bytes\)"),
        (lambda: b"\x93\x41\xfe\x02" * 4000, DecodeError, "cannot open this video"),
        (lambda: bytes(10_000), UnsupportedError, "only zeros"),
        (lambda: b"dear diary, " * 500, UnsupportedError, "the bytes are text"),
        (png_file, UnsupportedError, "the bytes are PNG"),
        (sound_only, DecodeError, "no video stream; its streams are audio"),
        (lambda: encode()[:3000], DecodeError, "cannot open this video"),
        (lambda: encode("libx264", "flv"), DecodeError, "cannot open this video"),
        (lambda: encode("cinepak", "mov", pixel_format="rgb24"), UnsupportedError, "cinepak"),
        (lambda: with_size(16000, 8000), TooLargeError, "16000x8000"),
        (lambda: with_size(65535, 65535), DecodeError, "no frame of this video can be decoded"),
        (
            lambda: encode(
                "mjpeg", "avi", size=(8192, 4352), num_frames=1, pixel_format="yuvj420p"
            ),
            TooLargeError,
            "8192x4352 = 35,651,584 pixels; at most 33,177,600",
        ),
    ],
)
def test_what_is_no_video_is_named(
    make: Callable[[], bytes], error: type[RecordError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught, open_video(make()):
        pass
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def test_a_frame_that_is_larger_than_the_header_said_is_not_decoded() -> None:
    large = encode(num_frames=10, size=(640, 480))
    data = bytearray(large)
    entry = data.index(b"avc1", data.index(b"stsd"))
    data[entry + 28 : entry + 32] = struct.pack(">HH", 16, 16)
    with pytest.raises(RecordError), open_video(bytes(data), VideoLimits(max_pixels=640 * 479)):
        pass
    with open_video(large, VideoLimits(max_pixels=640 * 480)) as video:
        assert video.info.num_frames == 10


def test_the_number_of_packets_is_bounded() -> None:
    with (
        pytest.raises(TooLargeError, match="more than 59 packets"),
        open_video(encode(), VideoLimits(max_packets=59)),
    ):
        pass


@contextlib.contextmanager
def canary_server() -> Iterator[tuple[str, list[str]]]:
    """A web server with a video that nobody may ask for, and the list of who did."""
    visits: list[str] = []
    video = encode("libx264", "mpegts")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visits.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            self.wfile.write(video)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/canary.ts", visits
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_nothing(name: str, tmp_path: Path) -> None:
    local = tmp_path / "canary.ts"
    local.write_bytes(encode("libx264", "mpegts"))
    with canary_server() as (url, visits):
        for target in (url, str(local), f"file:{local}", "canary.ts"):
            with (
                pytest.raises(UnsupportedError, match="not a video that can be read"),
                open_video(PLAYLISTS[name].format(target).encode()),
            ):
                pass
        assert visits == []


def test_the_canary_sings_without_the_whitelist(tmp_path: Path) -> None:
    with canary_server() as (url, visits):
        playlist = io.BytesIO(PLAYLISTS["ffconcat"].format(url).encode())
        options = {"safe": "0", "protocol_whitelist": "http,tcp"}
        with contextlib.suppress(av.error.FFmpegError), av.open(playlist, "r", options=options):
            pass
        assert visits != []


def test_a_mov_with_references_to_other_files_opens_none_of_them(tmp_path: Path) -> None:
    """QuickTime may keep its samples elsewhere: here the data reference says so."""
    with canary_server() as (url, visits):
        data = encode(container="mov", num_frames=5)
        own = b"\0\0\0\x0curl \0\0\0\x01"
        if own not in data:
            own = b"\0\0\0\x0calis\0\0\0\x01"
        assert own in data
        hostile = b"\0\0\0\x0curl \0\0\0\0"
        with contextlib.suppress(RecordError), open_video(data.replace(own, hostile)) as video:
            list(video.read([0], None))
        assert visits == []
        assert url


def test_errors_of_storage_come_through() -> None:
    class Failing(io.BytesIO):
        error: Exception | None = None

        def read(self, size: int | None = -1, /) -> bytes:
            if self.error and self.tell() > 20_000:
                raise self.error
            return super().read(size)

    data = (CLIPS / "bikes.mp4").read_bytes()
    for error, expected in (
        (FetchError("gone", error_type="SourceChanged"), FetchError),
        (OutageError("no bucket"), OutageError),
        (OSError(5, "Input/output error"), FetchError),
    ):
        Failing.error = error
        with pytest.raises(expected), open_video(Failing(data)):
            pass
    file = Failing(data)
    Failing.error = None
    with open_video(file) as video:
        Failing.error = FetchError("gone")
        with pytest.raises(FetchError, match="gone"):
            list(video.read(range(250), None))


SEEDS = range(10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name",
    [
        "H.264 in mp4",
        "H.264 in mpegts",
        "HEVC in mp4",
        "VP9 in webm",
        "AV1 in mp4",
        "MPEG-4 in avi",
        "MJPEG in mov",
        "carphone",
    ],
)
def test_mutations_give_frames_or_a_record_error(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(name))
    for position in rng.integers(0, len(data), rng.integers(1, 40)):
        data[position] = rng.integers(0, 256)
    if seed % 3 == 0:
        start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 400))
        data[start : start + length] = b"" if seed % 2 else rng.bytes(2 * length)
    with contextlib.suppress(RecordError), open_video(bytes(data)) as video:
        indices = sample(video.pts_seconds, EveryNth(ratio=5), max_frames=50).indices
        numbers = [frame.index for frame in video.read(indices, None)]
        assert set(numbers) <= set(indices.tolist())
        assert video.is_partial or numbers == indices.tolist()
