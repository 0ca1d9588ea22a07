"""How a command of the terminal ends: errors as one line, and an exit code."""

import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from effnet_batch.cli_console import Console
from effnet_batch.cli_noise import quiet_streams

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_FAILURES = 3
EXIT_INTERRUPTED = 130


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turns errors into one line and an exit code; passes a console in."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        _open_closed_streams()
        # `ray job stop` and Kubernetes send SIGTERM, a terminal that is closed SIGHUP: end as
        # cleanly as after Ctrl-C.
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, _interrupt)
        if sys.platform == "linux":
            # Arrow's default keeps what it frees: 140 MB more at a million committed records.
            os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
        # What it holds back as repeated, Ray prints in the main thread as it ends, past our filter.
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        from effnet_batch.errors import ConfigError, EffnetBatchError

        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that the terminal's encoding cannot say must not cost the whole table.
            sys.stdout.reconfigure(errors="backslashreplace")
        is_json = click.get_current_context().find_root().params.get("log_format") == "json"
        with quiet_streams() as stream, Console(stream=stream, is_json=is_json) as console:
            try:
                code = function(*args, console=console, **kwargs)
            except KeyboardInterrupt:
                console.warning("stopped; what is committed stays, and the same command goes on")
                code = EXIT_INTERRUPTED
            except ModuleNotFoundError as error:
                if error.name not in ("av", "cv2"):
                    raise
                console.error("videos need more packages: pip install 'effnet-batch[video]'")
                code = EXIT_USAGE
            except EffnetBatchError as error:
                console.error(str(error))
                code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
        sys.exit(code or EXIT_COMPLETE)

    return run


def _open_closed_streams() -> None:
    """Opens what the caller has closed (``>&-``), whose number the next file would take."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
