"""From C source to a function: the compiler, and the folder that keeps what it has made.

The folder is `kernels` in $TREADLE_HOME, or else in `treadle` in $XDG_CACHE_HOME or ~/.cache. What
lies there is loaded as code, so it must belong to the user and nobody else may write to it; where
that is not so, a temporary folder is taken. A file's name says what it was made from and what its
content hashes to: a damaged file is noticed and made again, and processes that build the same
kernel at once only replace one good file by another.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared", "-w"),
    # Rounding is part of the result: no contraction but the multiply-adds that are asked for.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


class NoCompiler(Exception):
    """There is no C compiler, or it does not take the source; the message is a clause."""


class Kernel:
    """A compiled `run`, to be called with the address of its work."""

    def __init__(self, path: Path) -> None:
        # Releasing the GIL pays for long work. In short work it would only be an invitation to
        # other threads to keep it for longer than the work takes.
        self.long = self._function(ctypes.CDLL(str(path)))
        self.with_gil = ctypes.PyDLL(str(path))
        self.short = self._function(self.with_gil)

    @staticmethod
    def _function(library: ctypes.CDLL) -> Callable[[int], None]:
        run = library.run
        run.argtypes, run.restype = [ctypes.c_void_p], None
        return run


def build(source: str, *flags: str) -> Kernel:
    """The kernel of this source, from the folder if it is there. Raises NoCompiler.

    `flags` are given to the compiler after `FLAGS`.
    """
    compiler, flags = _compiler(), (*FLAGS, *flags)
    identity = "\n".join([source, *flags, _version(compiler), _processor()])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = _folder()
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _digest(path) == path.stem.partition("-")[2]:
            with suppress(OSError):  # a library that it needs may have gone
                return Kernel(path)
        path.unlink(missing_ok=True)
    return _compile(compiler, source, flags, folder, key)


def _compile(compiler: str, source: str, flags: Sequence[str], folder: Path, key: str) -> Kernel:
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        text, made = Path(scratch, "kernel.c"), Path(scratch, "kernel.so")
        text.write_text(source, encoding="utf-8")
        output = ""
        for threads in (["-fopenmp"], ["-fopenmp-simd"], []):  # some compilers come without OpenMP
            command = [compiler, *flags, *threads, str(text), "-o", str(made), "-lm"]
            # In a session of its own, else Ctrl-C in a terminal would end the compiler as well, and
            # what it does not compile is not tried again.
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, check=False, start_new_session=True
            )
            output = done.stderr
            if done.returncode == 0:
                path = folder / f"{key}-{_digest(made)}.so"
                made.replace(path)
                try:
                    return Kernel(path)
                except OSError as error:  # OpenMP may be there for the compiler, but not to load
                    path.unlink(missing_ok=True)
                    output = str(error)
    raise NoCompiler(f"{compiler} makes no library that can be loaded: {output.strip()[:500]}")


@functools.cache
def _compiler() -> str:
    asked = os.environ.get("CC", "").split()
    for name in (*asked[:1], "cc", "gcc", "clang"):
        if path := shutil.which(name):
            return path
    raise NoCompiler("no C compiler (cc, gcc or clang) is on the PATH")


@functools.cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    return f"{compiler} {done.stdout}"


@functools.cache
def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _folder() -> Path:
    """Where kernels are kept; its making leaves it to this user alone."""
    home = os.environ.get("TREADLE_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (Path(home) if home else Path(cache, "treadle")).absolute() / "kernels"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return _temporary()
    mine = stat.S_ISDIR(found.st_mode) and (os.name == "nt" or found.st_uid == os.getuid())
    if mine and os.access(folder, os.W_OK) and not found.st_mode & 0o022:
        return folder
    return _temporary()


@functools.cache
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="treadle-kernels-"))
