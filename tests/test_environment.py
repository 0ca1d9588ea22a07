"""A user's environment that is not ours: what it says must not end a run."""

import os
import subprocess
import sys
from pathlib import Path

from embed_process import FAST_MODEL
from photographs import small_jpegs

EXECUTABLE = Path(sys.executable).parent / "effnet-batch"


def test_warnings_as_errors_an_ascii_terminal_and_the_home_folder(tmp_path: Path) -> None:
    """Ray's own warnings, a name that cannot be printed, and ``~`` where no shell expands it."""
    (tmp_path / "images").mkdir()
    for index, data in enumerate(small_jpegs(3)):
        (tmp_path / "images" / f"é{index}.jpg").write_bytes(data)
    (tmp_path / "images" / "ü.jpg").write_bytes(b"no image")
    (tmp_path / "job.toml").write_text('input = "~/images"\nmax_failures = 1.0\n')
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [EXECUTABLE, *arguments], env=environment, capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("embed", "--config=~/job.toml", "~/images", "~/out", *FAST_MODEL)
    assert "4 = 3 done + 1 failed + 0 pending" in said
    assert str(tmp_path / "images" / "\\xfc.jpg") in run("status", "~/out")
    assert (tmp_path / "out" / "run.json").exists()
