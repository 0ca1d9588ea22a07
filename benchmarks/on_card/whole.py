"""Part 5: the jobs as they are, on a Ray of their own."""

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from on_card.machine import Machine

import effnet_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """One line of the table."""

    job: str
    model: str
    placement: str
    gpus_per_actor: float | None
    records: int
    seconds: float
    """From the first unit to the last commit; the start of Ray is outside."""
    records_per_second: float
    stages_share: float | None
    """Of the stages without Ray; None where those were not measured."""


def measure_whole(
    machine: Machine,
    files: list[Path],
    folder: Path,
    options: argparse.Namespace,
    stages: dict[str, float],
) -> list[Whole]:
    """Runs `embed` in each placement, and `score` where videos can be made."""
    device = machine.device.type
    engine = {"device": device, "engine": "torch", "precision": options.precisions[0]}
    model: dict[str, Any] = {"weights": "random"}
    if options.image_size:
        model["image_size"] = options.image_size
    ways: list[dict[str, Any]] = [{"placement": "fused"}]
    if device == "cuda":
        ways += [{"placement": "split"}, {"placement": "fused", "gpus_per_actor": 0.25}]
        if importlib.util.find_spec("torchvision") is not None:
            ways.append({"placement": "fused", "gpus_per_actor": 0.25, "gpu_decode": True})
    lines = []
    for name in options.end_to_end:
        for number, way in enumerate(ways):
            summary = effnet_batch.embed(
                str(files[0].parent),
                str(folder / f"embed-{name}-{number}"),
                model=name,
                **model,
                **engine,
                **way,
            )
            lines.append(_line("embed", name, way, summary, stages.get(name)))
    if importlib.util.find_spec("av") is None:
        print("score is left out: PyAV is not installed")
        return lines
    from score_videos import write_checkpoint, write_videos

    checkpoint = str(folder / "checkpoint.safetensors")
    write_checkpoint(checkpoint)
    count, seconds = (2, 1) if options.quick else (64, 10)
    write_videos(folder / "videos", count, seconds)
    ways = ways[:2]
    if device == "cuda" and importlib.util.find_spec("torchcodec") is not None:
        ways.append({"placement": "fused", "gpu_decode": True})
    for number, way in enumerate(ways):
        summary = effnet_batch.score(
            str(folder / "videos"),
            str(folder / f"score-{number}"),
            checkpoint=[checkpoint],
            **engine,
            **way,
        )
        lines.append(_line("score", "efficientnet_b0", way, summary, None))
    return lines


def _line(job: str, model: str, way: dict[str, Any], summary: Any, alone: float | None) -> Whole:
    decoder = {"embed": " nvJPEG", "score": " NVDEC"}[job] if way.get("gpu_decode") else ""
    return Whole(
        job=job,
        model=model,
        placement=way["placement"] + decoder,
        gpus_per_actor=way.get("gpus_per_actor"),
        records=summary.num_new_records,
        seconds=summary.seconds,
        records_per_second=summary.records_per_second,
        stages_share=None if alone is None else summary.records_per_second / alone,
    )
