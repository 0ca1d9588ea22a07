from typing import Any

import pytest

from effnet_batch.errors import FingerprintError
from effnet_batch.fingerprint import Fingerprint


def test_what_differs_is_named_and_nothing_else() -> None:
    """A whole checkpoint once stood there twice, in a thousand characters each."""
    checkpoint: dict[str, Any] = {"sha256": "a", "sampling": {"strategy": "uniform"}, "std": (1, 2)}
    fields = {"checkpoints": [checkpoint], "precision": "fp32"}
    stored = Fingerprint(fields).to_dict()
    Fingerprint(fields).check_same(stored, "/out")
    other = {"checkpoints": [{**checkpoint, "sampling": {"strategy": "fps"}}]}
    with pytest.raises(FingerprintError) as caught:
        Fingerprint(other).check_same(stored, "/out")
    assert str(caught.value).splitlines()[1:-1] == [
        "  checkpoints[0].sampling.strategy: output has 'uniform', this run 'fps'",
        "  precision: output has 'fp32', this run None",
    ]
