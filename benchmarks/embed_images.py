"""Embedding images: this pipeline against a lean process, a DataLoader script, Daft and Ray Data.

    python benchmarks/embed_images.py

Every contestant embeds the same photographs with the same model, in turns, twice each turn (see
turns.py).

Daft runs in an environment of its own, because it needs an older pyarrow: `make bench-venv` makes
it; without it Daft is left out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from images import link_first, write_images
from peers.backbones import weights_of
from turns import LEAN, OURS, Contest, Contestant, write_json

HERE = Path(__file__).parent


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="effnet-bench-", dir=options.folder) as name:
        folder = Path(name)
        print(f"writing {options.images[1]} photographs of 500x375", flush=True)
        write_images(folder / "images", options.images[1], width=500, height=375)
        contest = Contest(
            contestants=[each for each in _contestants(options) if each.name in options.only],
            items="images",
            counts=options.images,
            make_input=lambda target, count: link_first(folder / "images", target, count),
            read_results=_vectors,
            agree=_cosine,
            worst=min,
            agreement="cosine",
        )
        turns = contest.run(folder, options.repeats)
    contest.print_table(turns)
    if options.json:
        write_json(options.json, turns)


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
    python, model = sys.executable, (options.model,)
    weights = weights_of(options.model)
    found = [
        Contestant(LEAN, [python, str(HERE / "peers/lean.py")], model),
        Contestant("DataLoader", [python, str(HERE / "peers/dataloader.py")], model, share=0.2),
        Contestant("Ray Data", [python, str(HERE / "peers/ray_data.py")], model),
        Contestant(
            OURS,
            [str(Path(python).parent / "effnet-batch"), "embed"],
            ("--model", options.model, *([f"--weights={weights}"] if weights else [])),
            parts="data/part-*.parquet",
        ),
    ]
    daft = Path(options.bench_venv) / "bin/python"
    if daft.exists():
        found.insert(2, Contestant("Daft", [str(daft), str(HERE / "peers/daft_udf.py")], model))
    elif "Daft" in options.only:
        print(f"Daft is left out: no {daft}; `make bench-venv` makes it (see --bench-venv)")
    return found


def _vectors(files: list[str]) -> dict[str, np.ndarray]:
    table = ds.dataset(files).to_table(columns=["uri", "embedding"])
    names = [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()]
    flat = pc.list_flatten(table["embedding"]).to_numpy()
    return dict(zip(names, flat.reshape(len(names), -1), strict=True))


def _cosine(vector: np.ndarray, lean: np.ndarray) -> float:
    return float(np.dot(vector, lean) / np.linalg.norm(vector) / np.linalg.norm(lean))


if __name__ == "__main__":
    main()
