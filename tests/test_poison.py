"""Images that kill or hang their decoder, through the whole job."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from embed_process import FAST_MODEL, EmbedProcess, read_rows
from photographs import small_jpegs
from s3_server import S3Server

from effnet_batch.pipelines.verify import verify

# Loaded by every Python process of the run: bytes that carry a marker make Pillow's JPEG plugin
# misbehave as a bug in a decoder would, in the workers as well as in the isolated children.
SABOTAGE = """
import os, signal, time

try:
    import PIL.JpegImagePlugin as plugin
except ImportError:
    plugin = None

if plugin is not None:
    original_open = plugin.JpegImageFile._open

    def sabotaged_open(self):
        data = self.fp.getvalue()
        if b"POISON:SEGV" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"POISON:HANG" in data:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            time.sleep(100_000)
        original_open(self)

    plugin.JpegImageFile._open = sabotaged_open
"""
NUM_IMAGES = 72
CRASHING = (3, 17, 33)
"""One in each of the first units: a unit that waits behind a dying actor must not pay for it."""
HANGING = (57,)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["fused", "split"])
def test_poison_becomes_one_record_each_in_one_run(
    placement: str, s3: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    prefix = s3_prefix.split("/", 3)[3]
    for index, data in enumerate(small_jpegs(NUM_IMAGES, seed=9)):
        mark = b"POISON:SEGV" if index in CRASHING else b"POISON:HANG" if index in HANGING else b""
        s3.put(f"{prefix}in/{index:04}.jpg", data + mark)
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    command = (
        "embed",
        f"{s3_prefix}in",
        f"{s3_prefix}out",
        "--rows-per-part=16",
        "--timeout-seconds=3",
        f"--placement={placement}",
        *FAST_MODEL,
    )
    with EmbedProcess(s3, tmp_path, *command, PYTHONPATH=python_path(tmp_path)) as driver:
        code = driver.wait()
        assert code == 3, driver.output  # more than 5 % failed
        driver.wait_until_gone()
    rows = read_rows(s3, f"{prefix}out", ["uri", "status", "error_message", "attempt"])
    assert rows.num_rows == NUM_IMAGES
    assert statuses(rows) == {
        **dict.fromkeys(range(NUM_IMAGES), "ok"),
        **dict.fromkeys(CRASHING, "crashed"),
        **dict.fromkeys(HANGING, "timeout"),
    }
    crashed = rows.filter(pc.equal(rows["status"], "crashed"))
    assert all("SIGSEGV" in message for message in crashed["error_message"].to_pylist())
    report = verify(f"{s3_prefix}out", is_deep=True)
    assert report.is_proven, report
    assert report.num_failed == len(CRASHING) + len(HANGING)

    if placement == "split":
        return
    # What only took too long is tried again by the next run; what crashes is not.
    mark = s3.access_log.mark()
    with EmbedProcess(s3, tmp_path, *command) as driver:  # this machine is not sabotaged
        assert driver.wait() == 0, driver.output
        driver.wait_until_gone()
    assert set(s3.access_log.gets(since=mark, prefix=f"{prefix}in/")) == {
        f"{prefix}in/{index:04}.jpg" for index in HANGING
    }
    rows = read_rows(s3, f"{prefix}out", ["uri", "status", "error_message", "attempt"])
    second = rows.filter(pc.equal(rows["attempt"], 2))
    assert statuses(second) == dict.fromkeys(HANGING, "ok")
    report = verify(f"{s3_prefix}out")
    assert report.is_proven, report
    assert report.records_by_status == {
        "ok": NUM_IMAGES - len(CRASHING),
        "crashed": len(CRASHING),
    }


def statuses(rows: pa.Table) -> dict[int, str]:
    numbers = [int(uri[-8:-4]) for uri in rows["uri"].to_pylist()]
    return dict(sorted(zip(numbers, rows["status"].to_pylist(), strict=True)))


def python_path(folder: Path) -> str:
    """Return the module path of this process behind a folder of the test's."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
