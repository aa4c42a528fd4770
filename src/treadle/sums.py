"""Sums and norms over tensors of which each process has a part (`DTensor`), over all parts.

Plain tensors are taken as they are. Where there is a part, all processes must come here, in the
same order, those too whose part is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from treadle.shards import is_sharded, local


def split_axes(t: Any) -> tuple[int, ...]:
    """The axes of the device mesh along which processes have different parts of `t`."""
    if not is_sharded(t):
        return ()
    mesh, places = t.device_mesh, enumerate(t.placements)
    return tuple(i for i, place in places if not place.is_replicate() and mesh.size(i) > 1)


def place(t: Any) -> int:
    """Which of the parts of `t` this process has, from 0; alike where the part is the same."""
    number = 0
    for axis in split_axes(t):
        number = number * t.device_mesh.size(axis) + t.device_mesh.get_local_rank(axis)
    return number


def over_parts(
    values: Sequence[Tensor], of: Sequence[Any], op: Literal["sum", "max"] = "sum"
) -> list[Tensor]:
    """What was computed of the parts that are here, over all parts.

    Args:
        values: a number for each tensor in `of`, 0-d: a sum over the part that is here, or the
            greatest of something.
        of: the tensors; the value of a plain one stays as it is.

    One message in float64 serves all tensors that are spread alike; nothing waits for the device.
    """
    found: dict[Any, list[int]] = {}
    for i, t in enumerate(of):
        if axes := split_axes(t):
            found.setdefault((t.device_mesh, axes), []).append(i)
    results = list(values)
    for places in found.values():
        device = values[places[0]].device
        sent = torch.stack([values[i].to(device, torch.float64) for i in places])
        add_up(sent, of[places[0]], op)
        for i, value in zip(places, sent.unbind(), strict=True):
            results[i] = value.to(values[i])
    return results


def add_up(sent: Tensor, like: Any, op: Literal["sum", "max"] = "sum") -> None:
    """Add to each entry of `sent` those of the processes that have another part of `like`; or take
    the greatest of them."""
    by = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
    for axis in split_axes(like):
        dist.all_reduce(sent, by, group=like.device_mesh.get_group(axis))


def norms_over_parts(
    values: Sequence[Tensor], of: Sequence[Any], order: float = 2.0
) -> list[Tensor]:
    """As `over_parts`, where the values are norms of the parts that are here."""
    if order == math.inf:
        return over_parts(values, of, "max")
    split = [bool(split_axes(t)) for t in of]
    powers = [v.double() ** order if s else v for v, s in zip(values, split, strict=True)]
    totals = zip(over_parts(powers, of), values, split, strict=True)
    return [(total ** (1 / order)).to(v) if s else v for total, v, s in totals]


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> list[Tensor]:
    """The norm of each tensor, 0-d and plain.

    >>> norms([torch.tensor([3.0, 4.0])])
    [tensor(5.)]
    """
    if not any(map(is_sharded, tensors)):
        return list(torch._foreach_norm(list(tensors), order)) if tensors else []
    here = [
        torch.linalg.vector_norm(part, order) if part.numel() else part.new_zeros(())
        for part in map(local, tensors)
    ]
    return norms_over_parts(here, tensors, order)


def total_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of all tensors as one vector, 0-d and plain; of plain ones it is torch's."""
    if not any(map(is_sharded, tensors)):
        return torch.nn.utils.get_total_norm(tensors, order)
    each = norms(tensors, order)
    together = torch.stack([norm.to(each[0].device) for norm in each])
    total: Tensor = torch.linalg.vector_norm(together, order)
    return total
