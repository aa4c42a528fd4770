"""Which cache: as it was asked for, or memory if it has room, else the disk, else none."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from treadle.data.cache.base import PixelCache, in_bytes
from treadle.data.cache.disk import DiskCache
from treadle.data.cache.folders import LIMIT, cache_root, locked, make_room
from treadle.data.cache.free import free_memory
from treadle.data.cache.memory import MemoryCache, still_to_fill
from treadle.data.sharing import processes_here
from treadle.errors import TreadleError, UsageError, nearest

__all__ = ["KEEP_FREE", "KINDS", "MEMORY_SHARE", "open_cache"]

KINDS = ("auto", "memory", "disk", "device")
"""What `cache=` takes, beside None."""

MEMORY_SHARE = 0.5
"""The share of the free memory that caches take when nothing else is asked for."""

KEEP_FREE = 2_000_000_000
"""The bytes of the disk that are left to others when nothing else is asked for."""

Files = Sequence[str | os.PathLike[str]]


def open_cache(
    kind: str | None, n: int, files: Files | None, recipe: str, expected_bytes: int
) -> PixelCache | None:
    """The cache for `n` pictures that take `expected_bytes` together, or None for no cache.

    - "memory" is taken as asked.
    - "disk" too; `files` and `recipe` name it (see `DiskCache`).
    - "auto" is memory if the pictures fit in `MEMORY_SHARE` of what is free now for this process
      (less what other memory caches of it have yet to fill), else the disk if they fit there and
      `KEEP_FREE` remains, else None, with a warning that says the numbers.
    - "device" is the place where the pictures wait until all are there to be moved to the device:
      as "auto".

    Raises `UsageError` for another kind, for "disk" without `files` (the items are not files) and
    where the pictures do not fit on the disk; `DataError` where the folder cannot be made.

    >>> open_cache("memory", 8, None, "", 0)
    MemoryCache(0 of 8 pictures, 0 B)
    """
    if kind is None:
        return None
    if kind == "memory":
        return MemoryCache(n, expected_bytes)
    if kind == "disk":
        return _on_disk(n, files, recipe, expected_bytes)
    if kind in KINDS:
        return _fitting(n, files, recipe, expected_bytes)
    raise UsageError(f"cache={kind!r} is no kind of cache; {nearest(str(kind), KINDS)}")


def _on_disk(
    n: int, files: Files | None, recipe: str, expected_bytes: int, keep_free: int = 0
) -> DiskCache:
    if files is None:
        raise UsageError(
            "A cache on the disk needs items that are files: their paths, sizes and times of "
            "change say whether what is kept still holds. Give cache='memory'."
        )
    cache = DiskCache(n, files, recipe, expected_bytes)
    if cache.complete:
        return cache
    root = cache_root()
    with locked(root):
        room = make_room(root, expected_bytes + keep_free) - keep_free
    if room < expected_bytes:
        cache.close()
        raise UsageError(
            f"A cache on the disk needs about {in_bytes(expected_bytes)} in {root}, where "
            f"{in_bytes(max(room, 0))} may be written. Free disk space, raise {LIMIT}, or set "
            "TREADLE_HOME to a folder on another disk."
        )
    return cache


def _fitting(n: int, files: Files | None, recipe: str, expected_bytes: int) -> PixelCache | None:
    free = max(free_memory() // processes_here() - still_to_fill(), 0)
    share = int(MEMORY_SHARE * free)
    if expected_bytes <= share:
        return MemoryCache(n, expected_bytes)
    try:
        return _on_disk(n, files, recipe, expected_bytes, KEEP_FREE)
    except TreadleError as error:
        warnings.warn(
            "The decoded pictures are not kept, and are decoded in every epoch: they take about "
            f"{in_bytes(expected_bytes)}, and of the {in_bytes(free)} of memory that are free a "
            f"cache takes at most {in_bytes(share)}. {error}",
            UserWarning,
            stacklevel=3,
        )
        return None
