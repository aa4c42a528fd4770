"""A new program beside the definition, once, on a parameter of a few entries.

Steppers are free Python: one may ask `isinstance(t, torch.Tensor)` or draw Python's own random
numbers, and do something else with a stand-in than with a tensor. That must not pass in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from treadle.optim.chain import Chain, undisturbed
from treadle.optim.engine.eager import run_eagerly
from treadle.optim.engine.program import Program
from treadle.optim.engine.record import Recording, record
from treadle.optim.engine.reference import run_chain
from treadle.optim.engine.rounding import SMALL
from treadle.optim.engine.tape import SHARED, Kind, NotRecorded, Type

_SHAPE = torch.Size([2, 3])
_MOST = 1 << 12  # entries of a parameter whose shape a stepper asks for


def prove(chain: Chain, known: Mapping[str, Any], made: Recording, kind: Kind) -> None:
    """Raise NotRecorded if `made`, recorded on parameters of `kind`, is not what `chain` does.

    It is compared in float32 if the parameters have 16 bits, which round before they tell.
    """
    if kind.dtype in SMALL:
        if any(name.startswith("cast:") for name, *_ in made.code):
            return  # in float32 that would be another chain
        kind = replace(
            kind, dtype=torch.float32, stats={k: _wide(t) for k, t in kind.stats.items()}
        )
    shape = _SHAPE if kind.shape is None else kind.shape
    if shape.numel() > _MOST:
        return
    with undisturbed(), torch.no_grad():
        p, g, stats = _drawn(kind, shape)
        q = nn.Parameter(p.clone())
        expected: dict[Tensor, dict[str, Any]] = {q: {k: t.clone() for k, t in stats.items()}}
        known = dict(known)
        for second in (False, True):  # what steppers keep for themselves shows in a second step
            q.grad = g.clone()
            try:
                run_chain(chain, [q], known, expected, {})
                made = record(chain, known, kind) if second else made
            except Exception:
                return  # a small parameter is not what it is made for
            if kind.dtype is torch.float32:
                made = made._replace(new={name: _wide(t) for name, t in made.new.items()})
            ran = g.clone()
            kind = _run(made, kind, p, ran, stats)
            known |= made.numbers
            if (
                not _same(p, q.data)
                or not _same(ran, q.grad)
                or not _same({**known, **stats}, expected[q])
            ):
                raise NotRecorded(
                    f"the chain {chain} cannot be fused: it does something else with a stand-in"
                    " than with a tensor, as isinstance(t, torch.Tensor), Python's random numbers"
                    " or what it keeps for itself would have it"
                )


def _run(made: Recording, kind: Kind, p: Tensor, g: Tensor, stats: dict[str, Tensor]) -> Kind:
    """Run what was recorded on these tensors; the kind that they are of then."""
    kind = replace(kind, stats={**kind.stats, **made.new})
    for name, t in made.new.items():
        stats[name] = p.new_zeros(p.shape if t.full else (), dtype=t.dtype)
    program = Program(made.code, made.outs, len(made.scalars), kind)
    one = torch.ones((), dtype=torch.float64)
    streams = [p, g, *(stats[name] for name in program.kind.names), *[one] * len(SHARED)]
    run_eagerly(program, [[t] for t in streams], made.scalars)
    return kind


def _drawn(kind: Kind, shape: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A parameter, a gradient and stats, these above 0, for some are taken the root of."""
    draw = torch.Generator().manual_seed(0)

    def some(t: Type) -> Tensor:
        return torch.rand(tuple(shape) if t.full else (), generator=draw).to(t.dtype)

    whole = Type(kind.dtype, True)
    stats = {name: some(t) + 0.5 for name, t in kind.stats.items()}
    return some(whole) - 0.4, some(whole) - 0.6, stats


def _wide(t: Type) -> Type:
    return replace(t, dtype=torch.float32) if t.dtype in SMALL else t


def _same(ours: Any, theirs: Any) -> bool:
    """Whether what the reference engine has is there, up to rounding."""
    if isinstance(theirs, dict):
        return all(name in ours and _same(ours[name], value) for name, value in theirs.items())
    if isinstance(theirs, Tensor):
        return (
            isinstance(ours, Tensor)
            and ours.shape == theirs.shape
            and torch.allclose(ours.double(), theirs.double(), 1e-4, 1e-6, equal_nan=True)
        )
    return bool(ours == theirs or (ours != ours and theirs != theirs))
