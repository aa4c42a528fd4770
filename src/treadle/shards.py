"""Tensors of which each process has a part (`DTensor`): which part, and how to cut and join it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """Where a part lies in the whole tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    """That of the whole."""

    @property
    def is_whole(self) -> bool:
        """Whether the part is all of it."""
        return self.sizes == self.shape

    def of(self, whole: Tensor) -> Tensor:
        """The part, as a view of the whole."""
        return whole[tuple(slice(o, o + n) for o, n in zip(self.offsets, self.sizes, strict=True))]


def is_sharded(t: object) -> bool:
    """Whether a tensor is a DTensor, which torch spreads over processes.

    >>> is_sharded(torch.ones(3))
    False
    """
    loaded = sys.modules.get("torch.distributed.tensor")  # else there are none; it is slow to load
    return loaded is not None and isinstance(t, loaded.DTensor)


def local(t: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a plain one is all here."""
    # What to_local gives outside of autograd, which takes 4 us; a step asks for every tensor.
    part: Tensor = t._local_tensor if is_sharded(t) else t  # type: ignore[attr-defined]
    return part


def alike(t: Any, like: Any) -> bool:
    """Whether two DTensors of one shape have their parts in the same places."""
    return (
        is_sharded(t)
        and t.placements == like.placements
        and t.device_mesh == like.device_mesh
        and t.shape == like.shape
    )


def box_of(t: Any) -> Box:
    """Where this process's part of a tensor lies."""
    shape = tuple(t.shape)
    if not is_sharded(t):
        return Box((0,) * len(shape), shape, shape)
    (chunk,) = t.__create_chunk_list__()
    return Box(tuple(chunk.offsets), tuple(chunk.sizes), shape)


def joined(part: Tensor, like: Any) -> Tensor:
    """A DTensor that is spread as `like` is, given this process's part of it."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a plain tensor, as a DTensor where `like` is one of that shape."""
    if is_sharded(whole) or not is_sharded(like) or whole.shape != like.shape:
        return whole
    return joined(box_of(like).of(whole).clone(), like)  # else it would hold on to the whole


def whole(t: Tensor) -> Tensor:
    """All of a tensor, in every process. All processes that have a part must come here."""
    full: Tensor = t.detach().full_tensor() if is_sharded(t) else t  # type: ignore[attr-defined]
    return full


def fitted(value: Tensor, like: Tensor) -> Tensor:
    """A copy of `value` on the device of `like`; if it has the shape of `like`, spread as that is.

    So what one process has saved fits several, and what several have, one. All processes must come
    here where `value` is spread otherwise than `like`.
    """
    value = value.detach()
    if is_sharded(like) and alike(value, like):
        return value.clone()
    value = whole(value)
    if is_sharded(like) and value.shape == like.shape:
        return cut(value, like)
    return value.to(local(like).device, copy=True)


def put(into: Tensor, values: Tensor) -> None:
    """Copy a tensor, plain or sharded as `into` is, into another of its shape, in place."""
    with torch.no_grad():
        into.copy_(cut(values, into))


def owner_of(name: str, shape: Iterable[int], named: dict[str, Tensor]) -> Tensor | None:
    """Which of the tensors in `named` another one goes with: its shape is theirs, and their name is
    in its own, between dots, as `state.0.weight.grad_avg` goes with `0.weight`. The longest name
    counts.

    >>> weight = torch.ones(2, 3)
    >>> owner_of("state.0.weight.grad_avg", [2, 3], {"0.weight": weight}) is weight
    True
    """
    words = name.split(".")
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            t = named.get(".".join(words[start : start + length]))
            if t is not None and tuple(t.shape) == tuple(shape):
                return t
    return None


def sharded_alike(named: Iterable[tuple[str, Tensor]]) -> Callable[[str, Iterable[int]], Any]:
    """A function that says, given name and shape, which DTensor a tensor is to be cut like."""
    spread = {name: t for name, t in named if is_sharded(t)}
    return lambda name, shape: owner_of(name, shape, spread) if spread else None
