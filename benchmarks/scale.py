"""From 500 to 100,000 images: the cost must grow with them, the driver's memory must not.

    python benchmarks/scale.py

Small images and a small model, so that what the pipeline adds itself shows.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from images import link_first, write_images
from process_tree import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--images", type=int, nargs="+", default=[500, 2_000, 8_000, 20_000, 100_000]
    )
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        write_images(folder / "images", max(options.images), width=96, height=80)
        costs = []
        print(
            "| images | seconds | CPU s | driver's CPU s | its peak RSS MB | tree's peak PSS MB |"
        )
        print("|--:|--:|--:|--:|--:|--:|", flush=True)
        for count in options.images:
            link_first(folder / "images", folder / f"first-{count}", count)
            cost = measure(
                [
                    str(Path(sys.executable).parent / "effnet-batch"),
                    "embed",
                    str(folder / f"first-{count}"),
                    str(folder / f"out-{count}"),
                    "--model=efficientnet_b0",
                    "--weights=random",
                    "--image-size=64",
                ],
                log=folder / "log",
            )
            costs.append(cost)
            print(
                f"| {count:,} | {cost.wall_seconds:.1f} | {cost.cpu_seconds:.1f} "
                f"| {cost.root_cpu_seconds:.1f} | {cost.root_peak_rss_bytes / 1e6:.0f} "
                f"| {cost.peak_pss_bytes / 1e6:.0f} |",
                flush=True,
            )
    print(f"\nCPU seconds: {_line(options.images, [cost.cpu_seconds for cost in costs])}")
    print(f"of the driver: {_line(options.images, [cost.root_cpu_seconds for cost in costs])}")
    memory = [cost.root_peak_rss_bytes for cost in costs]
    print(f"the driver's memory: within {max(memory) / min(memory) - 1:.0%}")


def _line(counts: list[int], seconds: list[float]) -> str:
    """Says what a run costs, what an image costs, and how far that is off."""
    slope, base = np.polyfit(counts, seconds, 1)
    worst = np.abs(np.array(seconds) / (base + slope * np.array(counts)) - 1).max()
    return f"{base:.1f} + {1e3 * slope:.2f} ms x images, off by at most {worst:.0%}"


if __name__ == "__main__":
    main()
