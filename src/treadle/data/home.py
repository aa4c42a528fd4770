"""Where downloaded data lives, and how a folder appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["data_home", "install", "scratch_folder"]


def data_home() -> Path:
    """The folder that holds `archive/` (downloads) and `data/` (unpacked folders).

    The environment variable TREADLE_HOME if it is set, else `treadle` in $XDG_CACHE_HOME, else
    `~/.cache/treadle`. The folder need not exist yet.
    """
    if home := os.environ.get("TREADLE_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "treadle"


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """An empty folder on the same file system as `beside`, removed at the end of the block.

    A folder that is filled here and then handed to `install` is seen by others only when it is
    complete. It is not `tempfile.mkdtemp`, whose folders are closed to the group for good.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    scratch = beside.parent / f".{beside.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def install(folder: Path, goal: Path, replace: bool = False) -> Path:
    """Rename `folder` to `goal` and return `goal`.

    Where another process installed `goal` first, its copy stands, unless `replace` is asked for.
    """
    if replace and goal.exists():
        with scratch_folder(goal) as bin_:
            goal.rename(bin_ / goal.name)
    try:
        folder.rename(goal)
    except OSError:
        if not goal.is_dir():
            raise
    return goal
