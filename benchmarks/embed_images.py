"""Embedding images: this pipeline against a lean process, a DataLoader script, Daft and Ray Data.

    python benchmarks/embed_images.py

Every contestant embeds the same photographs with the same model, in turns, twice each turn: few
images and many. The steady state is the slope between the two, so that start-up, which users pay
once a job, is shown but decides nothing. Ratios are taken within a turn; the table shows medians.

Daft runs in an environment of its own, because it needs an older pyarrow: `make bench-venv` makes
it; without it Daft is left out.
"""

import argparse
import dataclasses
import json
import os
import secrets
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from images import link_first, write_images
from peers.backbones import weights_of
from process_tree import Cost, measure

HERE = Path(__file__).parent
LEAN = "lean"
OURS = "effnet-batch"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the job."""

    name: str
    command: list[str]
    """The folders of images and output and the model follow."""
    share: float = 1.0
    """Of the images that the others get; a slow one needs fewer for an equally long run."""
    parts: str = "*.parquet"
    """Pattern of its files in the output folder."""
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What one contestant needed in one turn."""

    images_per_second: float
    """Between the run of few images and the run of many."""
    cpu_seconds_per_image: float
    """The same of the whole process tree."""
    start_up_seconds: float
    """What is left of the run of few images when its images are taken off."""
    first_part_seconds: float
    """Until the first file was committed, in the run of many."""
    start_up_cpu_seconds: float
    peak_pss_bytes: int
    cosine: float
    """Smallest cosine between a vector of this contestant and the lean process's."""


