"""How much memory this process may still take."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory"]


def free_memory(system: Path = Path("/")) -> int:
    """The bytes of memory that are free now for this process.

    On Linux the least of what the kernel counts as available (`MemAvailable`: free, and file pages
    that can be dropped) and what each control group that the process is in leaves below its limit
    (versions 1 and 2: the limit of a container). Elsewhere what `sysconf` says is free, or half of
    the machine where it says only that; 0 where nothing is known.

    Sources: proc_meminfo(5); https://docs.kernel.org/admin-guide/cgroup-v2.html, section Memory.
    `system` is the folder in which `proc` and `sys` are.
    """
    available = _number(system / "proc/meminfo", r"^MemAvailable:\s*(\d+) kB$")
    if available is None:
        return _by_sysconf()
    groups = [left for left in _left_in_groups(system) if left is not None]
    return max(min([available * 1024, *groups]), 0)


def _left_in_groups(system: Path) -> Iterator[int | None]:
    """What each group that this process is in leaves, from its own up to the uppermost."""
    mount = system / "sys/fs/cgroup"
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for base in (mount, mount / "unified"):
                for group in _upwards(base, path):
                    yield _left(group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            for group in _upwards(mount / "memory", path):
                yield _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _upwards(base: Path, path: str) -> list[Path]:
    """The group and those above it. In a container the path may be the host's: its own group is
    then the base."""
    group = base / path.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(base))]


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """Limit less use; pages of files are not counted as used, for they can be dropped."""
    most, now = _number(group / limit, r"^(\d+)$"), _number(group / used, r"^(\d+)$")
    if most is None or now is None:  # no such group, or "max": no limit
        return None
    kinds = (f"{prefix}inactive_file", f"{prefix}active_file")
    files = sum(_number(group / "memory.stat", rf"^{kind} (\d+)$") or 0 for kind in kinds)
    return most - now + min(files, now)


def _by_sysconf() -> int:
    for name, share in (("SC_AVPHYS_PAGES", 1.0), ("SC_PHYS_PAGES", 0.5)):
        if name in getattr(os, "sysconf_names", {}):
            return int(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") * share)
    return 0


def _number(path: Path, pattern: str) -> int | None:
    found = re.search(pattern, _read(path), re.MULTILINE)
    return int(found[1]) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
