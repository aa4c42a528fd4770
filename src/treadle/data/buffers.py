"""Memory for batches, used again when nobody has the batch any more.

A batch of images takes tens of megabytes. Fresh from the system these come page by page, each
zeroed first, which costs as much as a tenth of making the batch.
"""

from __future__ import annotations

import math
import sys
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Buffers"]

_UNUSED = 2
"""What `sys.getrefcount` counts of an array that only a list holds: the list and the question."""


class Buffers:
    """float32 tensors over arrays of which at most `most` are kept.

    A tensor's storage holds on to its array, and so does all that is made from it without a copy:
    an array that nothing but this list refers to is free.

    >>> buffers = Buffers(most=2)
    >>> first = buffers.take(2, 3)
    >>> place, view = first.data_ptr(), first[0]
    >>> del first
    >>> buffers.take(2, 3).data_ptr() == place  # the view is still there
    False
    >>> del view
    >>> buffers.take(2, 3).data_ptr() == place
    True
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._arrays: list[NDArray[np.float32]] = []
        self._lock = Lock()

    def take(self, *shape: int) -> torch.Tensor:
        """A tensor of `shape`, of any content, that shares its memory with no other."""
        count = math.prod(shape)
        with self._lock:
            for at in range(len(self._arrays)):
                if sys.getrefcount(self._arrays[at]) == _UNUSED and self._arrays[at].size == count:
                    return torch.from_numpy(self._arrays[at]).view(shape)
            array = np.empty(count, np.float32)
            self._arrays = [*self._arrays, array][-self.most :] if self.most else []
            return torch.from_numpy(array).view(shape)
