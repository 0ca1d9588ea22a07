"""The OpenVINO engine: the fastest way to run these models on a CPU."""

import importlib
import sys
import threading
import warnings
from typing import Any, Final

import numpy as np
import torch

from effnet_batch.errors import ConfigError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine_base import (
    CPUEngine,
    EngineOutput,
    FrameNetwork,
    Frames,
    cpu_forward_size,
)

TELEMETRY: Final = "openvino_telemetry"
_IMPORT_LOCK: Final = threading.Lock()
PRECISION_HINTS: Final = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVINOEngine(CPUEngine):
    """Runs the model compiled for this CPU.

    OpenVINO keeps the weights twice, as they were and in the order its kernels read them; nothing
    of the model itself is kept.

    Raises:
        ConfigError: this CPU cannot run the precision.
    """

    def __init__(
        self,
        model: Backbone,
        preprocessing: Preprocessing,
        *,
        precision: str,
        batch_size: int,
        num_threads: int = 1,
        num_streams: int = 1,
        with_logits: bool = False,
    ) -> None:
        super().__init__(
            model,
            preprocessing,
            name="openvino",
            device="cpu",
            precision=precision,
            batch_size=batch_size,
            num_threads=num_threads,
            num_streams=num_streams,
            with_logits=with_logits,
        )
        openvino = _import_without_telemetry()
        self._tensor_type = openvino.Tensor
        network = FrameNetwork(model.cpu(), preprocessing, with_logits=with_logits)
        side = self.image_size
        graph = _convert(network, torch.zeros((1, side, side, 3), dtype=torch.uint8))
        # A fixed shape runs 1-7 % faster than an open one; a batch's last frames are filled up.
        self._forward_size = cpu_forward_size(side, batch_size)
        graph.reshape([self._forward_size, side, side, 3])
        self._compiled = openvino.Core().compile_model(
            graph,
            "CPU",
            {
                # Without a hint OpenVINO silently runs bf16 where the CPU has it.
                "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
                "NUM_STREAMS": num_streams,
                "INFERENCE_NUM_THREADS": num_streams * num_threads,
                # Several processes on a machine would pin themselves to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if hint != PRECISION_HINTS[precision]:
            raise ConfigError(
                f"this CPU cannot run precision {precision} with OpenVINO, which would run "
                f"{hint} instead; choose another --precision"
            )
        self._requests = threading.local()

    def _run(self, frames: Frames) -> EngineOutput:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        widths = [self.embedding_dim]
        if self.num_classes is not None:
            widths.append(self.num_classes)
        outputs = [np.empty((len(frames), width), np.float32) for width in widths]
        size = self._forward_size
        for start in range(0, len(frames), size):
            chunk = frames[start : start + size]
            num_frames = len(chunk)
            if num_frames < size:
                blank = np.zeros((size - num_frames, *frames.shape[1:]), np.uint8)
                chunk = np.concatenate([chunk, blank])
            request.set_input_tensor(self._tensor_type(chunk, shared_memory=True))
            request.infer()
            for index, output in enumerate(outputs):
                result = request.get_output_tensor(index).data
                output[start : start + num_frames] = result[:num_frames]
        return EngineOutput(outputs[0], outputs[1] if len(outputs) == 2 else None)


def _convert(network: torch.nn.Module, example: torch.Tensor) -> Any:
    """Returns the network as an OpenVINO graph of open batch size.

    openvino.convert_model does the same, but reports it, and imports 90 MB of other converters.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing warns that it is deprecated, and that sizes become constants, which they may.
        warnings.simplefilter("ignore")
        decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
        traced = decoder.TorchScriptPythonDecoder(
            network, example_input=example, trace_kwargs={"check_trace": False}
        )
        manager = importlib.import_module("openvino.frontend").FrontEndManager()
        frontend = manager.load_by_framework("pytorch")
        return frontend.convert(frontend.load(traced))


def _import_without_telemetry() -> Any:
    """Imports openvino with its usage statistics off: no network, no files in the home folder.

    OpenVINO reports that it was imported unless its telemetry package is missing, so that is made
    to look missing meanwhile.
    """
    with _IMPORT_LOCK:
        known = sys.modules.get(TELEMETRY)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            if known is None:
                del sys.modules[TELEMETRY]
            else:
                sys.modules[TELEMETRY] = known
