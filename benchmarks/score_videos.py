"""Scoring videos: this pipeline against a lean process and the usual OpenCV script.

    python benchmarks/score_videos.py

Every contestant judges every 5th frame of the same 720p H.264 clips with the same EfficientNet-B0,
whole frames and no faces, in turns, twice each turn (see turns.py). *lean* is one process that does
what the job does and nothing else: the same decoder, the same engine (OpenVINO) and precision, a
thread a core. *OpenCV* is the usual script: `cv2.VideoCapture`, a DataLoader of two workers, eager
torch.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import pyarrow.dataset as ds
import torch
from decode_video import encode
from images import link_first
from turns import LEAN, OURS, Contest, Contestant, write_json

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig

HERE = Path(__file__).parent
_NUM_CLIPS = 4
"""Different clips; the others are the same again under other names."""


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        print(f"encoding {_NUM_CLIPS} clips of {options.seconds} s", flush=True)
        write_videos(folder / "videos", options.videos[1], options.seconds)
        checkpoint = str(folder / "checkpoint.safetensors")
        write_checkpoint(checkpoint)
        contest = Contest(
            contestants=[
                each
                for each in _contestants(checkpoint, options.precision)
                if each.name in options.only
            ],
            items="videos",
            counts=options.videos,
            make_input=lambda target, count: link_first(folder / "videos", target, count),
            read_results=_logits,
            agree=lambda logit, lean: abs(logit - lean),
            worst=max,
            agreement="logit off by",
        )
        turns = contest.run(folder, options.repeats)
    contest.print_table(turns)
    if options.json:
        write_json(options.json, turns)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, nargs=2, default=(24, 120), metavar="N")
    parser.add_argument("--seconds", type=int, default=10, help="length of a video")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all contestants")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    parser.add_argument("--json", help="file for every turn's figures")
    names = [LEAN, "OpenCV", OURS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


def _contestants(checkpoint: str, precision: str) -> list[Contestant]:
    python = sys.executable
    return [
        Contestant(LEAN, [python, str(HERE / "peers/lean_videos.py")], (checkpoint, precision)),
        Contestant(
            "OpenCV", [python, str(HERE / "peers/opencv_videos.py")], (checkpoint,), share=0.34
        ),
        Contestant(
            OURS,
            [str(Path(python).parent / "effnet-batch"), "score"],
            ("--checkpoint", checkpoint, "--engine", "openvino", "--precision", precision),
            parts="data/part-*.parquet",
        ),
    ]


def write_videos(folder: Path, count: int, seconds: int) -> None:
    folder.mkdir()
    clips = folder.parent / "clips"
    clips.mkdir()
    for number in range(_NUM_CLIPS):
        data = encode(
            "libx264",
            (1280, 720),
            25 * seconds - number,
            {"preset": "veryfast", "bf": "3"},
        )
        (clips / f"{number}.mp4").write_bytes(data)
    for number in range(count):
        (folder / f"{number:05}.mp4").hardlink_to(clips / f"{number % _NUM_CLIPS}.mp4")


def write_checkpoint(path: str) -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(SequenceConfig(architecture="efficientnet_b0")).eval()
    info = CheckpointInfo(
        name="benchmark",
        sequence=model.config,
        preprocessing=Preprocessing(
            image_size=224, resize_size=224, interpolation="bilinear", resize_mode="squash"
        ),
        sampling={"strategy": "every_nth", "ratio": 5},
        faces={"detector": "none"},
        aggregation=AggregationConfig(steps="mean_logit", clips="mean_logit", tracks="mean_logit"),
    )
    save_checkpoint(path, model, info)


def _logits(files: list[str]) -> dict[str, float]:
    table = ds.dataset(files).to_table(columns=["uri", "logit"])
    return {row["uri"].rpartition("/")[2]: row["logit"] for row in table.to_pylist()}


if __name__ == "__main__":
    main()
