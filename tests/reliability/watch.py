"""Watches what this process does with a file that is not trusted, and what memory it takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CODE = (
    *("exec", "compile", "import", "pickle.find_class", "ctypes.dlopen", "os.system", "os.exec"),
    *("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.bind"),
    *("socket.getaddrinfo", "os.symlink", "os.link"),
)
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.")


class _Watch:
    """An audit hook, that can never be taken away again: one for all, and asleep."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.writable = False
        self.offences: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if (
            event.startswith(_CODE)
            or (event.startswith(_CHANGES) and not self._is_allowed(args))
            or (event == "open" and not isinstance(args[0], int) and not self._may_open(*args))
        ):
            self.offences.append(f"{event} {args!r:.200}")

    def _may_open(self, path: Any, mode: Any, flags: int | None) -> bool:
        written = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if self.writable:
            return not written or self._is_inside(path)
        return not written and self._is_inside(path)

    def _is_allowed(self, args: tuple[Any, ...]) -> bool:
        if isinstance(args[-1], int) and args[-1] >= 0:
            return self.writable  # by an open folder: what removes trees does, which tells its root
        paths = [arg for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
        return self.writable and all(map(self._is_inside, paths))

    def _is_inside(self, path: Any) -> bool:
        assert self.inside is not None
        folder = Path(os.path.realpath(Path(os.fsdecode(path)).parent))
        return folder.is_relative_to(self.inside)


_WATCH = _Watch()


@contextmanager
def over(inside: Path, writable: bool = False) -> Iterator[list[str]]:
    """What is done in the block that must not be: code made, run or sought, processes, connections,
    links; changes of files, and files opened outside of `inside`. With `writable` what is inside
    may be changed, and everything be read."""
    _WATCH.offences, _WATCH.writable = [], writable
    _WATCH.inside = inside.resolve()
    try:
        yield _WATCH.offences
    finally:
        _WATCH.inside = None


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """The bytes that the process grew by at its peak in the block, by Linux's own count; 0 where
    that cannot be set back."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        before = _status("VmRSS")
    except OSError:
        yield lambda: 0.0
        return
    peak = 0.0
    yield lambda: peak
    peak = _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(field + ":"))
    return 1024.0 * int(kilobytes)
