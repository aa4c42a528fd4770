"""The processes of a run: which of them this one is, and what they tell one another.

They are PyTorch's: `torchrun` starts them, `torch.distributed` connects them. A process that
torchrun did not start, and that has no process group, is alone, and all of this is then free.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from treadle import errors
from treadle.errors import RankError, TreadleError, UsageError

T = TypeVar("T")

TIMEOUT = "TREADLE_TIMEOUT"
"""The environment variable that says for how many seconds processes wait for one another."""


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        local_rank: its number on its machine; that of its GPU.

    All of them must come to the same calls in the same order, as in `torch.distributed`. What goes
    over the wire is pickled by torch, between processes that trust one another.

    >>> World().rank, World().size, World().is_main
    (0, 1, True)
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: Any = None  # the group for what the processes tell one another without their GPUs

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def all(self, value: T) -> list[T]:
        """What each process gave, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def same(self, value: T, src: int = 0) -> T:
        """What the process `src` gave."""
        if self.size == 1:
            return value
        values: list[Any] = [value if self.rank == src else None]
        dist.broadcast_object_list(values, src, group=self.hosts, device=torch.device("cpu"))
        given: T = values[0]
        return given

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` in the main process alone; all wait, and get its result or its error.

        Raises:
            RankError: in the others, if what the main one raised is none of Treadle's errors.
        """
        if self.size == 1:
            return work()
        result, error, told = None, None, ("", "")
        if self.is_main:
            try:
                result = work()
            except Exception as raised:
                error, told = raised, (type(raised).__name__, str(raised))
        found, (kind, text) = self.same((result, told))
        if error is not None:
            raise error
        if kind:
            raise _as_raised(kind, text)
        return found  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier(group=self.hosts)


_world = World()
_joined: Any = None  # the process group that `_world` describes


def world() -> World:
    """The processes of this run. The first call in a process that torchrun started connects it to
    the others, and makes all draw the same random numbers as rank 0 from here on: what is split,
    shuffled or initialised without a seed must not differ between them.

    A process group that is there already is taken as it is.
    """
    global _world, _joined
    if not dist.is_available():
        return _world
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        _join()
    group = dist.group.WORLD if dist.is_initialized() else None
    if group is not _joined:
        _joined, _world = group, _seen() if group is not None else World()
        if _world.size > 1:
            _draw_alike(_world)
    return _world


def local_rank() -> int:
    """The number of this process on its machine; 0 where torchrun did not start it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def timeout() -> timedelta:
    """For how long processes wait for one another: what TREADLE_TIMEOUT says, else 10 minutes."""
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"{TIMEOUT}={text!r} cannot be meant; give a number of seconds above 0.")
    return timedelta(seconds=seconds)


@contextmanager
def drawing_apart() -> Iterator[None]:
    """With random numbers of torch's that are others in each process, as for dropout; from the end
    of the block on all go on with those of rank 0."""
    now, before = world(), torch.get_rng_state()
    seed = int(torch.randint(2**62, ()))  # the same in all
    if not now.is_main:
        torch.manual_seed(seed + now.rank)
    try:
        yield
    except BaseException:  # the others may be elsewhere
        torch.set_rng_state(before)
        raise
    _draw_alike(now)


def _join() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout())


def _seen() -> World:
    on_cpu = dist.get_backend() == "gloo"
    hosts = dist.group.WORLD if on_cpu else dist.new_group(backend="gloo", timeout=timeout())
    return World(dist.get_rank(), dist.get_world_size(), local_rank(), hosts)


def _draw_alike(world: World) -> None:
    seed, state = torch.initial_seed(), torch.get_rng_state()
    seed, state, others, numpy_state = world.same(
        (seed, state, random.getstate(), np.random.get_state())
    )
    if not world.is_main:
        torch.manual_seed(seed)
        torch.set_rng_state(state)
        random.setstate(others)
        np.random.set_state(numpy_state)


def _as_raised(kind: str, text: str) -> TreadleError:
    """What the main process raised: the same, if it is one of Treadle's."""
    cls = getattr(errors, kind, None)
    if isinstance(cls, type) and issubclass(cls, TreadleError):
        return cls(text)
    return RankError(f"rank 0 raised {kind}: {text}")
