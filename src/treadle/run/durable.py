"""Files that outlast a crash: a folder is filled under a hidden name, flushed to the disk, and only
then gets its own name.

A folder under a hidden name is held with a lock by the process that fills it. The system drops the
lock when that process ends, however it ends, so what nobody holds is a leftover and is swept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from treadle.errors import DataError

try:
    import fcntl
except ImportError:  # a system without such locks: leftovers are then not swept
    fcntl = None  # type: ignore[assignment]

_HAS_LOCKS = fcntl is not None
_HIDDEN = ".part"
_NO_LOCKS = -1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(DataError):
    """A disk, quota or file-size limit that has no room; names path, needed and free bytes."""


@dataclass(frozen=True)
class Stored:
    """A file as it was written: its size in bytes and the SHA-256 of them, in hexadecimal."""

    size: int
    sha256: str


def failpoint(name: str) -> None:
    """A named moment at which a test can end the process; in use it does nothing."""


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Stored:
    """Writes a new file, flushes it to the disk and says what it holds. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        failpoint(f"save: {path.name} opened")
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            failpoint(f"save: {path.name} begun")
        file.flush()
        failpoint(f"save: {path.name} written")
        os.fsync(file.fileno())
    failpoint(f"save: {path.name} on the disk")
    return Stored(size, digest.hexdigest())


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a file, read once, so that what is checked is what is used.

    Raises DataError if it is missing, a link, not a plain file or longer than `most` bytes.
    """
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        if size > most:
            raise DataError(f"{path} has {size:,} bytes, more than the {most:,} that it may have.")
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(size + 1)


def measure_file(path: Path, size: int) -> Stored:
    """What a file holds. Past `size` bytes it is not read. Raises DataError as `read_file`."""
    with _opened(path) as fd:
        found = os.fstat(fd).st_size
        if found != size:
            return Stored(found, "")
        with os.fdopen(os.dup(fd), "rb") as file:
            return Stored(found, hashlib.file_digest(file, "sha256").hexdigest())


def stored(data: bytes) -> Stored:
    """Size and SHA-256 of bytes in memory."""
    return Stored(len(data), hashlib.sha256(data).hexdigest())


def flush_folder(folder: Path) -> None:
    """Brings to the disk which names a folder holds. Raises OSError."""
    if os.name == "nt":
        return  # it opens no folders
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def hidden_folder(folder: Path, stem: str) -> Iterator[Path]:
    """A new folder in `folder` that no listing shows, held until the block ends and then removed,
    if the block has not renamed it. Raises OSError.
    """
    fd = None
    while fd is None:  # again if a sweeper came between the two calls
        hidden = folder / f".{stem}.{secrets.token_hex(4)}{_HIDDEN}"
        hidden.mkdir()
        failpoint("save: folder made")
        fd = _hold(hidden)
    try:
        failpoint("save: folder held")
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        _release(fd)


def discard(path: Path) -> None:
    """Removes a folder so that it is there whole or not at all. Raises OSError."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_HIDDEN}")
    path.rename(hidden)
    failpoint("rotate: hidden")
    for entry in sorted(hidden.iterdir()):
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink()
            failpoint("rotate: one file gone")
    shutil.rmtree(hidden)
    failpoint("rotate: folder gone")


def sweep(folder: Path) -> None:
    """Removes the hidden folders that no living process holds. What cannot be removed stays."""
    for hidden in folder.glob(f".*{_HIDDEN}"):
        if hidden.is_symlink() or not hidden.is_dir():
            continue
        fd = _hold(hidden)
        if fd is not None and fd != _NO_LOCKS:
            try:
                failpoint("sweep: leftover held")
                shutil.rmtree(hidden, ignore_errors=True)
                failpoint("sweep: leftover gone")
            finally:
                _release(fd)


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Refuses at once what cannot fit, and turns what the system refuses into a sentence.

    Raises DiskFullError where there is no room, DataError for anything else of the system's.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno not in _FULL:
            raise DataError(
                f"Cannot write {path}: {why}; choose a folder that this user may write to."
            ) from error
        free = shutil.disk_usage(path.parent).free
        raise DiskFullError(
            f"There is no room for {path}: it needs {needed:,} bytes, {free:,} are free "
            f"({why}); make room or choose another place. What was there before is unharmed."
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A plain file, never through a link and never waiting for the other end of a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise DataError(f"{path} cannot be read: {why}.") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DataError(f"{path} is not a plain file.")
        yield fd
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    finally:
        os.close(fd)


def _hold(hidden: Path) -> int | None:
    """A locked descriptor of the folder, _NO_LOCKS where the system or the disk has none, or None
    if another holds the folder or it is gone.
    """
    if not _HAS_LOCKS:
        return _NO_LOCKS
    try:
        fd = os.open(hidden, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if hidden.stat().st_ino == os.fstat(fd).st_ino:
            return fd
        held = None
    except (BlockingIOError, FileNotFoundError):
        held = None
    except OSError:
        held = _NO_LOCKS
    os.close(fd)
    return held


def _release(fd: int) -> None:
    if fd != _NO_LOCKS:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child has the descriptor too
        os.close(fd)
