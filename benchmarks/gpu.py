"""How busy a card is kept, from the forward pass alone to the whole job.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --full --json gpu.json
    python benchmarks/gpu.py --device cpu --quick    # tries the program, measures nothing

Five parts, each against what bounds it: (1) the forward pass over frames on the card, against a
large matrix product, a large copy and timm's network of the same name; (2) from host memory and
back; (3) decoding, by cores, nvJPEG and NVDEC; (4) the stages without Ray, from JPEG files to
Parquet; (5) `embed` and `score` as they are, where Ray is installed. Weights are random and nothing
is downloaded; photographs are those of scikit-image. A part that cannot run here says so; without a
CUDA device the program says so and exits with 2.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELS = [f"efficientnet_b{number}" for number in range(8)]
_MIB = 1 << 20


def main() -> None:
    options = _parse()
    # Heavy imports come late: processes that only decode start from this file as well.
    import torch
    from on_card.machine import measure_ceilings, open_machine

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device here, nothing is measured: run this on a machine with a GPU and a CUDA "
            f"build of torch (this is {torch.__version__}); --device cpu --quick tries the program",
            file=sys.stderr,
        )
        sys.exit(2)
    machine = open_machine(options.device, options.seconds)
    side, size = (256, 8 * _MIB) if options.quick else (8192, 1024 * _MIB)
    ceilings = measure_ceilings(machine, side=side, copy_bytes=size)
    report: dict[str, Any] = {
        "device": machine.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "ceilings": dataclasses.asdict(ceilings),
        "arguments": {name: value for name, value in vars(options).items() if name != "json"},
        "parts": {},
    }
    products = ", ".join(f"{p} {v / 1e12:.4g} TFLOP/s" for p, v in ceilings.flops.items())
    print(f"{machine.name}: {products}, copy {ceilings.copy_bytes / 1e9:.4g} GB/s", flush=True)
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        found: dict[str, list[Any]] = report["parts"]
        for number, part in _PARTS.items():
            if number not in options.parts:
                continue
            start = time.perf_counter()
            lines = part(options, machine, ceilings, Path(name), found)
            machine.free()  # what follows may want all of the card
            found[str(number)] = [dataclasses.asdict(line) for line in lines]
            title = (part.__doc__ or "").split("\n")[0]
            print(f"\n{number}. {title}  ({time.perf_counter() - start:.0f} s)\n")
            print_table(found[str(number)])
            if options.json:  # after every part: what is measured stays, whatever follows
                Path(options.json).write_text(json.dumps(report, indent=2))


def _forward(
    options: argparse.Namespace, machine: Any, ceilings: Any, folder: Path, found: dict[str, Any]
) -> list[Any]:
    """The forward pass alone"""
    from on_card import forward

    timm = (forward.TIMM,) if forward.has_timm() else ()
    lines = []
    for name in options.models:
        side = options.image_size or None
        largest = forward.batch_of(side or forward.ARCHITECTURES[name].resolution, options.batch)
        batches = {largest, *((largest // 4, largest // 2, largest * 2) if options.full else ())}
        is_compiled = options.full or name in options.compiled
        kinds = (forward.EAGER, forward.FOLDED, forward.GRAPHED)
        kinds += (forward.COMPILED, *timm) if is_compiled else ()
        for precision in options.precisions:
            for batch in sorted(batches - {0}):
                # The compilers take minutes a shape: only the batch that jobs use.
                chosen = kinds if batch == largest else (forward.GRAPHED,)
                lines += list(
                    forward.measure_forward(machine, ceilings, name, precision, batch, chosen, side)
                )
    return lines


def _transfer(
    options: argparse.Namespace, machine: Any, ceilings: Any, folder: Path, found: dict[str, Any]
) -> list[Any]:
    """From host memory to host memory"""
    from on_card.transfer import measure_transfer

    return [
        measure_transfer(machine, name, precision, options.batch, options.image_size)
        for name in options.end_to_end
        for precision in options.precisions
    ]


def _decoding(
    options: argparse.Namespace, machine: Any, ceilings: Any, folder: Path, found: dict[str, Any]
) -> list[Any]:
    """Decoding 500x375 JPEGs, and every 5th frame of 1280x720 H.264, to 224 pixels"""
    from on_card.decoding import decode_one_image, measure_cores, measure_nvjpeg

    from effnet_batch.media.preprocess import Preprocessing

    side = options.image_size or 224
    preprocessing = Preprocessing(image_size=side, resize_size=side)
    files = _photographs(folder, options)
    cores = len(os.sched_getaffinity(0))
    counts = [cores] if options.quick else sorted({1, cores // 2 or 1, cores})
    lines = measure_cores(machine, files, preprocessing, counts, "Pillow", decode_one_image)
    if machine.device.type == "cuda":
        lines += measure_nvjpeg(machine, files, preprocessing, batch_size=256)
    if importlib.util.find_spec("av") is None:
        print("videos are left out: PyAV is not installed")
        return lines
    from on_card.videos import measure_videos

    seconds = 1 if options.quick else 10
    return lines + measure_videos(machine, folder / "decoding", preprocessing, counts, seconds)


def _stages(
    options: argparse.Namespace, machine: Any, ceilings: Any, folder: Path, found: dict[str, Any]
) -> list[Any]:
    """JPEG files to Parquet, without Ray"""
    from on_card.stages import measure_stages

    rates: dict[str, float] = {}
    for line in found.get("3", []):
        rates[line["decoder"]] = max(rates.get(line["decoder"], 0.0), line["images_per_second"])
    lines = []
    for name in options.end_to_end:
        at_224 = options.image_size or name == "efficientnet_b0"
        lines += measure_stages(
            machine,
            _photographs(folder, options),
            folder / f"stages-{name}",
            name,
            options.precisions[0],
            num_processes=len(os.sched_getaffinity(0)),
            limit=options.batch,
            # Decoders were measured at that size only.
            decoding_rates=rates if at_224 else {},
            image_size=options.image_size,
        )
    return lines


def _whole(
    options: argparse.Namespace, machine: Any, ceilings: Any, folder: Path, found: dict[str, Any]
) -> list[Any]:
    """The jobs, on Ray"""
    if importlib.util.find_spec("ray") is None:
        print("part 5 is left out: Ray is not installed")
        return []
    from on_card.whole import measure_whole

    stages = {line["model"]: line["images_per_second"] for line in found.get("4", [])}
    return measure_whole(machine, _photographs(folder, options).copy(), folder, options, stages)


_PARTS = {1: _forward, 2: _transfer, 3: _decoding, 4: _stages, 5: _whole}


def _photographs(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Returns as many JPEG files as asked for; few are different, for time's sake."""
    target = folder / "images"
    if not target.exists():
        from images import write_images

        originals = folder / "originals"
        write_images(originals, min(options.images, 512), width=500, height=375)
        paths = sorted(originals.iterdir())
        target.mkdir()
        for number in range(options.images):
            (target / f"{number:06}.jpg").hardlink_to(paths[number % len(paths)])
    return sorted(target.iterdir())


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    if not lines:
        print("(nothing)")
        return
    cells = [[name.replace("_", " ") for name in lines[0]]]
    cells += [[_cell(value) for value in line.values()] for line in lines]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    sys.stdout.flush()


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")
    parser.add_argument(
        "--full",
        action="store_true",
        help="all precisions, more batches, all compiled: minutes each",
    )
    parser.add_argument("--parts", type=int, nargs="+", choices=list(_PARTS), default=list(_PARTS))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--compiled",
        nargs="*",
        default=["efficientnet_b0"],
        help="models of part 1 that torch.compile is tried on, ours and timm's; minutes each",
    )
    parser.add_argument("--precisions", nargs="+", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--batch", type=int, help="most frames of a batch")
    parser.add_argument("--images", type=int, default=20_000, help="of parts 4 and 5")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    options.image_size = None
    options.end_to_end = ["efficientnet_b0", "efficientnet_b4"]
    options.precisions = options.precisions or (
        ["bf16", "fp16", "fp32"] if options.full else ["bf16"]
    )
    if options.quick:
        options.models, options.compiled = ["efficientnet_b0"], []
        options.end_to_end, options.image_size = ["efficientnet_b0"], 32
        options.batch, options.images, options.seconds = 4, 24, 0.02
    return options


if __name__ == "__main__":
    main()
