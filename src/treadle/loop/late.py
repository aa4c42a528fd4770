"""Numbers of the device that are read when they have arrived, so that nobody waits for them."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class LateNumbers:
    """0-d tensors as numbers, as soon as they have reached the host. On a CPU that is at once.

    >>> numbers = LateNumbers()
    >>> numbers.send(torch.tensor(2.0))
    >>> numbers.arrived(), numbers.arrived()
    ([2.0], [])
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[Tensor, torch.Event | None]] = deque()

    def send(self, number: Tensor) -> None:
        """Send a number on its way."""
        number, event = number.detach(), None
        if number.device.type != "cpu":
            event = torch.Event(number.device)
            number = number.to("cpu", non_blocking=True)  # into pinned memory
            event.record()
        self._under_way.append((number, event))

    def arrived(self) -> list[float]:
        """Those that have arrived since this was last asked, as they were sent."""
        found = []
        while self._under_way and _is_there(self._under_way[0][1]):
            found.append(float(self._under_way.popleft()[0]))
        return found


def _is_there(event: torch.Event | None) -> bool:
    return event is None or event.query()
