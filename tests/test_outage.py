"""Storage that goes away or refuses, and runs that a person or a scheduler stops."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from embed_process import FAST_MODEL, EmbedProcess, read_rows
from photographs import small_jpegs
from s3_server import S3Server

from effnet_batch.pipelines.verify import verify

NUM_IMAGES = 480
ROWS_PER_PART = 16
SOON = "--rows-per-part=16"


def fill(server: S3Server, num_images: int = NUM_IMAGES) -> tuple[str, str]:
    for index, data in enumerate(small_jpegs(num_images, seed=5)):
        server.put(f"in/{index:04}.jpg", data)
    return f"s3://{server.bucket}/in", f"s3://{server.bucket}/out"


def wait_for_parts(driver: EmbedProcess, num_parts: int) -> None:
    server = driver.server
    driver.wait_until(lambda: len(server.keys("out/data/")) >= num_parts)


@pytest.mark.slow
def test_a_run_outlives_an_outage_and_being_stopped(
    start_s3: Callable[[], S3Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_s3()
    server.client_env(monkeypatch)
    source, output = fill(server)
    command = ("embed", source, output, SOON, *FAST_MODEL)

    # The server goes away in the middle of the work.
    with EmbedProcess(server, tmp_path, *command) as driver:
        wait_for_parts(driver, 6)
        server.stop(is_crash=True)
        assert driver.wait() == 1, driver.output
        driver.wait_until_gone()
        # Rich breaks lines where it likes.
        told = " ".join(driver.output.split())
        assert "Traceback" not in told
        assert "a worker failed" not in told, "the message must be ours"
        assert server.endpoint_url in told, "the message must name the storage"
    server.start()
    rows = read_rows(server, "out", ["uri", "status"])
    assert set(rows["status"].to_pylist()) == {"ok"}, "an outage is not a result"
    assert 6 * ROWS_PER_PART <= rows.num_rows < NUM_IMAGES

    # Ctrl-C reaches every process of the terminal; SIGTERM is what schedulers send.
    for stop, num_parts in (("ctrl-c", 13), ("terminate", 20)):
        with EmbedProcess(server, tmp_path, *command) as driver:
            wait_for_parts(driver, num_parts)
            if stop == "ctrl-c":
                os.killpg(driver.process.pid, signal.SIGINT)
            else:
                driver.process.send_signal(signal.SIGTERM)
            assert driver.wait() == 130, driver.output
            driver.wait_until_gone()
            assert "Traceback" not in driver.output
            assert "same command" in driver.output
        assert json.loads(server.get("out/run.json"))["state"] == "stopped"
        assert "out/_lock.json" not in server.keys("out/")
        assert len(server.keys("out/data/")) < NUM_IMAGES / ROWS_PER_PART

    with EmbedProcess(server, tmp_path, *command) as driver:
        assert driver.wait() == 0, driver.output
        driver.wait_until_gone()
    report = verify(output, is_deep=True)
    assert report.is_proven, report
    assert (report.num_records, report.num_superseded) == (NUM_IMAGES, 0)
    assert json.loads(server.get("out/run.json"))["state"] == "complete"

    # Nothing is left: no Ray is started, nothing of the input is read.
    mark = server.access_log.mark()
    with EmbedProcess(server, tmp_path, *command) as driver:
        assert driver.wait_alone() == 0
        assert "nothing was left to do" in driver.output
    assert not server.access_log.gets(since=mark, prefix="in/")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "secret key is wrong"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"output": "s3://no-such-bucket/out"}, "no-such-bucket"),
        ({"input": "s3://no-such-bucket/in"}, "no-such-bucket"),
        ({"is_reader": "yes"}, "write"),
    ],
    ids=["credentials", "endpoint", "output bucket", "input bucket", "read only"],
)
def test_storage_that_refuses_is_found_before_ray_starts(
    changes: dict[str, str], cause: str, s3: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    changes = dict(changes)
    s3.put(f"{s3_prefix.split('/', 3)[3]}in/a.jpg", small_jpegs(1)[0])
    source = changes.pop("input", f"{s3_prefix}in")
    output = changes.pop("output", f"{s3_prefix}out")
    environment = {**(s3.reader_env if changes.pop("is_reader", "") else {}), **changes}
    with EmbedProcess(s3, tmp_path, "embed", source, output, *FAST_MODEL, **environment) as driver:
        code = driver.wait_alone()
        told = " ".join(driver.output.split())
        assert code == 2, told
    assert cause in told
    assert "Traceback" not in told
    assert s3.secret_key not in told
