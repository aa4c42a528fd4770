"""The folder of all disk caches: which are in use, which are dead, how large they may become.

`cache/` in `data_home()` holds one folder for each cache, named by its key, and while one is being
filled a folder `.<key>.<random>` beside it. Each has a file `lock`: who fills the folder holds it
alone, who reads holds it with other readers. The system lets go of it when a process ends, however
it ends, so a folder that is not held is not in use, and one that was not finished is dead. Whatever
changes the list of folders is done under `.lock` of `cache/` itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treadle.data.home import data_home
from treadle.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LIMIT",
    "Hold",
    "below_limit",
    "cache_root",
    "is_folder",
    "limit",
    "lockable",
    "locked",
    "make_room",
    "remove",
    "size_of",
    "sweep",
    "sync",
    "unfinished_name",
]

LIMIT = "TREADLE_CACHE_LIMIT"
"""The environment variable that says how large all disk caches may be together: "80GB", "30%"."""

_DEFAULT_BYTES = 50_000_000_000
_DEFAULT_SHARE = 0.2
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_COMPLETE = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{32}")


class Hold:
    """The lock of a cache's folder, held until this object is gone.

    Raises `BlockingIOError` where another holds it in a way that excludes this one.
    """

    def __init__(self, folder: Path, alone: bool) -> None:
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._file)
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        fcntl.flock(self._file, how | fcntl.LOCK_NB)
        if not alone:
            with contextlib.suppress(PermissionError):  # another user's, to whom it is known
                os.utime(self._file)  # last used now

    def share(self) -> None:
        """Hold with others what was held alone. Under `locked`, or another may come between."""
        fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lockable() -> bool:
    """Whether this system has the locks that disk caches need; Windows has not."""
    return fcntl is not None


def cache_root() -> Path:
    """The folder of all disk caches; it need not exist yet."""
    return data_home() / "cache"


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Nobody else adds or removes a cache in this block. Keep it short: others wait."""
    root.mkdir(parents=True, exist_ok=True)
    file = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def sweep(root: Path) -> None:
    """Remove what killed processes left unfinished. Under `locked`."""
    for entry in _entries(root, _UNFINISHED):
        if _unused(entry):
            _erase(entry)


def make_room(root: Path, needed: int) -> int:
    """How many bytes may be written now, as the limit and the disk say. Under `locked`.

    Where `needed` is more, the caches that were not used for longest are removed, if that helps;
    never one that is in use.
    """
    room = min(below_limit(root), shutil.disk_usage(root).free)
    if room >= needed:
        return room
    unused = [entry for entry in _entries(root, _COMPLETE) if _unused(entry)]
    sizes = {entry: size_of(entry) for entry in sorted(unused, key=_last_used)}
    if room + sum(sizes.values()) < needed:
        return room
    for entry, size in sizes.items():
        remove(entry)
        room += size
        if room >= needed:
            break
    return room


def below_limit(root: Path) -> int:
    """The bytes that all caches together are below their limit; negative if they are above."""
    caches = [*_entries(root, _COMPLETE), *_entries(root, _UNFINISHED)]
    return limit(root) - sum(map(size_of, caches))


def size_of(folder: Path) -> int:
    """The bytes of the files in `folder`; 0 where it is none."""
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except OSError:
        return 0


def limit(root: Path) -> int:
    """The bytes that all disk caches may take together.

    As $TREADLE_CACHE_LIMIT says, a number of bytes ("80GB", "500 MB") or a share of the disk
    ("30%"); without it 20 % of the disk or 50 GB, whichever is less.
    """
    total = shutil.disk_usage(root).total
    asked = os.environ.get(LIMIT)
    if not asked:
        return min(int(_DEFAULT_SHARE * total), _DEFAULT_BYTES)
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?B|%)?", asked.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(
            f"{LIMIT}={asked!r} is no size; expected a number of bytes as '80GB', or a share of "
            "the disk as '30%'."
        )
    number, unit = float(found[1]), (found[2] or "").upper()
    return int(number / 100 * total if unit == "%" else number * _UNITS[unit])


def remove(path: Path) -> None:
    """Remove a cache, or a file or link that lies where one should. Under `locked`.

    It first takes the name of an unfinished one: a process that is killed while it removes leaves
    nothing that looks like a damaged cache.
    """
    _erase(path.rename(path.with_name(unfinished_name(path.name))))


def unfinished_name(key: str) -> str:
    """A new name for a folder that is not, or no longer, a whole cache."""
    return f".{key}.{uuid.uuid4().hex}"


def sync(folder: Path) -> None:
    """Have the names in `folder` written to the disk, where its file system knows how."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(file)
    finally:
        os.close(file)


def _entries(root: Path, names: re.Pattern[str]) -> list[Path]:
    return [path for path in root.iterdir() if names.fullmatch(path.name)]


def _erase(path: Path) -> None:
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)  # its own process may be at it as well
    else:
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself; what a link leads to is not ours."""
    return path.is_dir() and not path.is_symlink()


def _unused(folder: Path) -> bool:
    if not is_folder(folder):
        return True
    try:
        Hold(folder, alone=True)
    except OSError:
        return False
    return True


def _last_used(folder: Path) -> float:
    try:
        return (folder / "lock").stat().st_mtime
    except OSError:
        return 0.0
