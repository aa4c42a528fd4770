"""One writer a run folder: a lock of the operating system, and beside it who holds it.

The system drops the lock when its process ends, however it ends, so nobody has to guess whether it
is stale. Beside it lies a file that says who holds it, for the sentence that refuses a second one,
for `treadle runs`, and for file systems on which locks do not reach another machine.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from treadle.errors import DataError
from treadle.run.folder import HOLDER, LOCK, write_json

_PATIENCE = 0.3  # seconds, so that who has just locked has also said who it is


class BusyError(DataError):
    """Another process writes to the run folder."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a run folder, as it said when it began.

    Attributes:
        pid: its number on its machine.
        host: the machine's name.
        since: when it took the folder, UTC, ISO 8601.
        process: when the system started the process, to tell it from a later one of the same
            number; empty where the system does not say.
    """

    pid: int
    host: str
    since: str
    process: str

    def is_here(self) -> bool:
        """Whether it ran on this machine."""
        return self.host == platform.node()

    def is_alive(self) -> bool:
        """Whether it still runs, as far as this machine can tell."""
        return self.is_here() and process_start(self.pid) == self.process


def read_holder(folder: str | os.PathLike[str]) -> Holder | None:
    """Who holds the folder, or did when it was killed; None if nobody, or it cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        plain = json.loads((Path(folder) / HOLDER).read_text("utf-8"))
        texts = (str(plain[name]) for name in ("host", "since", "process"))
        return Holder(int(plain["pid"]), *texts)
    return None


def check_free(folder: str | os.PathLike[str]) -> None:
    """Raise BusyError if a living process of this machine holds the folder."""
    holder = read_holder(folder)
    if holder is not None and holder.is_alive():
        raise BusyError(_held(Path(folder), holder))


@contextmanager
def sole_writer(folder: str | os.PathLike[str]) -> Iterator[Holder | None]:
    """Hold the folder for the block, so that no other process writes to it. Gives who held it
    before and was killed, or None.

    Raises:
        BusyError: within a second, if another process holds it, or one of another machine may.
        DataError: if the folder cannot be locked.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise BusyError(_held(folder, read_holder(folder))) from None
    except (OSError, NotImplementedError) as error:
        raise DataError(
            f"{folder} cannot be locked ({getattr(error, 'strerror', None) or error}); choose a "
            "place that this user may write to."
        ) from error
    try:
        before = read_holder(folder)
        if before is not None:
            _check_gone(folder, before)
        mine = Holder(os.getpid(), platform.node(), _now(), process_start(os.getpid()) or "")
        write_json(folder / HOLDER, asdict(mine))
        try:
            yield before
        finally:
            with suppress(OSError):
                (folder / HOLDER).unlink()
    finally:
        lock.release()


def _check_gone(folder: Path, before: Holder) -> None:
    """Refuse where the lock came free but its holder may live: a disk that is shared between
    machines need not share their locks."""
    if not before.is_here():
        raise BusyError(
            f"{folder} was taken by process {before.pid} on {before.host} at {before.since}, and "
            f"whether that still runs cannot be seen from {platform.node()}. If it does not, "
            f"delete {folder / HOLDER} and try again."
        )
    if before.pid != os.getpid() and before.is_alive():
        raise BusyError(_held(folder, before))


def _held(folder: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{folder} is held by another process; wait for it, or choose another folder."
    end = f"end it with `kill {holder.pid}`" if holder.is_here() else "end it there"
    return (
        f"{folder} is held by process {holder.pid} on {holder.host} since {holder.since}; wait "
        f"for it, {end} (it then writes a checkpoint), or choose another folder."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_start(pid: int) -> str | None:
    """When a process of this machine was started, in the system's own terms; empty if it runs and
    the system does not say when, None if it does not run."""
    if Path("/proc/self/stat").is_file():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before may hold anything
        return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
    if os.name == "nt":
        return None  # os.kill would end it; the lock itself says enough
    try:
        os.kill(pid, 0)
    except PermissionError:
        return ""
    except OSError:
        return None
    return ""
