"""``effnet-batch embed`` as a process of its own, to be killed and looked into from outside.

    with EmbedProcess(server, tmp_path, "s3://bucket/in", "s3://bucket/out") as driver:
        driver.wait_for_parts(10)
        driver.kill()
    assert not driver.processes()

What is committed is read here with botocore and pyarrow alone.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from s3_server import S3Server

FAST_MODEL = (
    "--model=mobilenet_v2",
    "--weights=random",
    "--image-size=96",
    "--engine=torch",
    "--batch-size=4",
)
"""A real model that costs the tests little time, and slow enough to be struck at work."""

IN_PASSES = (
    "import sys; from effnet_batch import cli, prefixes; "
    "prefixes.ROWS_PER_PASS = int(sys.argv.pop(1)); cli.main()"
)
"""The command as a program for ``python -c`` whose first argument is how many rows a pass has."""

_PAUSE_SECONDS = 0.1
_GONE_SECONDS = 60.0


class EmbedProcess:
    """One run of the command; leaving ends every process that belongs to it."""

    def __init__(
        self,
        server: S3Server,
        folder: Path,
        *arguments: str,
        rows_per_pass: int | None = None,
        **environment: str,
    ) -> None:
        self.server = server
        # Every process of the run, whoever its parent becomes, has this name in its environment.
        self.mark = f"{folder}/tmp-{time.monotonic_ns()}"
        Path(self.mark).mkdir(parents=True)
        program = [str(Path(sys.executable).parent / "effnet-batch")]
        if rows_per_pass is not None:
            program = [sys.executable, "-c", IN_PASSES, str(rows_per_pass)]
        self.log = Path(f"{self.mark}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *arguments],
                env={**os.environ, **server.env, "TMPDIR": self.mark, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.output)  # noqa: T201  pytest shows it with the failure
        self.process.kill()
        self.process.wait()
        for process in {*self.processes(), *self._agents()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return what is alive of the run, its driver left out."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.pid != self.process.pid
                    and process.status() != psutil.STATUS_ZOMBIE
                    and self.mark in process.environ().values()
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _agents(self) -> list[psutil.Process]:
        # Ray's agents outlive a killed node by a minute, and write their title over the mark.
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid != process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def workers(self, *names: str) -> list[psutil.Process]:
        """Return the Ray workers whose title holds one of these names."""
        found = []
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::") and any(name in title for name in names):
                found.append(process)
        return found

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Wait for a moment of the run; it must come before the run ends."""
        while not is_reached():
            assert self.process.poll() is None, f"ended before:\n{self.output}"
            time.sleep(_PAUSE_SECONDS)

    def wait_alone(self) -> int:
        """Return the exit code of a run that must start no other process."""
        while self.process.poll() is None:
            assert not self.processes(), self.output
            time.sleep(0.1)
        return self.process.returncode

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait()

    def kill(self) -> None:
        """Kill the driver, and wait until Ray's processes have noticed and are gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.wait_until_gone()

    def kill_all(self) -> None:
        """Kill every process of the run at once, as the loss of the machine does."""
        processes = {*self.processes(), *self._agents()}
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        self.process.send_signal(signal.SIGKILL)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        """Wait until nothing of the run is left."""
        deadline = time.monotonic() + _GONE_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there: {[p.cmdline() for p in left]}"
            time.sleep(0.2)


def read_rows(server: S3Server, prefix: str, columns: Iterable[str] | None = None) -> pa.Table:
    """Return every committed row under a prefix, superseded ones too, with its part's key."""
    tables = []
    for key in server.keys(f"{prefix}/data/"):
        table = pq.read_table(io.BytesIO(server.get(key)), columns=columns and list(columns))
        tables.append(table.append_column("part", pa.array([key] * len(table), pa.string())))
    return pa.concat_tables(tables) if tables else pa.table({})
