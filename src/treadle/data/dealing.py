"""Batches of others in several processes: dealt out, or each process's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from treadle.data.permutation import Indices
from treadle.data.sharing import has_part, own_places
from treadle.errors import DataError
from treadle.world import World

__all__ = ["Share", "dealt", "given", "part_of", "taken"]

Elements = tuple[Any, ...]

_LOOKED_AT = 64
"""So many numbers of a tensor tell it from others."""


class Share(NamedTuple):
    """A process's part of a batch: its elements, the places of its samples in the pass, how many
    samples all processes have, and whether this one has none and was lent one."""

    elements: Elements
    places: Indices
    total: int
    borrowed: bool


def dealt(batches: Iterator[Elements], world: World, known: bool, named: str) -> Iterator[Share]:
    """This process's part of each of `batches`, which all processes draw. Unless it is `known` how
    many there are, they ask one another before each whether there is one.

    Raises `DataError` in all where one is given other batches, as far as that is seen: at the first
    one, or unless their number is known at any.
    """
    start = 0
    for elements in chain(_drawn_alike(batches, world), [None]):
        if start == 0 or not known:
            _check_same(elements, world, named)
        if elements is None:
            return
        share = part_of(elements, world, named)
        yield share._replace(places=start + share.places)
        start += share.total


def part_of(elements: Elements, world: World, named: str) -> Share:
    """This process's part of a batch."""
    n = _rows(elements, named)
    places = own_places(n, world)
    part = tuple(taken(element, n, places) for element in elements)
    return Share(part, places, n, not has_part(n, world))


def given(batches: Iterator[Elements], world: World, even: bool, named: str) -> Iterator[Share]:
    """`batches` that each process has its own of; one that has no more is lent the first sample of
    its last, until none has. `even`: all have as many, and of one size, so that nobody asks.

    Raises `DataError` in all where one has no batch at all.
    """
    start, last = 0, None
    for elements in chain(batches, repeat(None)):
        n = 0 if elements is None else _rows(elements, named)
        counts = [n] * world.size if even else world.all(n)
        if not any(counts):
            return
        if not start and 0 in counts:
            raise DataError(
                f"{named} gives rank {counts.index(0)} no batch at all, and others some. Give each "
                "process one at least."
            )
        if elements is not None:
            last = tuple(taken(element, n, np.zeros(1, np.int64)) for element in elements)
        yield Share(elements or last or (), start + np.arange(n), sum(counts), n == 0)
        start += n


def _check_same(elements: Elements | None, world: World, named: str) -> None:
    told = world.all(None if elements is None else _digest(elements))
    for rank, other in enumerate(told):
        if other != told[0]:
            how = "ends elsewhere in" if None in (other, told[0]) else "gives other batches to"
            raise DataError(
                f"{named} {how} rank {rank} than in rank 0. Batches are dealt out, a part of each "
                "to every process, and so all must draw the same. If each is given its own, say "
                "adapt(source, sharded=True)."
            )


def _drawn_alike(batches: Iterator[Elements], world: World) -> Iterator[Elements]:
    """`batches`, drawn with the same random numbers in all processes, and with none of those that
    the model draws."""
    seed = world.same(int(torch.randint(2**32, ())))
    with _generators([]) as states:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
    while True:
        with _generators(states):
            elements = next(batches, None)
        if elements is None:
            return
        yield elements


@contextmanager
def _generators(states: list[Any]) -> Iterator[list[Any]]:
    """With the generators of Python, NumPy and torch in these `states`, which go on with them."""
    before = _states()
    if states:
        _set(states)
    try:
        yield states
    finally:
        states[:] = _states()
        _set(before)


def _states() -> list[Any]:
    return [random.getstate(), np.random.get_state(), torch.get_rng_state()]


def _set(states: list[Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _rows(elements: Elements, named: str) -> int:
    """How many samples a batch has: the first axis of its first tensor."""
    found = next((len(tensor) for tensor in _tensors(elements) if tensor.ndim), None)
    if found is None:
        raise DataError(
            f"{named} gave a batch without a tensor, of which no process can be given a part. Give "
            "tensors or arrays whose first axis is that of the samples."
        )
    return found


def taken(value: Any, n: int, places: Indices) -> Any:
    """The samples at `places` (one after the other) of a batch of `n`: of tensors with that many
    rows, and of lists of that many that hold no tensor. Everything else belongs to all samples.

    >>> taken([torch.arange(4), ["a", "b", "c", "d"], 0.5], 4, np.array([1, 2]))
    [tensor([1, 2]), ['b', 'c'], 0.5]
    """
    part = slice(int(places[0]), int(places[-1]) + 1)
    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim and len(value) == n else value
    if isinstance(value, Mapping):
        return {key: taken(one, n, places) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return value[part] if value.ndim and len(value) == n else value
    if isinstance(value, tuple | list):
        if len(value) == n and next(_tensors(value), None) is None:
            return value[part]
        made = [taken(one, n, places) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def _digest(value: Any) -> str:
    """What tells a batch from another: the shapes of its tensors, and some of their numbers."""
    found = blake2b(digest_size=8)
    for tensor in _tensors(value):
        some = tensor.detach().flatten()[:_LOOKED_AT].cpu()
        found.update(f"{tuple(tensor.shape)} {some.tolist()}".encode())
    return found.hexdigest()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)
