"""``make demo``: from photographs to vectors, and from clips to a detector that is tested.

python docs/demo.py demo-output

Everything happens on this machine, without a network. Run again, it does what is not done yet.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import skimage.data
from demo_archive import ORIGINALS, make_archive
from PIL import Image

import effnet_batch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from s3_server import BUCKET, S3Server  # noqa: E402

MODEL = "efficientnet_lite0"
WEIGHTS = "package:efficientnet-lite0"
EXPECTED_AUC = 0.9
NUM_IMAGES = 80
PHOTOGRAPHS = {
    "cat": skimage.data.cat,
    "coffee": skimage.data.coffee,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket,
}
EXPECTED_CLASSES = {
    "cat": (281, 282, 285),
    "coffee": (504, 967, 968),
    "motorcycle": (665, 670),
    "rocket": (657, 744),
}
"""Of which one must be the best."""
# The ImageNet classes that these photographs resemble.
CLASS_NAMES = {
    281: "tabby cat",
    282: "tiger cat",
    285: "Egyptian cat",
    504: "coffee mug",
    535: "disk brake",
    540: "drilling platform",
    657: "missile",
    665: "moped",
    670: "motor scooter",
    744: "projectile",
    967: "espresso",
    968: "cup",
}


def main(folder: Path) -> None:
    """Runs the commands one after the other, and says what came of them."""
    began = time.monotonic()
    embed_photographs(folder)
    train_detector(folder)
    test_detector(folder)
    conclude(folder, time.monotonic() - began)


def embed_photographs(folder: Path) -> None:
    """Writes crops of photographs that scikit-image ships, and embeds them."""
    say(f"{NUM_IMAGES} photographs become vectors, by EfficientNet-Lite0 as trained on ImageNet.")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        name = list(PHOTOGRAPHS)[index % len(PHOTOGRAPHS)]
        image = Image.fromarray(PHOTOGRAPHS[name]())
        share = generator.uniform(0.7, 1.0)
        width, height = int(share * image.width), int(share * image.height)
        left = int(generator.integers(image.width - width + 1))
        top = int(generator.integers(image.height - height + 1))
        path = images / f"{name}-{index // len(PHOTOGRAPHS):02}.jpg"
        if not path.exists():  # written again, it would be a new version of the source
            image.crop((left, top, left + width, top + height)).save(path, quality=90)
    run("embed", images, folder / "embeddings", "--model", MODEL, "--top-k", "3")
    show_vectors(folder / "embeddings")


def show_vectors(output: Path) -> None:
    """Prints the best classes and the nearest neighbours of one image of each kind."""
    table = effnet_batch.read_embeddings(str(output))
    names = [Path(uri).stem for uri in table["uri"].to_pylist()]
    vectors = effnet_batch.embedding_matrix(table)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    print(
        f"\nread_embeddings gives {len(names)} vectors of {vectors.shape[1]} numbers. For example:"
    )
    for kind in PHOTOGRAPHS:
        row = names.index(f"{kind}-00")
        classes = table["top_k_classes"][row].as_py()
        scores = table["top_k_scores"][row].as_py()
        best = [
            f"{CLASS_NAMES.get(each, f'class {each}')} {score:.2f}"
            for each, score in zip(classes, scores, strict=True)
        ]
        nearest = np.argsort(-(vectors @ vectors[row]))[1:4]  # the first is the image itself
        print(f"  {names[row]:<14} {', '.join(best)}")
        print(f"  {'':<14} most similar: {', '.join(names[each] for each in nearest)}")
        if classes[0] not in EXPECTED_CLASSES[kind]:
            sys.exit(f"{names[row]} is no {best[0]}: something does not work.")


def train_detector(folder: Path) -> None:
    """Trains an LSTM on the frame embeddings of clips and of forgeries made from them."""
    say(
        f"Clips of {len(ORIGINALS)} photographs and films, and a forgery of each clip by "
        "self-blending.\nThe frames of those to train on become vectors too."
    )
    make_archive(folder / "videos")
    clips = folder / "videos" / "train" / "videos.csv"
    sampling = ("--sampling", "uniform", "--num-frames", "8")
    run("embed", clips, folder / "frames", "--model", MODEL, "--frames", *sampling)
    say("An LSTM learns from the stored vectors what forgeries look like.")
    network = ("--network", MODEL, "--weights", WEIGHTS, "--lstm-layers", "1", "--lstm-dim", "64")
    training = ("--epochs", "20", "--learning-rate", "3e-4")
    run("finetune", folder / "frames", folder / "detector", *network, *training)


def test_detector(folder: Path) -> None:
    """Scores and measures what was held out, on a local S3 server."""
    say("A local S3 server gets the clips of those originals that training never saw.")
    held_out = sorted((folder / "videos" / "test").iterdir())
    with S3Server((folder / "s3").resolve()) as server:
        there = {Path(key).name for key in server.keys("archive/")}
        server.put_files("archive/", [path for path in held_out if path.name not in there])
        clips, scores = f"s3://{BUCKET}/archive/videos.csv", f"s3://{BUCKET}/scores"
        checkpoint = ("--checkpoint", folder / "detector" / "model.safetensors")
        run("score", clips, scores, *checkpoint, "--store-crops", "1", **server.env)
        say("Its verdicts are measured against the labels, and shown.")
        run("evaluate", scores, "--output", folder / "evaluation", **server.env)
        run("report", scores, "--html", folder / "report.html", **server.env)


def conclude(folder: Path, seconds: float) -> None:
    """Prints the result; ends with an error if it is not what is expected."""
    videos = json.loads((folder / "evaluation" / "metrics.json").read_text())["videos"]
    auc = videos["metrics"]["auc"]
    say(
        f"Held-out AUC {auc['value']:.3f}, of {videos['num_real']} clips and "
        f"{videos['num_fake']} forgeries made from {videos['num_groups']} originals that training "
        f"never saw.\nAll took {seconds / 60:.1f} minutes. The pages:\n"
        f"  {folder / 'evaluation' / 'index.html'}   measures and plots\n"
        f"  {folder / 'report.html'}   every verdict with its evidence\n\n"
        "This checks that the parts work together. It is no measure of a detector's quality: the\n"
        "forgeries are made to be seen, and of the same kind in training and in the test."
    )
    if auc["value"] < EXPECTED_AUC:
        sys.exit(f"An AUC of {EXPECTED_AUC} or more was expected: something does not work.")


def say(text: str) -> None:
    """Prints what comes next."""
    print(f"\n{text}", flush=True)


def run(*arguments: str | Path, **environment: str) -> None:
    """Runs a command of effnet-batch and shows it; where it fails, the demo ends."""
    words = ["effnet-batch", *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    words[0] = str(Path(sys.executable).parent / words[0])
    code = subprocess.run(words, env={**os.environ, **environment}, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
