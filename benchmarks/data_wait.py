"""How long a training step waits for its clips, once they are prepared.

    python benchmarks/data_wait.py

One worker trains EfficientNet-Lite0 with a small LSTM, real weights, on clips of 8 frames of 224
pixels with the default augmentation: all of it, and the head alone, whose steps are shorter. The
first epoch is left out: Ray's workers start in it.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from decode_video import encode

_SIDE = 256
_NUM_CLIPS = 4
"""Different clips; the others are the same again under other names."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, default=32, help="to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        manifest = _write_videos(folder, options.videos)
        print("| trained | steps | seconds a step | data wait | the first of an epoch, s |")
        print("|---|--:|--:|--:|--:|")
        for title, flag in (("all", "--no-freeze-backbone"), ("head", "--freeze-backbone")):
            output = folder / title
            _finetune(manifest, output, f"--epochs={options.epochs}", flag)
            text = (output / "training/metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            steps = [line for line in lines if "step" in line and line["epoch"] > 1]
            seconds = [
                later["unix_seconds"] - earlier["unix_seconds"]
                for earlier, later in itertools.pairwise(steps)
                if later["step"] > 1
            ]
            waits = [line["wait_seconds"] for line in steps if line["step"] > 1]
            first = [line["wait_seconds"] for line in steps if line["step"] == 1]
            print(
                f"| {title} | {len(waits)} | {statistics.mean(seconds):.2f} | "
                f"{sum(waits) / sum(seconds):.1%} | {statistics.mean(first):.2f} |",
                flush=True,
            )


def _write_videos(folder: Path, count: int) -> Path:
    clips = [
        encode("libx264", (_SIDE, _SIDE), 50 - number, {"preset": "veryfast"})
        for number in range(_NUM_CLIPS)
    ]
    lines = ["uri,label,split"]
    for number in range(count + 4):
        name = f"{number:04}.mp4"
        (folder / name).write_bytes(clips[number % _NUM_CLIPS])
        lines.append(
            f"{name},{('real', 'fake')[number % 2]},{'train' if number < count else 'val'}"
        )
    manifest = folder / "videos.csv"
    manifest.write_text("\n".join(lines))
    return manifest


def _finetune(manifest: Path, output: Path, *flags: str) -> None:
    command = [str(Path(sys.executable).parent / "effnet-batch"), "finetune", manifest, output]
    settings = (
        "--network=efficientnet_lite0",
        "--weights=package:efficientnet-lite0",
        "--lstm-layers=1",
        "--lstm-dim=64",
        "--image-size=224",
        "--faces=none",
        "--sampling=uniform",
        "--num-frames=8",
        "--clips-per-step=8",
    )
    subprocess.run([*command, *settings, *flags], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
