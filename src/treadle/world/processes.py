"""A process of a run: where it is, and what became of it."""

from __future__ import annotations

import os
import signal
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process, as others can look for it. Those on other machines cannot be seen from here.

    >>> Process.this().fate()
    ''
    """

    host: str
    pid: int
    started: str  # numbers of processes are given again
    machine: str

    @classmethod
    def this(cls) -> Process:
        """The one that asks."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(_stat(pid)), _machine())

    def fate(self) -> str:
        """How it ended, as a predicate; "" as long as it runs or cannot be seen."""
        if self.machine != _machine():
            return ""
        stat = _stat(self.pid)
        if not stat or _started(stat) != self.started:
            return "is gone (killed, crashed or ended)"
        return _told(int(stat[49])) if stat[0] in "ZX" else ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _told(status: int) -> str:
    """What a status of `waitpid` means; its starter has not asked for it yet."""
    if number := status & 127:
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit status {status >> 8}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (`man 5 proc`); none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _stat_elsewhere(pid)


def _stat_elsewhere(pid: int) -> list[str]:
    if Path("/proc/self/stat").exists():
        return []
    try:  # a system without /proc tells only whether it is there
        os.kill(pid, 0)
    except OSError:
        return []
    return ["R"] + ["0"] * 49


def _started(stat: list[str]) -> str:
    return stat[19] if stat else ""


@cache
def _machine() -> str:
    """What is the same for processes that can see one another by number."""
    told = [socket.gethostname()]
    try:
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        pass
    return " ".join(told)
