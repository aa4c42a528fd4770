"""Which samples of a batch are this process's."""

from __future__ import annotations

import os

import numpy as np

from treadle.data.permutation import Indices
from treadle.world import World

__all__ = ["has_part", "own_places", "processes_here"]


def has_part(n: int, world: World) -> bool:
    """Whether there is something for this process among `n` samples."""
    first, stop = _part(n, world)
    return first < stop


def own_places(n: int, world: World) -> Indices:
    """The places, in [0, `n`), of this process's part of a batch of `n` samples: contiguous, parts
    differ by at most one. Where there is nothing for it the first of all stands in, so that it can
    take part in what the processes do together.

    >>> [own_places(5, World(rank, 3)).tolist() for rank in range(3)]
    [[0], [1, 2], [3, 4]]
    >>> [own_places(1, World(rank, 2)).tolist() for rank in range(2)]
    [[0], [0]]
    """
    first, stop = _part(n, world)
    return np.arange(first, stop) if first < stop else np.zeros(1, np.int64)


def _part(n: int, world: World) -> tuple[int, int]:
    return n * world.rank // world.size, n * (world.rank + 1) // world.size


def processes_here() -> int:
    """How many processes of this run are on this machine, where torchrun says so: they share its
    CPUs and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
