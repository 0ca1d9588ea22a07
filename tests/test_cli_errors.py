"""Wrong usage and configuration: exit code 2, one message that helps, no secret in it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import write_small_jpegs
from s3_server import S3Server

SECRET = "SENTINELsecret42"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def images(tmp_path: Path) -> str:
    write_small_jpegs(tmp_path / "images", 2)
    return str(tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize = 4", "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        ("topk = 4", "unknown setting 'topk'; did you mean 'top_k'?"),
        ('device = "tpu"', "device must be one of auto, cpu, cuda, got 'tpu'"),
        ("max_failures = 5", "max_failures must be at most 1"),
        ("[engine]\nbatch_size = 4", "settings are flat"),
        ("batch_size = ", "is not TOML"),
        (None, "No such file"),
    ],
)
def test_a_wrong_configuration_file_is_named_with_what_is_right(
    tmp_path: Path, images: str, run: Run, text: str | None, words: str
) -> None:
    path = tmp_path / "job.toml"
    if text is not None:
        path.write_text(text)
    code, said = run("embed", images, str(tmp_path / "out"), "--config", str(path))
    assert code == 2
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("embed", "missing/", "out/"), "missing"),
        (("embed", "images/", "out/", "--top-k=-1"), "top_k must be at least 0"),
        (("embed", "images/", "out/", "--placement=both"), "both"),
        (("embed", "images/", "out/", "--model=efficientnet_b9"), "did you mean efficientnet_b"),
        (
            ("embed", "images/", "out/", "--weights=efficientnet_b0"),
            "a published name",
        ),
        (("retry", "images/", "--status=ok"), "unknown status 'ok'"),
        (("retry", "images/", "--status=decode_errors"), "allowed are fetch_error, decode_error"),
        (("verify", "images/"), "is no output"),
        (("status", "nowhere/"), "is no output"),
        (("compact", "images/"), "is no output"),
        (("forget", "images/", "--uri-list=missing.txt"), "is no output"),
        (("manifest", "images/*.png", "m.parquet"), "no images"),
        (("manifest", "images/", "/proc/none/m.parquet"), "cannot write into /proc/none"),
        (("manifest", "images/", "new/m.txt"), "must end in .parquet"),
        (("embed", "images/", "http://h.example/out"), "cannot be written to"),
        (("embed", "ftp://h.example/images", "out/"), "has the scheme 'ftp'; known are"),
        (("embed", "simplecache::s3://bucket/images", "out/"), "chains URLs"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    images: str, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(Path(images).parent)
    code, said = run(*arguments)
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert "listing" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", f"https://user:{SECRET}@127.0.0.1/list.txt", "out/"),
        ("embed", f"https://127.0.0.1/list.txt?X-Amz-Signature={SECRET}", "out/"),
        ("embed", f"https://127.0.0.1/list.txt?sig={SECRET}", "out/"),
        ("embed", f"ftp://user:{SECRET}@h.example/images", "out/"),
        ("embed", "images/", f"s3://user:{SECRET}@bucket/out"),
        ("verify", f"https://127.0.0.1/out?token={SECRET}"),
        ("forget", "images/", f"--uri-list=https://127.0.0.1/l.txt?sig={SECRET}"),
        ("manifest", f"http://user:{SECRET}@127.0.0.1/list.txt", "m.parquet"),
    ],
)
def test_refusals_do_not_repeat_secrets(
    images: str, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(Path(images).parent)
    code, said = run(*arguments)
    assert code == 2
    assert said.strip()
    assert SECRET not in said


def test_wrong_credentials_are_named_but_not_shown(
    s3: S3Server, s3_prefix: str, images: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.client_env(monkeypatch, AWS_SECRET_ACCESS_KEY=SECRET)
    for arguments in ((s3_prefix, "out/"), (images, f"{s3_prefix}out")):
        monkeypatch.chdir(Path(images).parent)
        code, said = run("embed", *arguments)
        assert code == 2
        assert "AWS_SECRET_ACCESS_KEY" in said
        assert SECRET not in said


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed_cost_nothing(closed: str) -> None:
    command = f"{sys.executable} -m effnet_batch"
    done = subprocess.run(f"{command} checkpoints {closed}", shell=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(f"{command} verify missing {closed}", shell=True, capture_output=True)
    assert done.returncode == 2
    assert (b"missing is no output" in done.stderr) == (closed == ">&-")


HANG_UP = """
import os, signal, sys
import click
from effnet_batch.cli_command import command
@click.command()
@command
def wait(console):
    os.kill(os.getpid(), signal.SIGHUP)
    console.message("still here")
wait()
"""


@pytest.mark.parametrize(
    ("prefix", "code", "words"), [("", 130, "stopped"), ("trap '' HUP;", 0, "still here")]
)
def test_a_closed_terminal_stops_a_command_but_not_under_nohup(
    prefix: str, code: int, words: str
) -> None:
    line = f'{prefix} {sys.executable} -c "$SCRIPT"'
    env = {**os.environ, "SCRIPT": HANG_UP}
    # These tests themselves may run under nohup, and pass it on.
    done = subprocess.run(
        line,
        shell=True,
        capture_output=True,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.returncode == code
    assert words in done.stderr
