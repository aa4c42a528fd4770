"""Parameters of which each process has a part, stepped where they are.

Entry by entry the parts need nothing of one another. What a program takes over a whole parameter,
such as a norm, is taken over its parts: then torch runs it, one operation at a time, and the
processes add up what they have for all parameters of the bucket at once. Every process comes to the
same sums, also for parameters of which it has nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from treadle.optim.engine.bucket import Bucket
from treadle.shards import alike, local
from treadle.sums import over_parts, place, split_axes

# The total of a part, how totals join, and what comes of theirs with n entries in all.
_TOTALS: dict[str, tuple[Callable[[Any], Any], Literal["sum", "max"], Callable[[Any, int], Any]]]
_TOTALS = {
    "sum": (torch.sum, "sum", lambda total, n: total),
    "mean": (torch.sum, "sum", lambda total, n: total / n),
    "norm1": (lambda x: torch.linalg.vector_norm(x, 1), "sum", lambda total, n: total),
    "norm2": (
        lambda x: torch.linalg.vector_norm(x).double().square(),
        "sum",
        lambda total, n: total.sqrt(),
    ),
    "norminf": (lambda x: x.abs().amax(), "max", lambda total, n: total),
    "amax": (torch.amax, "max", lambda total, n: total),
    "amin": (lambda x: -torch.amin(x), "max", lambda total, n: -total),
}


def spread_as(p: Any) -> Any:
    """What the DTensors of a bucket must share."""
    return p.device_mesh, p.placements


def _grad(p: Tensor) -> Tensor:
    grad = p.grad
    if grad is None or not alike(grad, p):
        raise TypeError("there is no gradient that is spread as the parameter is")
    return local(grad)


def _address(t: Tensor) -> int:
    return local(t).data_ptr()


class Spread(Bucket):
    """A bucket of DTensors that lie alike in the processes. A part may be empty.

    Stats of the shape of their parameter are DTensors, too; those of no dimensions are plain.
    """

    _part, _grad, _address = staticmethod(local), staticmethod(_grad), staticmethod(_address)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.place = place(self.params[0])
        self.is_split = bool(split_axes(self.params[0]))
        self.sizes = [p.numel() for p in self.params]
        self.norms.zero_()  # no kernel comes to an empty part

    def _walk(self, table: int) -> None:
        """What C sees of a DTensor is not its memory."""

    def separate_grads(self) -> bool:
        n = len(self.params)
        found = [address for address in self.table[n : 2 * n] if address]
        return len(set(found)) == len(found)

    def reduce(self, name: str, parts: list[Tensor], first: int) -> list[Tensor]:
        """The reduction `name` over whole parameters, of which `parts` are here: so many from the
        one at the place `first`. Needs the other processes."""
        total, op, last = _TOTALS[name]
        none = 0.0 if op == "sum" or name == "norminf" else -math.inf
        totals = [total(x) if x.numel() else x.new_full((), none) for x in parts]
        totals = [t.double() for t in totals]
        ours = slice(first, first + len(parts))
        found = over_parts(totals, self.params[ours], op)
        rows = zip(found, self.sizes[ours], parts, strict=True)
        return [last(t, n).to(x.dtype) for t, n, x in rows]
