"""Writes model_logits.json by running timm and torchvision, never our own blocks.

Needs both libraries beside a build of torch that they import with:
``python tests/goldens/make_model_logits.py``
"""

import json
import sys
from pathlib import Path

import timm
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))

from seeded_weights import seeded_images, seeded_state

# library, its name of the network, ours, padding, epsilon, image sizes (odd ones tell paddings
# apart; a ResNet and a MobileNet only know one)
CASES = (
    ("timm", "tf_efficientnet_b0", "efficientnet_b0", "same", 1e-3, (64, 97)),
    ("timm", "tf_efficientnet_b1", "efficientnet_b1", "same", 1e-3, (75,)),
    ("timm", "efficientnet_b2", "efficientnet_b2", "symmetric", 1e-5, (75,)),
    ("timm", "tf_efficientnet_lite0", "efficientnet_lite0", "same", 1e-3, (97,)),
    ("timm", "resnet50", "resnet50", "symmetric", 1e-5, (75,)),
    ("torchvision", "efficientnet_b0", "efficientnet_b0", "symmetric", 1e-5, (64, 97)),
    ("torchvision", "efficientnet_b3", "efficientnet_b3", "symmetric", 1e-5, (75,)),
    ("torchvision", "resnet50", "resnet50", "symmetric", 1e-5, (64,)),
    ("torchvision", "mobilenet_v2", "mobilenet_v2", "symmetric", 1e-5, (75,)),
)
NUM_LOGITS = 6


def main() -> None:
    """Runs every case once and stores its first logits."""
    goldens = []
    for library, theirs, ours, padding, bn_eps, sizes in CASES:
        if library == "timm":
            model = timm.create_model(theirs, pretrained=False)
        else:
            model = torchvision.models.get_model(theirs, weights=None)
        state = seeded_state({key: tuple(v.shape) for key, v in model.state_dict().items()})
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith("num_batches_tracked") for key in missing)
        model.eval()
        for size in sizes:
            with torch.no_grad():
                logits = model(seeded_images(2, size))
            goldens.append(
                {
                    "library": library,
                    "original": theirs,
                    "architecture": ours,
                    "padding": padding,
                    "bn_eps": bn_eps,
                    "image_size": size,
                    "num_keys": len(state),
                    "logits_std": round(logits.std().item(), 6),
                    "logits": [[round(v, 6) for v in row[:NUM_LOGITS].tolist()] for row in logits],
                }
            )
    versions = {m.__name__: m.__version__ for m in (timm, torch, torchvision)}
    target = Path(__file__).with_name("model_logits.json")
    target.write_text(json.dumps({"made_with": versions, "cases": goldens}, indent=1) + "\n")


if __name__ == "__main__":
    main()