def main() -> None:
    options = _parse()
    contestants = [each for each in _contestants(options) if each.name in options.only]
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        print(f"writing {options.images[1]} photographs of 500x375", flush=True)
        write_images(folder / "images", options.images[1], width=500, height=375)
        turns: dict[str, list[Turn]] = {each.name: [] for each in contestants}
        for repeat in range(options.repeats):
            # Each turn begins with another contestant, so that none always comes first.
            order = contestants[repeat % len(contestants) :]
            order += contestants[: repeat % len(contestants)]
            vectors: dict[str, dict[str, np.ndarray]] = {}
            costs = {}
            for each in order:
                costs[each.name] = _run_twice(each, folder, options, vectors)
            for each in contestants:
                turn = _turn(each, costs[each.name], options, vectors)
                turns[each.name].append(turn)
                print(f"turn {repeat + 1}: {each.name}: {_line(turn)}", flush=True)
    _print_table(turns)
    if options.json:
        rows = {name: [dataclasses.asdict(turn) for turn in kept] for name, kept in turns.items()}
        Path(options.json).write_text(json.dumps(rows, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=(1_000, 5_000), metavar="N")
    parser.add_argument("--repeats", type=int, default=5, help="turns of all contestants")
    parser.add_argument("--model", default="efficientnet_lite0", help="or efficientnet_b0 (random)")
    parser.add_argument("--bench-venv", default=str(HERE.parent / ".venv-bench"))
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    parser.add_argument("--json", help="file for every turn's figures")
    names = [LEAN, "DataLoader", "Daft", "Ray Data", OURS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


def _contestants(options: argparse.Namespace) -> list[Contestant]:
    python = sys.executable
    found = [
        Contestant(LEAN, [python, str(HERE / "peers/lean.py")]),
        Contestant("DataLoader", [python, str(HERE / "peers/dataloader.py")], share=0.2),
        Contestant("Ray Data", [python, str(HERE / "peers/ray_data.py")]),
        Contestant(
            OURS,
            [str(Path(python).parent / "effnet-batch"), "embed"],
            parts="data/part-*.parquet",
            options=tuple(
                f"--weights={weights}" for weights in [weights_of(options.model)] if weights
            ),
        ),
    ]
    daft = Path(options.bench_venv) / "bin/python"
    if daft.exists():
        found.insert(2, Contestant("Daft", [str(daft), str(HERE / "peers/daft_udf.py")]))
    elif "Daft" in options.only:
        print(f"Daft is left out: no {daft}; `make bench-venv` makes it (see --bench-venv)")
    return found


def _run_twice(
    each: Contestant,
    folder: Path,
    options: argparse.Namespace,
    vectors: dict[str, dict[str, np.ndarray]],
) -> list[Cost]:
    costs = []
    for count in _counts(each, options):
        images = folder / f"first-{count}"
        if not images.exists():
            link_first(folder / "images", images, count)
        output = folder / f"out-{secrets.token_hex(4)}"
        model = ["--model", options.model, *each.options] if each.name == OURS else [options.model]
        costs.append(
            measure(
                [*each.command, str(images), str(output), *model],
                env=_environment(folder),
                first_file=(output, each.parts),
                log=folder / "log",
            )
        )
        vectors[each.name] = _vectors(output, each.parts)
        if len(vectors[each.name]) != count:
            raise RuntimeError(f"{each.name}: {len(vectors[each.name])} vectors of {count} images")
    return costs


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(HERE / "peers"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray 2.60 writes a token into the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }


def _counts(each: Contestant, options: argparse.Namespace) -> tuple[int, int]:
    few, many = (int(count * each.share) for count in options.images)
    return few, many


def _vectors(output: Path, pattern: str) -> dict[str, np.ndarray]:
    files = [str(path) for path in output.glob(pattern)]
    table = ds.dataset(files).to_table(columns=["uri", "embedding"])
    names = [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()]
    flat = pc.list_flatten(table["embedding"]).to_numpy()
    return dict(zip(names, flat.reshape(len(names), -1), strict=True))


def _turn(
    each: Contestant,
    costs: list[Cost],
    options: argparse.Namespace,
    vectors: dict[str, dict[str, np.ndarray]],
) -> Turn:
    few, many = _counts(each, options)
    seconds = (costs[1].wall_seconds - costs[0].wall_seconds) / (many - few)
    cpu = (costs[1].cpu_seconds - costs[0].cpu_seconds) / (many - few)
    lean = vectors.get(LEAN, {})
    cosines = [
        float(np.dot(vector, lean[name]) / np.linalg.norm(vector) / np.linalg.norm(lean[name]))
        for name, vector in vectors[each.name].items()
        if name in lean
    ]
    assert costs[1].first_file_seconds is not None
    return Turn(
        images_per_second=1 / seconds,
        cpu_seconds_per_image=cpu,
        start_up_seconds=costs[0].wall_seconds - few * seconds,
        first_part_seconds=costs[1].first_file_seconds,
        start_up_cpu_seconds=costs[0].cpu_seconds - few * cpu,
        peak_pss_bytes=max(cost.peak_pss_bytes for cost in costs),
        cosine=min(cosines, default=float("nan")),
    )


def _line(turn: Turn) -> str:
    return (
        f"{turn.images_per_second:.1f} images/s, {1e3 * turn.cpu_seconds_per_image:.2f} CPU ms an "
        f"image, start-up {turn.start_up_seconds:.1f} s, peak {turn.peak_pss_bytes / 1e6:.0f} MB"
    )


def _print_table(turns: dict[str, list[Turn]]) -> None:
    print(
        "\n| contestant | images/s | × lean | CPU ms/image | × lean | start-up s | CPU s | "
        "first part s | peak PSS MB | cosine |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )

    def median(name: str, field: str, *, over_lean: bool = False) -> float:
        values = [getattr(turn, field) for turn in turns[name]]
        if over_lean:
            base = [getattr(turn, field) for turn in turns.get(LEAN, [])]
            values = [a / b for a, b in zip(values, base, strict=False)]
        return statistics.median(values) if values else float("nan")

    for name in turns:
        print(
            f"| {name} | {median(name, 'images_per_second'):.1f} "
            f"| {median(name, 'images_per_second', over_lean=True):.2f} "
            f"| {1e3 * median(name, 'cpu_seconds_per_image'):.2f} "
            f"| {median(name, 'cpu_seconds_per_image', over_lean=True):.2f} "
            f"| {median(name, 'start_up_seconds'):.1f} "
            f"| {median(name, 'start_up_cpu_seconds'):.1f} "
            f"| {median(name, 'first_part_seconds'):.1f} "
            f"| {median(name, 'peak_pss_bytes') / 1e6:.0f} "
            f"| {median(name, 'cosine'):.5f} |"
        )
    print(f"\n{len(next(iter(turns.values())))} turns, {os.cpu_count()} CPUs, medians")


if __name__ == "__main__":
    main()
