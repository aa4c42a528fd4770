"""Caches of decoded, presized pictures: each file is decoded once."""

from __future__ import annotations

from treadle.data.cache.base import Frame, PixelCache, Pixels
from treadle.data.cache.choose import open_cache
from treadle.data.cache.device import DeviceCache
from treadle.data.cache.disk import DiskCache
from treadle.data.cache.fill import fill
from treadle.data.cache.memory import MemoryCache

__all__ = [
    "DeviceCache",
    "DiskCache",
    "Frame",
    "MemoryCache",
    "PixelCache",
    "Pixels",
    "fill",
    "open_cache",
]
