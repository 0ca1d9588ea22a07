"""Machines of a network of their own on this one: namespaces with an address each, behind a switch.

    with NodeNetwork() as network:
        machine = network.add_machine()
        subprocess.run([*machine.enter, "ping", "-c1", network.host])
        network.cut(machine)
        network.mend(machine)

The switch is a bridge in a namespace too. A namespace lives as long as the process that holds it,
which ends with ours: a test run that is killed leaves no interface behind.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from s3_server import die_with_parent

_TOOLS = ("ip", "nsenter", "unshare")
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class Machine:
    """A namespace."""

    address: str
    port: str
    """Of the switch: its end of the link."""
    enter: tuple[str, ...]
    """What a command begins with that runs there."""


class NodeNetwork:
    """This machine as ``host``, and machines beside it."""

    def __init__(self) -> None:
        # Of the range for benchmarks, which nobody routes.
        self._subnet = f"198.18.{secrets.randbelow(256)}"
        self.host = f"{self._subnet}.1"
        self._holders = contextlib.ExitStack()
        self._num_machines = 0

    def __enter__(self) -> Self:
        try:
            self._switch = self._hold()
            self._run(self._switch, "link", "add", "bridge", "type", "bridge")
            self._run(self._switch, "link", "set", "dev", "bridge", "up")
            name = f"effnet{secrets.token_hex(3)}"
            peer = ("peer", "name", "host", "netns", str(self._switch))
            self._run(None, "link", "add", name, "type", "veth", *peer)
            self._run(None, "address", "add", f"{self.host}/24", "dev", name)
            self._run(None, "link", "set", "dev", name, "up")
            self._plug("host")
        except BaseException:
            self._holders.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holders.close()

    def add_machine(self) -> Machine:
        """Plug a machine in."""
        self._num_machines += 1
        port, holder = f"port{self._num_machines}", self._hold()
        machine = Machine(f"{self._subnet}.{1 + self._num_machines}", port, _entering(holder))
        peer = ("peer", "name", "link", "netns", str(holder))
        self._run(self._switch, "link", "add", port, "type", "veth", *peer)
        self._plug(port)
        self._run(holder, "address", "add", f"{machine.address}/24", "dev", "link")
        for name in ("link", "lo"):
            self._run(holder, "link", "set", "dev", name, "up")
        return machine

    def cut(self, machine: Machine) -> None:
        """Pull the machine's plug."""
        self._run(self._switch, "link", "set", "dev", machine.port, "down")

    def mend(self, machine: Machine) -> None:
        """Put the plug back."""
        self._run(self._switch, "link", "set", "dev", machine.port, "up")

    def _plug(self, port: str) -> None:
        self._run(self._switch, "link", "set", "dev", port, "master", "bridge", "up")

    def _hold(self) -> int:
        """Start a process in a new namespace; return its id."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        self._holders.callback(holder.communicate)
        self._holders.callback(holder.kill)
        while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
            if holder.poll() is not None:
                raise NoNetworkError(f"unshare --net: {holder.communicate()[1].decode().strip()}")
            time.sleep(_PAUSE_SECONDS)
        return holder.pid

    def _run(self, holder: int | None, *arguments: str) -> None:
        command = [*(() if holder is None else _entering(holder)), "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NoNetworkError(f"{' '.join(command)}: {done.stderr.strip()}")


class NoNetworkError(Exception):
    """This machine makes no namespaces; says what failed."""


def what_is_missing() -> str | None:
    """Return what this machine lacks for a network of its own, or None."""
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"the command {tool}"
    if os.geteuid() != 0:
        return "the rights of root"
    try:
        with NodeNetwork() as network:
            network.add_machine()
    except NoNetworkError as error:
        return f"network namespaces ({error})"
    return None


def _entering(holder: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{holder}/ns/net")
