"""What the processes of a run do at once, so that it is done in all or in none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch.distributed as dist

from treadle.errors import RankError, TreadleError
from treadle.world import World, timeout

T = TypeVar("T")

_beside: tuple[Any, World] = None, World()  # a group, and the same processes in another


def beside(among: World) -> World:
    """The same processes, for what a thread of each does while training goes on: in a group of
    their own, for in one group all must come to the same calls in the same order. It is made once,
    when all come here together.
    """
    global _beside
    if among.size == 1:
        return among
    if _beside[0] is not among.hosts:
        group = dist.new_group(backend="gloo", timeout=timeout())
        _beside = among.hosts, replace(among, hosts=group)
    return _beside[1]


def together(among: World, work: Callable[[], T]) -> T:
    """What `work` gives in this process, if it fails in none. All processes come here together.

    Raises, in all of them, the same error: that of the lowest rank that failed, if it is one of
    Treadle's, and RankError otherwise.
    """
    if among.size == 1:
        return work()
    error: Exception | None = None
    try:
        done = work()
    except Exception as raised:
        error = raised
    failed = first_error(among.all(error if error is None else sendable(error)))
    if failed is not None:
        raise failed from error
    return done


def sendable(error: BaseException) -> TreadleError:
    """An error as other processes can be told of it."""
    if isinstance(error, TreadleError):
        return error.with_traceback(None)
    return RankError(f"{type(error).__name__}: {error}")


def first_error(by_rank: Sequence[BaseException | None]) -> TreadleError | None:
    """The error of the lowest rank that has one, with that rank in its words."""
    for rank, error in enumerate(by_rank):
        if error is not None:
            told = sendable(error)
            return type(told)(f"{told} (in the process of rank {rank})")
    return None
