"""The processes of a run: which of them this one is, and what they tell one another.

They are PyTorch's: `torchrun` starts them, `torch.distributed` connects them. A process that
torchrun did not start, and that has no process group, is alone, and all of this is then free.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from treadle import errors
from treadle.errors import RankError, TreadleError, UsageError
from treadle.world.connections import break_all, is_broken
from treadle.world.joining import join
from treadle.world.processes import Process

T = TypeVar("T")

__all__ = [
    "Process",
    "World",
    "drawing_apart",
    "is_broken",
    "leave",
    "local_rank",
    "main_speaks",
    "timeout",
    "world",
]

TIMEOUT = "TREADLE_TIMEOUT"
"""The environment variable that says for how many seconds processes wait for one another."""

_JOINED = "TREADLE_JOINED"  # the run and the process that did, for those that it starts
_DYING_S = 2.0  # a process that is killed closes its connections first


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        local_rank: its number on its machine; that of its GPU.
        processes: by rank, where they run.

    All of them must come to the same calls in the same order, as in `torch.distributed`. What goes
    over the wire is pickled by torch, between processes that trust one another. The calls raise
    RankError if one of them is gone or does not come in time.

    >>> World().rank, World().size, World().is_main
    (0, 1, True)
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: Any = None  # the group for what the processes tell one another without their GPUs
    processes: tuple[Process, ...] = field(default=(), repr=False)
    store: Any = field(default=None, repr=False)  # for the thread that looks out for the others

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def all(self, value: T) -> list[T]:
        """What each process gave, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(values, value, group=self.hosts)
        return values

    def same(self, value: T, src: int = 0) -> T:
        """What the process `src` gave."""
        if self.size == 1:
            return value
        values: list[Any] = [value if self.rank == src else None]
        with self._together():
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
            with self._together():
                dist.barrier(group=self.hosts)

    @contextmanager
    def _together(self) -> Iterator[None]:
        if _left:
            raise RankError(_left)
        try:
            yield
        except RuntimeError as error:
            if is_broken(error):
                raise RankError(self._missed(error)) from error
            raise

    def _missed(self, error: RuntimeError) -> str:
        until = time.monotonic() + _DYING_S
        while time.monotonic() < until:
            for rank, process in enumerate(self.processes):
                if fate := process.fate():
                    return f"rank {rank} ({process}) {fate}; what it printed last may say why."
            time.sleep(0.02)
        return (
            "a process of the run left, or did not come to where the others were within "
            f"{timeout().total_seconds():g} s ({TIMEOUT}): {error}"
        )


_world = World()
_joined: Any = None  # the process group that `_world` describes
_left = ""  # why this process left the others, if it did


def world() -> World:
    """The processes of this run. The first call in a process that torchrun started connects it to
    the others, and makes all draw the same random numbers as rank 0 from here on: what is split,
    shuffled or initialised without a seed must not differ between them.

    A process group that is there already is taken as it is.
    """
    global _world, _joined, _left
    if not dist.is_available():
        return _world
    if not dist.is_initialized() and dist.is_torchelastic_launched() and not _is_helper():
        join(timeout())
        os.environ[_JOINED] = _this_run() + str(os.getpid())
    group = dist.group.WORLD if dist.is_initialized() else None
    if group is not _joined:
        _joined, _left = group, ""
        _world = _seen() if group is not None else World()
        if _world.size > 1:
            _draw_alike(_world)
    return _world


def leave(why: str) -> None:
    """Break this process's connections to the others, who learn of it at once. It does not meet
    them again: what it would tell them raises RankError with `why`."""
    global _left
    _left = _left or why
    break_all()


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


@contextmanager
def main_speaks() -> Iterator[None]:
    """What the main process prints is seen, what the others print is not: for a block, or as a
    decorator of a function that prints.

    >>> with main_speaks():
    ...     print("once")
    once
    """
    with ExitStack() as stack:
        if not world().is_main:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
        yield


def _is_helper() -> bool:
    """Whether this process was started by one of the run, whose variables it has."""
    joined = os.environ.get(_JOINED, "")
    return joined.startswith(_this_run()) and joined != _this_run() + str(os.getpid())


def _this_run() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "") + " "


def _seen() -> World:
    on_cpu = dist.get_backend() == "gloo"
    hosts = dist.group.WORLD if on_cpu else dist.new_group(backend="gloo", timeout=timeout())
    seen = World(dist.get_rank(), dist.get_world_size(), local_rank(), hosts)
    if seen.size == 1:
        return seen
    seen = replace(seen, processes=tuple(seen.all(Process.this())))
    with seen._together():
        return replace(seen, store=dist.distributed_c10d._get_default_store().clone())


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
