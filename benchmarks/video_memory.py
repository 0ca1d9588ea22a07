"""Memory of a scoring worker on a video of a minute and on one of an hour: it must not grow.

    python benchmarks/video_memory.py

720p H.264, judged by one actor of one lane; the same few seconds over and over, so that long
files are quickly made.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import psutil
from decode_video import encode
from score_videos import write_checkpoint

_RATE = 25
_SAMPLINGS = (
    ("--sampling=uniform", "--num-frames=32"),
    ("--sampling=every_nth", "--ratio=25", "--segment-seconds=60"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 60])
    parser.add_argument("--bits-per-second", type=int, default=2_000_000)
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint.safetensors"
        write_checkpoint(str(checkpoint))
        rate = str(options.bits_per_second)
        settings = {"preset": "veryfast", "bf": "3", "g": "50", "b": rate, "nal-hrd": "cbr"}
        settings |= {"minrate": rate, "maxrate": rate, "bufsize": rate}
        clip = encode("libx264", (1280, 720), 10 * _RATE, settings)
        (folder / "clip.mp4").write_bytes(clip)
        print(
            "| minutes | file MB | sampling | worker's peak PSS MB |\n|--:|--:|---|--:|", flush=True
        )
        for minutes in options.minutes:
            videos = folder / f"videos-{minutes}"
            videos.mkdir()
            repeat(folder / "clip.mp4", videos / "video.mp4", 6 * minutes)
            size = (videos / "video.mp4").stat().st_size / 1e6
            for number, sampling in enumerate(_SAMPLINGS):
                peak = peak_of_worker(
                    [
                        str(Path(sys.executable).parent / "effnet-batch"),
                        "score",
                        str(videos),
                        str(folder / f"out-{minutes}-{number}"),
                        f"--checkpoint={checkpoint}",
                        "--engine=openvino",
                        "--precision=fp32",
                        *sampling,
                        "--num-actors=1",
                        "--cpus-per-actor=1",
                    ]
                )
                flags = " ".join(sampling)
                print(f"| {minutes} | {size:.0f} | `{flags}` | {peak / 1e6:.0f} |", flush=True)


def repeat(clip: Path, target: Path, num_times: int) -> None:
    """Writes the packets of a clip over and over."""
    with av.open(str(target), "w") as output:
        with av.open(str(clip)) as source:
            template = source.streams.video[0]
            stream = output.add_stream_from_template(template)
            packets = [
                (bytes(packet), packet.pts, packet.dts, packet.is_keyframe)
                for packet in source.demux(template)
                if packet.dts is not None
            ]
            length, unit = template.duration, template.time_base
        for number in range(num_times):
            for data, pts, dts, is_keyframe in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + number * length, dts + number * length
                packet.time_base, packet.is_keyframe = Fraction(unit), is_keyframe
                packet.stream = stream
                output.mux(packet)


def peak_of_worker(command: list[str]) -> int:
    """Runs a job and returns the largest proportional set size of its actor, in bytes."""
    peak = 0
    with tempfile.TemporaryFile() as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while job.poll() is None:
            try:
                for process in psutil.Process(job.pid).children(recursive=True):
                    if "ScoreWorker" in " ".join(process.cmdline()):
                        peak = max(peak, process.memory_full_info().pss)
            except psutil.Error:
                pass
            time.sleep(0.2)
        if job.returncode:
            log.seek(0)
            raise RuntimeError(log.read().decode(errors="replace")[-3000:])
    return peak


if __name__ == "__main__":
    main()
