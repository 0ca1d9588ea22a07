"""A headless Chromium driven over its debugging pipe: no driver and no library in between."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Returns the path of a Chromium on PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser with one page; notes every request that the page makes.

    Use it as a context manager. Commands are those of the DevTools protocol.
    """

    def __init__(self, executable: str) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        """What the page wrote to the console, warnings of the browser included."""
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._ids = itertools.count(1)
        self._buffer = b""
        theirs_in, self._write_fd = os.pipe()
        self._read_fd, theirs_out = os.pipe()

        def place_pipes() -> None:
            # The browser reads commands from descriptor 3 and answers on 4.
            high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)

        self._process = subprocess.Popen(
            [
                executable,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-pipe",
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place_pipes,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None

    def __enter__(self) -> "Chromium":
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.command(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._write_fd)
        self._process.kill()
        self._process.wait()
        os.close(self._read_fd)
        shutil.rmtree(self._profile, ignore_errors=True)

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Runs one command and returns its result."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        answer = self._read_until(lambda found: found.get("id") == number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, *, scripts: bool = True) -> None:
        """Loads a file and waits until it is there."""
        self.command("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.requests.clear()
        self.messages.clear()
        self.command("Page.navigate", url=path.as_uri())
        self._read_until(lambda found: found.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """Presses a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    def write(self, text: str) -> None:
        """Types text where the focus is."""
        self.command("Input.insertText", text=text)

    def _read_until(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                data = os.read(self._read_fd, 1 << 20)
                if not data:
                    raise RuntimeError("Chromium is gone")
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\0")
            found: dict[str, Any] = json.loads(line)
            method, params = found.get("method"), found.get("params", {})
            if method == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            elif method == "Log.entryAdded":
                self.messages.append(params["entry"]["text"])
            elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.messages.append(json.dumps(params))
            if is_wanted(found):
                return found
