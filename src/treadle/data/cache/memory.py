"""Decoded pictures in this process's memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from treadle.data.cache.base import Frame, PixelCache, Pixels, checked

__all__ = ["MemoryCache", "still_to_fill"]

_living: weakref.WeakSet[MemoryCache] = weakref.WeakSet()


class MemoryCache(PixelCache):
    """`n` pictures as arrays in memory; `get` is a look into a list.

    An array that owns its data is kept as it is and closed to writing, any other is copied.
    `expected_bytes` is what the pictures will take together, so that the choice of the next cache
    can leave room for this one.

    >>> import numpy as np
    >>> cache = MemoryCache(2)
    >>> pixels = cache.put(0, np.zeros((4, 6, 3), np.uint8), (400, 600))
    >>> pixels, frame = cache.get(0)
    >>> pixels.shape, frame, cache.get(1), cache
    ((4, 6, 3), (400, 600), None, MemoryCache(1 of 2 pictures, 72 B))
    """

    def __init__(self, n: int, expected_bytes: int = 0) -> None:
        super().__init__(n)
        self.expected_bytes = expected_bytes
        self._pictures: list[tuple[Pixels, Frame] | None] = [None] * n
        self._left_out: set[int] = set()
        self._kept = self._nbytes = 0
        self._closed = False
        self._lock = threading.Lock()
        _living.add(self)

    def get(self, index: int) -> tuple[Pixels, Frame] | None:
        return self._pictures[index]

    def many(self, indices: Sequence[int]) -> Sequence[tuple[Pixels, Frame] | None]:
        return [*map(self._pictures.__getitem__, indices)]  # a batch's, for the cost of one

    def put(self, index: int, pixels: Pixels, frame: Frame) -> Pixels:
        pixels = checked(pixels)
        if pixels.base is not None or not pixels.flags.owndata:
            pixels = pixels.copy()
        with self._lock:
            if (there := self._pictures[index]) is not None:
                return there[0]
            if not self._closed:
                pixels.flags.writeable = False
                self._pictures[index] = pixels, frame
                self._left_out.discard(index)
                self._kept += 1
                self._nbytes += pixels.nbytes
        return pixels

    def leave_out(self, index: int) -> None:
        with self._lock:
            if not self._closed and self._pictures[index] is None:
                self._left_out.add(index)

    @property
    def filled(self) -> int:
        return self._kept + len(self._left_out)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._pictures = [None] * self.n
            self._left_out.clear()
            self._kept = self._nbytes = self.expected_bytes = 0


def still_to_fill() -> int:
    """The bytes that the living memory caches of this process expect and do not hold yet."""
    caches = [cache for cache in _living if not cache.complete]
    return sum(max(cache.expected_bytes - cache.nbytes, 0) for cache in caches)
