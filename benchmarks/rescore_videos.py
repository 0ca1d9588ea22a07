"""`rescore` against `score` on the same archive: videos judged again by their stored frames.

    python benchmarks/rescore_videos.py

Every 5th frame of 720p H.264 through EfficientNet-B0 and an LSTM, whole frames, OpenVINO where it
is installed. Beside what the commands cost with everything they start, which is mostly Ray where
videos are few, it shows the seconds that the workers say they spent on the videos themselves.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from decode_video import encode
from process_tree import Cost, measure

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig

PROGRAM = str(Path(sys.executable).parent / "effnet-batch")


def write_checkpoints(folder: Path) -> None:
    """Two classifiers on one random backbone."""
    torch.manual_seed(0)
    config = SequenceConfig(architecture="efficientnet_b0", lstm_layers=1)
    info = CheckpointInfo(
        name="first",
        sequence=config,
        preprocessing=Preprocessing(
            image_size=224, resize_size=224, interpolation="bilinear", resize_mode="squash"
        ),
        sampling={"strategy": "every_nth", "ratio": 5, "max_clip_frames": 20},
        faces={"detector": "none"},
        aggregation=AggregationConfig(steps="last", clips="mean", tracks="max"),
    )
    first, second = SequenceClassifier(config), SequenceClassifier(config)
    second.encoder.load_state_dict(first.encoder.state_dict())
    for name, model in (("first", first), ("second", second)):
        named = dataclasses.replace(info, name=name)
        save_checkpoint(str(folder / f"{name}.safetensors"), model.eval(), named)


def run(name: str, folder: Path, *arguments: str) -> tuple[Cost, float]:
    """Returns what a command cost, and the seconds that its workers spent on videos."""
    cost = measure([PROGRAM, *arguments], log=folder / "log")
    record = json.loads((folder / name / "run.json").read_text())
    return cost, sum(value for key, value in record["stages"].items() if key.endswith("_seconds"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--frames", type=int, default=250)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-") as name:
        folder = Path(name)
        write_checkpoints(folder)
        clip = folder / "clip.mp4"
        clip.write_bytes(encode("libx264", (1280, 720), options.frames, {"bf": "3"}))
        print("| videos | | wall s | CPU s | worker s per video | x faster |")
        print("|--:|---|--:|--:|--:|--:|", flush=True)
        for count in options.videos:
            source = folder / f"in-{count}"
            source.mkdir()
            for number in range(count):
                os.link(clip, source / f"{number:04}.mp4")
            stored, again = f"stored-{count}", f"again-{count}"
            first, second = (
                f"--checkpoint={folder / one}.safetensors" for one in ("first", "second")
            )
            commands = {
                stored: ("score", str(source), str(folder / stored), first, "--embeddings"),
                again: ("rescore", str(folder / stored), str(folder / again), second),
            }
            spent = []
            for output, arguments in commands.items():
                cost, seconds = run(output, folder, *arguments)
                spent.append(seconds / count)
                print(
                    f"| {count} | {arguments[0]} | {cost.wall_seconds:.1f} "
                    f"| {cost.cpu_seconds:.1f} | {spent[-1]:.4f} | {spent[0] / spent[-1]:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
