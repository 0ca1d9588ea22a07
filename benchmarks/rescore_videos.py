"""`rescore` against `score` on the same archive: videos judged again by their stored frames.

    python benchmarks/rescore_videos.py

Every 5th frame of 720p H.264 through EfficientNet-B0 and an LSTM, whole frames, OpenVINO where it
is installed. Each command's cost, with everything that it starts, is that of starting plus so much
per video: `score` runs on a few and on some more videos, `rescore` on what that stored and on many
copies of it, and the slopes are compared.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from decode_video import encode
from process_tree import Cost, measure

import effnet_batch
from effnet_batch.manifest import read_manifest, replace_manifest
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import AggregationConfig
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.schema import record_id, source_id
from effnet_batch.sink import FRAMES_KEY, OutputPaths, PartWriter, read_metadata
from effnet_batch.storage import Storage

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


def multiply(stored: Path, many: Path, num_copies: int) -> None:
    """Writes an output of so many copies of each video of another one, under new names."""
    storage, paths = Storage(), OutputPaths(str(many))
    storage.write(paths.run, (stored / "run.json").read_bytes())
    manifest = read_manifest(storage, str(stored)).read()
    copies = [renamed(manifest, number) for number in range(num_copies)]
    replace_manifest(storage, str(many), copies)
    parts = sorted((stored / "data").glob("part-*.parquet"))
    metadata = read_metadata(pq.read_schema(parts[0]))
    del metadata[FRAMES_KEY]
    rows = pa.concat_tables([pq.read_table(part) for part in parts])
    frames = effnet_batch.read_frames(str(stored))
    for number in range(num_copies):
        writer = PartWriter(storage, paths, "copy", number, rows_per_part=64, metadata=metadata)
        writer.add(renamed(rows, number), [renamed(frames, number)])
        writer.close()


def renamed(table: pa.Table, number: int) -> pa.Table:
    """Returns rows of videos under other URIs."""
    uris = [f"{uri}.{number}.mp4" for uri in table["uri"].to_pylist()]
    changes = {
        "uri": uris,
        "source_id": [source_id(uri) for uri in uris],
        "record_id": [record_id(uri, None, 0) for uri in uris],
    }
    for name, values in changes.items():
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name), pa.array(values))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, nargs=2, default=[6, 24])
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--frames", type=int, default=250)
    options = parser.parse_args()
    few, more = options.videos
    with tempfile.TemporaryDirectory(prefix="effnet-bench-") as name:
        folder = Path(name)
        write_checkpoints(folder)
        clip = folder / "clip.mp4"
        clip.write_bytes(encode("libx264", (1280, 720), options.frames, {"bf": "3"}))
        print("| command | videos | wall s | CPU s |\n|---|--:|--:|--:|", flush=True)

        def run(command: str, num_videos: int, source: str, output: str, *flags: str) -> Cost:
            places = (str(folder / source), str(folder / output))
            cost = measure([PROGRAM, command, *places, *flags], log=folder / "log")
            seconds = f"{cost.wall_seconds:.1f} | {cost.cpu_seconds:.1f}"
            print(f"| {command} | {num_videos:,} | {seconds} |", flush=True)
            return cost

        first, second = (f"--checkpoint={folder / one}.safetensors" for one in ("first", "second"))
        scored = []
        for count in (few, more):
            (folder / f"in-{count}").mkdir()
            for number in range(count):
                os.link(clip, folder / f"in-{count}" / f"{number:04}.mp4")
            flags = (first, "--embeddings")
            scored.append(run("score", count, f"in-{count}", f"stored-{count}", *flags))
        multiply(folder / f"stored-{more}", folder / "many", options.copies)
        many = more * options.copies
        rescored = [
            run("rescore", more, f"stored-{more}", "again", second),
            run("rescore", many, "many", "many-again", second),
        ]
        print("\n| per video | score ms | rescore ms | x faster |\n|---|--:|--:|--:|")
        for what in ("wall_seconds", "cpu_seconds"):
            one, other = (
                1e3 * (getattr(costs[1], what) - getattr(costs[0], what)) / num_more
                for costs, num_more in ((scored, more - few), (rescored, many - more))
            )
            print(f"| {what.replace('_', ' ')} | {one:.0f} | {other:.1f} | {one / other:.0f} |")


if __name__ == "__main__":
    main()
