"""A program run by torch itself, one operation at a time over lists of tensors.

For where there is no compiler for the device. The operations are those that the reference engine
would run, in the same order, so the results are the same; what is saved is Python's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from treadle.optim.engine.ops import ELEMENTWISE, LOGIC, REDUCTIONS
from treadle.optim.engine.program import Line, Program
from treadle.optim.engine.rounding import SMALL, stochastic

_AT_ONCE = 1 << 20  # entries: what an operation makes anew at once stays small beside the model


def run_eagerly(
    program: Program, streams: Sequence[Sequence[Tensor]], numbers: Sequence[float]
) -> None:
    """Run `program` on `streams`, one list of tensors for each of its streams."""
    for part in parts([p.numel() for p in streams[0]]):
        values: dict[Any, Any] = {f"${i}": number for i, number in enumerate(numbers)}
        mine = [list(stream[part]) for stream in streams]
        # As in compiled programs, 16 bits are what a tensor is kept in, not computed in.
        values.update(zip(program.streams, map(_held, mine), strict=True))
        for line in program.lines:
            values[line.id] = _result(line, values, part.start)
        # All is computed before the first is written: a result may be another's old value.
        results = {name: values[out] for name, out in program.outs.items()}
        for name, out in program.outs.items():
            if out in program.streams:
                results[name] = [t.clone() for t in results[name]]
        for name, result in results.items():
            torch._foreach_copy_(mine[program.streams.index(name)], result)


def parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of tensors that together have at most `_AT_ONCE` entries, or of one tensor."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > _AT_ONCE:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def _held(tensors: list[Tensor]) -> list[Tensor]:
    return [t.float() if t.dtype in SMALL else t for t in tensors]


def _result(line: Line, values: dict[Any, Any], first: int) -> list[Tensor]:
    """What `line` gives for tensors of which the first has the place `first` in the bucket."""
    operands = [values[x] for x in line.operands]
    name, kept = line.name, line.type.dtype
    dtype = torch.float32 if kept in SMALL else kept
    lists = [x for x in operands if isinstance(x, list)]
    if name == "zeros":
        return [torch.zeros_like(t, dtype=dtype) for t in lists[0]]
    if name in ("to_", "same"):
        if not isinstance(operands[1], list):
            return [torch.full_like(t, operands[1]) for t in lists[0]]
        return [_written(t, x, dtype) for t, x in zip(*operands, strict=True)]
    if name == "cast":
        return [t.to(kept).to(dtype) for t in lists[0]]
    if name == "stochastic":
        seed = int(operands[1])
        return [stochastic(t, kept, seed, first + i) for i, t in enumerate(lists[0])]
    if name in REDUCTIONS:
        return [_reduced(name, t) for t in lists[0]]
    op = ELEMENTWISE.get(name) or LOGIC.get(name)
    together = _foreach(op.foreach, operands) if op is not None and op.foreach else None
    if together is None:
        together = _one_by_one(torch.where if op is None else op.eager, operands)
    # An operation in place keeps the dtype of what it writes to.
    return [t if t.dtype is dtype else t.to(dtype) for t in together]


def _reduced(name: str, t: Tensor) -> Tensor:
    if t.numel() == 0:  # the part of a parameter that this process has
        return t.new_full((), {"amax": -math.inf, "amin": math.inf}.get(name, 0.0))
    reduced: Tensor = REDUCTIONS[name].eager(t)
    return reduced


def _written(like: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.shape == like.shape else value.to(dtype).expand_as(like)


def _foreach(name: str, operands: list[Any]) -> list[Tensor] | None:
    """`torch._foreach_<name>` of the operands; None where it would not do."""
    lists = [x for x in operands if isinstance(x, list)]
    if any(x[i].dtype != lists[0][i].dtype for x in lists[1:] for i in (0,)):
        return None
    if any(x[0].dim() != lists[0][0].dim() for x in lists[1:]):
        return None
    call: Callable[..., Any] = getattr(torch, f"_foreach_{name}")
    return list(call(*operands))


def _one_by_one(call: Callable[..., Tensor], operands: list[Any]) -> list[Tensor]:
    count = next(len(x) for x in operands if isinstance(x, list))
    rows = ([x[i] if isinstance(x, list) else x for x in operands] for i in range(count))
    return [call(*row) for row in rows]
