"""All pictures on the device: a batch is one gather."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.cache.base import PixelCache, in_bytes
from treadle.errors import UsageError

__all__ = ["DeviceCache"]

_CHUNK = 1 << 26  # bytes that are copied to the device at once

Integers = Sequence[int] | NDArray[np.integer]


class DeviceCache:
    """The pictures of a complete cache in one flat uint8 tensor on `device`.

    `sizes` and `frames` are int64 arrays (n, 2) in the host's memory: (height, width) of each
    picture as it is kept, and of the full picture that it comes from. A picture that was left out
    has the size (0, 0). `cache` may be closed afterwards.

    Raises `UsageError` where pictures are missing, where some have colour and some are grey, and
    where the device has no room for them.

    >>> from treadle.data.cache import MemoryCache
    >>> cache = MemoryCache(1)
    >>> _ = cache.put(0, np.arange(12, dtype=np.uint8).reshape(3, 4), (3, 4))
    >>> DeviceCache(cache, "cpu").windows([0], [1], [2], 2, 2).tolist()
    [[[[6, 7], [10, 11]]]]
    """

    def __init__(self, cache: PixelCache, device: torch.device | str) -> None:
        self.n, self.device = cache.n, torch.device(device)
        self.sizes, self.frames = np.zeros((2, self.n, 2), np.int64)
        self.channels = _measure(cache, self.sizes, self.frames)
        if not cache.complete:  # asked last: the reading may have found it damaged
            raise UsageError(f"{cache!r} is not complete; fill it before it is moved to a device.")
        pixels = self.sizes.prod(1)
        self._starts = np.cumsum(pixels) - pixels
        self._pixels = self._moved(cache, int(pixels.sum()))

    @property
    def nbytes(self) -> int:
        """The bytes on the device."""
        return self._pixels.numel()

    def windows(
        self, indices: Integers, tops: Integers, lefts: Integers, height: int, width: int
    ) -> torch.Tensor:
        """The windows of `height` × `width` pixels with these upper left corners.

        `indices`, `tops` and `lefts` are B numbers each, in the host's memory. Returns a uint8
        tensor (B, C, height, width) on the device; nothing waits for it. Raises `UsageError` for a
        window that leaves its picture.
        """
        chosen, top, left = (np.asarray(values, np.int64) for values in (indices, tops, lefts))
        self._check(chosen, top, left, height, width)
        across = self.sizes[chosen, 1]
        first = self._starts[chosen] + top * across + left
        table = torch.from_numpy(np.stack([first, across]))
        if self.device.type == "cuda":
            table = table.pin_memory()
        start, stride = table.to(self.device, non_blocking=True)[:, :, None, None]
        down = torch.arange(height, device=self.device)[:, None]
        places = start + down * stride + torch.arange(width, device=self.device)
        return self._pixels[places].permute(0, 3, 1, 2).contiguous()

    def close(self) -> None:
        """Give the device's memory back."""
        self._pixels = self._pixels.new_empty(0, self.channels)

    def __repr__(self) -> str:
        return f"DeviceCache({self.n} pictures, {in_bytes(self.nbytes)} on {self.device})"

    def _moved(self, cache: PixelCache, total: int) -> torch.Tensor:
        needed = total * self.channels
        if self.device.type == "cuda" and needed > (
            free := torch.cuda.mem_get_info(self.device)[0]
        ):
            raise UsageError(
                f"cache='device' needs {in_bytes(needed)} on {self.device}, where {in_bytes(free)} "
                "are free. Give cache='auto', or resize to a smaller size."
            )
        moved = torch.empty(needed, dtype=torch.uint8, device=self.device)
        waiting: list[NDArray[np.uint8]] = []
        place = size = 0
        for index in range(self.n):
            if (found := cache.get(index)) is not None:
                waiting.append(found[0].reshape(-1))
                size += found[0].size
            if size and (size >= _CHUNK or index == self.n - 1):
                moved[place : place + size] = torch.from_numpy(np.concatenate(waiting))
                waiting, place, size = [], place + size, 0
        return moved.view(-1, self.channels)

    def _check(
        self,
        chosen: NDArray[np.int64],
        top: NDArray[np.int64],
        left: NDArray[np.int64],
        height: int,
        width: int,
    ) -> None:
        sizes = self.sizes[chosen]
        inside = (top >= 0) & (left >= 0) & (top + height <= sizes[:, 0])
        inside &= left + width <= sizes[:, 1]
        if not inside.all():
            at = int(np.argmin(inside))
            raise UsageError(
                f"A window of {height} × {width} pixels at row {top[at]}, column {left[at]} leaves "
                f"picture {chosen[at]}, which has {sizes[at][0]} × {sizes[at][1]}."
            )


def _measure(cache: PixelCache, sizes: NDArray[np.int64], frames: NDArray[np.int64]) -> int:
    """Write down sizes and frames; returns how many channels the pictures have."""
    channels = set()
    for index in range(cache.n):
        if (found := cache.get(index)) is not None:
            pixels, frames[index] = found
            sizes[index] = pixels.shape[:2]
            channels.add(1 if pixels.ndim == 2 else pixels.shape[2])
    if len(channels) > 1:
        raise UsageError("Some pictures have colour and some are grey; decode all in one mode.")
    return int(channels.pop()) if channels else 1
