"""Every ``auto`` is resolved to what is there, and what cannot run is refused."""

import pytest
import torch

from effnet_batch.errors import ConfigError
from effnet_batch.models import engine as engine_module
from effnet_batch.models.engine import EngineChoice, resolve_engine


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, bf16: bool = True, openvino: bool = True
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(engine_module, "_is_openvino_installed", lambda: openvino)


@pytest.mark.parametrize(
    ("has", "asked", "wanted"),
    [
        ({}, {}, EngineChoice("openvino", "cpu", "fp32", 16)),
        ({"openvino": False}, {}, EngineChoice("torch", "cpu", "fp32", 16)),
        ({}, {"precision": "bf16"}, EngineChoice("openvino", "cpu", "bf16", 16)),
        ({}, {"compiled": True}, EngineChoice("torch", "cpu", "fp32", 16, compiled=True)),
        ({}, {"engine": "torch", "batch_size": 3}, EngineChoice("torch", "cpu", "fp32", 3)),
        ({"cuda": True}, {}, EngineChoice("torch", "cuda", "bf16", 256)),
        ({"cuda": True, "bf16": False}, {}, EngineChoice("torch", "cuda", "fp16", 256)),
        ({"cuda": True}, {"precision": "fp32"}, EngineChoice("torch", "cuda", "fp32", 256)),
        ({"cuda": True}, {"device": "cpu"}, EngineChoice("openvino", "cpu", "fp32", 16)),
        ({"cuda": True}, {"engine": "openvino"}, EngineChoice("openvino", "cpu", "fp32", 16)),
    ],
)
def test_auto_takes_the_best_that_is_there(
    monkeypatch: pytest.MonkeyPatch, has: dict, asked: dict, wanted: EngineChoice
) -> None:
    machine(monkeypatch, **has)
    assert resolve_engine(**asked) == wanted


@pytest.mark.parametrize(
    ("has", "asked", "message"),
    [
        ({}, {"engine": "tensorrt"}, "engine must be one of auto, torch, openvino, got 'tensorrt'"),
        ({}, {"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({}, {"precision": "int8"}, "precision must be one of auto, fp32, bf16, fp16, got 'int8'"),
        ({}, {"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"openvino": False}, {"engine": "openvino"}, r"pip install 'effnet-batch\[openvino\]'"),
        ({}, {"device": "cuda"}, "device cuda is not available to torch"),
        ({"cuda": True}, {"engine": "openvino", "device": "cuda"}, "does not run on device cuda"),
        ({}, {"engine": "openvino", "compiled": True}, "compiled goes with engine torch only"),
        ({}, {"engine": "torch", "precision": "fp16"}, "choose one of fp32, bf16"),
        ({"cuda": True, "bf16": False}, {"precision": "bf16"}, "choose one of fp32, fp16"),
    ],
)
def test_what_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, has: dict, asked: dict, message: str
) -> None:
    machine(monkeypatch, **has)
    with pytest.raises(ConfigError, match=message):
        resolve_engine(**asked)
