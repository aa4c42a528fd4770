"""Where downloaded data lives, and how a folder appears there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from treadle.errors import DataError

__all__ = [
    "FULL",
    "NoRoomError",
    "data_home",
    "ensure_room",
    "hidden",
    "install",
    "locked",
    "megabytes",
    "scratch_folder",
]

_RESERVE = 256 << 20  # bytes that a download or an unpacked archive leaves free on the disk
_PATIENCE = 1.0  # seconds to wait for another process before saying so

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The numbers of the errors of a disk that is full, or full for this user."""


class NoRoomError(DataError):
    """The disk is too small; nothing is wrong with the data."""


def data_home() -> Path:
    """The folder that holds `archive/` (downloads) and `data/` (unpacked folders).

    The environment variable TREADLE_HOME if it is set, else `treadle` in $XDG_CACHE_HOME, else
    `~/.cache/treadle`. The folder need not exist yet.
    """
    if home := os.environ.get("TREADLE_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "treadle"


def hidden(path: Path, suffix: str) -> Path:
    """The hidden companion of `path` in the same folder, on the same file system.

    >>> hidden(Path("data/toy"), "part").as_posix()
    'data/.toy.part'
    """
    return path.parent / f".{path.name}.{suffix}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` for the block; other processes and threads wait for it.

    The lock is one of the operating system's on the file `.NAME.lock` beside `path`: it is free
    again when its process ends, however it ends. Whoever waits for longer than a second is told.
    Raises `DataError` where the folder of `path` cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(hidden(path, "lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            print(f"Waiting for another process that is at work on {path}.", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise DataError(
            f"The folder {path.parent} cannot be written to ({error.strerror}); give another one, "
            "or set TREADLE_HOME to one that can."
        ) from error
    try:
        yield
    finally:
        # Removed while it is held: a process that waits on the removed file sees that it has no
        # name any more and starts anew. Windows does not remove open files: there it stays.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """An empty folder on the same file system as `beside`, removed at the end of the block.

    A folder that is filled here and then handed to `install` is seen by others only when it is
    complete. The lock of `beside` is held all the while, so what a killed process left here can
    be told from what a living one is about, and is removed first.
    """
    with locked(beside):
        scratch, old = hidden(beside, "part"), hidden(beside, "old")
        for left in (scratch, old):
            shutil.rmtree(left, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def install(folder: Path, goal: Path, replace: bool = False) -> Path:
    """Rename `folder` to `goal` and return `goal`.

    Where `goal` is there already it stands, unless `replace` is asked for.
    """
    old = hidden(goal, "old")
    if replace and goal.exists():
        goal.rename(old)
    try:
        folder.rename(goal)
    except OSError:
        if old.exists():
            old.rename(goal)
        if not goal.is_dir():
            raise
    shutil.rmtree(old, ignore_errors=True)
    return goal


def ensure_room(folder: Path, size: int, what: str) -> None:
    """Raise `NoRoomError` unless `size` more bytes fit on the disk of `folder`, and some over."""
    free = shutil.disk_usage(folder).free
    if size + _RESERVE > free:
        raise NoRoomError(
            f"{what} needs {megabytes(size)}, and the disk of {folder} has {megabytes(free)} free, "
            f"of which {megabytes(_RESERVE)} stay free. Make room, or give a folder elsewhere."
        )


def megabytes(size: float) -> str:
    """`size` bytes for people, in units of a thousand.

    >>> megabytes(99003388), megabytes(1_557_161_267), megabytes(801)
    ('99.0 MB', '1.56 GB', '0.0 MB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
