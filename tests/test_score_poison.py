"""Videos that kill or hang their decoder, through the whole job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

import effnet_batch
from effnet_batch.models.checkpoints import save_checkpoint
from effnet_batch.pipelines.verify import verify

# Loaded by every Python process of the run: bytes that carry a marker make PyAV misbehave as a bug
# in a decoder would, in the workers as well as in the isolated children.
SABOTAGE = """
import os, signal, time

import av

original_open = av.open

def sabotaged_open(file, *args, **kwargs):
    data = file.read(1 << 20)
    file.seek(0)
    if b"POISON:SEGV" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"POISON:HANG" in data:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(100_000)
    return original_open(file, *args, **kwargs)

av.open = sabotaged_open
"""
MARKS = {2: b"POISON:SEGV", 5: b"POISON:HANG"}


@pytest.mark.slow
def test_poison_becomes_one_record_each_in_one_run(tmp_path: Path) -> None:
    model, info = tiny_checkpoint(0)
    save_checkpoint(str(tmp_path / "tiny.safetensors"), model, info)
    (tmp_path / "in").mkdir()
    video = encode(num_frames=8)
    for index in range(8):
        (tmp_path / "in" / f"{index}.mp4").write_bytes(video + MARKS.get(index, b""))
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    python_path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = ["score", "in", "out", "--checkpoint", "tiny.safetensors", "--engine", "torch"]
    done = subprocess.run(
        [Path(sys.executable).parent / "effnet-batch", *command, "--timeout-seconds", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path)},
    )
    assert done.returncode == 3, done.stderr  # more than 5 % failed
    rows = effnet_batch.read_scores(str(tmp_path / "out")).to_pylist()
    found = {int(Path(row["uri"]).stem): row for row in rows}
    expected = {**dict.fromkeys(range(8), "ok"), 2: "crashed", 5: "timeout"}
    assert {index: row["status"] for index, row in sorted(found.items())} == expected
    assert "SIGSEGV" in found[2]["error_message"]
    assert len({row["score"] for row in rows if row["status"] == "ok"}) == 1
    report = verify(str(tmp_path / "out"), is_deep=True)
    assert report.is_proven, report
