"""Parameters of which each process has a part, stepped where they are.

Entry by entry the parts need nothing of one another. What a program takes over a whole parameter,
such as a norm, becomes a program of its own over the parts; the processes add up what comes of it,
for all parameters of a bucket at once, and what is left of the program reads the sums. Every
process comes to them, also for parameters of which it has nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from treadle.optim.engine.bucket import Bucket
from treadle.optim.engine.ops import REDUCTIONS
from treadle.optim.engine.program import Program
from treadle.optim.engine.tape import Code, G, Kind, Outs, P, Type, infer
from treadle.shards import alike, local
from treadle.sums import add_up, place, split_axes


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
        self.norms.zero_()  # no kernel comes to an empty part

    def _walk(self, table: int) -> None:
        """What C sees of a DTensor is not its memory."""

    def separate_grads(self) -> bool:
        n = len(self.params)
        found = [address for address in self.table[n : 2 * n] if address]
        return len(set(found)) == len(found)

    def with_totals(self, totals: Tensor) -> Spread:
        """This bucket with the rows of `totals` as stats of no dimensions, an entry a parameter."""
        extra = dict.fromkeys(map(_total, range(len(totals))), Type(torch.float64, False))
        stats = [
            {**mine, **{name: totals[row, i] for row, name in enumerate(extra)}}
            for i, mine in enumerate(self.stats)
        ]
        kind = replace(self.kind, stats={**self.kind.stats, **extra})
        common = self.chain, self._group, self.hypers, self.flags
        return Spread(*common, kind, self.params, stats, self.scale)


class _Join(NamedTuple):
    """How a reduction is taken over parts."""

    of_part: str  # the reduction that a part takes
    op: Literal["sum", "max"]
    of_nothing: float
    before: Callable[[Tensor], Any]  # what is done in place to the totals before they join
    after: Callable[[Tensor, Tensor], Any]  # and after it, given the numbers of entries


def _as_it_is(*_: Tensor) -> None: ...


_JOINS = {
    "sum": _Join("sum", "sum", 0.0, _as_it_is, _as_it_is),
    "mean": _Join("sum", "sum", 0.0, _as_it_is, Tensor.div_),
    "norm1": _Join("norm1", "sum", 0.0, _as_it_is, _as_it_is),
    "norm2": _Join("norm2", "sum", 0.0, Tensor.square_, lambda totals, _: totals.sqrt_()),
    "norminf": _Join("norminf", "max", 0.0, _as_it_is, _as_it_is),
    "amax": _Join("amax", "max", -math.inf, _as_it_is, _as_it_is),
    "amin": _Join("amin", "max", math.inf, Tensor.neg_, lambda totals, _: totals.neg_()),
}

Launcher = Callable[[Sequence[float]], None]


class Joined:
    """A program with reductions, over parameters of which each process has a part.

    `launch` makes what runs a program on a bucket.
    """

    def __init__(
        self,
        bucket: Spread,
        program: Program,
        make: Callable[[Code, Outs, int, Kind], Program],
        launch: Callable[[Bucket, Program], Launcher],
    ) -> None:
        stages = _stages(program.code)
        order = [at for stage in stages for at in stage]
        n, device = len(bucket.params), bucket.kind.device
        self._totals = torch.zeros(len(order), n, dtype=torch.float64, device=device)
        self._sizes = torch.tensor([p.numel() for p in bucket.params], device=device)
        self._bucket, self._with = bucket, bucket.with_totals(self._totals)
        kind = self._with.kind
        types = infer(program.code, program.kind)
        code, outs = list(program.code), program.outs
        self._stages: list[tuple[Launcher, list[tuple[Tensor, _Join]]]] = []
        for stage in stages:
            taken, becomes = [*code], {}
            for at in stage:
                name, operand = code[at]
                taken[at] = _JOINS[name].of_part, operand
                taken.append(("cast:torch.float64", at))
                becomes[_total(order.index(at))] = len(taken) - 1
            part = make(tuple(taken), _outs(becomes, kind), program.numbers, kind)
            rows = [(self._totals[order.index(at)], _JOINS[code[at][0]]) for at in stage]
            self._stages.append((launch(self._with, part), rows))
            for at in stage:
                code[at] = f"cast:{types[at].dtype}", _total(order.index(at))
        rest = make(tuple(code), _outs(outs, kind), program.numbers, kind)
        self._rest = launch(self._with, rest)

    def __call__(self, numbers: Sequence[float]) -> None:
        n = len(self._bucket.params)
        self._with.table[n : 2 * n] = self._bucket.table[n : 2 * n]  # where the gradients are now
        for launch, rows in self._stages:
            for totals, join in rows:
                totals.fill_(join.of_nothing)
            launch(numbers)
            for totals, join in rows:
                join.before(totals)
                add_up(totals, self._bucket.params[0], join.op)
                join.after(totals, self._sizes)
        self._rest(numbers)


def _total(row: int) -> str:
    return f"*total{row}"


def _outs(becomes: Any, kind: Kind) -> Outs:
    return tuple(becomes.get(stream, stream) for stream in (P, G, *kind.names))


def _stages(code: Code) -> list[list[int]]:
    """The places of the reductions: those first that need none of the others."""
    depth: list[int] = []
    found: dict[int, list[int]] = {}
    for at, (name, *operands) in enumerate(code):
        of = max((depth[x] for x in operands if isinstance(x, int) and x >= 0), default=0)
        if name in REDUCTIONS:
            of += 1
            found.setdefault(of, []).append(at)
        depth.append(of)
    return [found[stage] for stage in sorted(found)]
