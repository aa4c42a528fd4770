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

from treadle.optim.chain import Chain, _undisturbed
from treadle.optim.engine.eager import run_eagerly
from treadle.optim.engine.program import Program
from treadle.optim.engine.record import Recording
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
    with _undisturbed(), torch.no_grad():
        p, g, stats = _drawn(kind, shape)
        q = nn.Parameter(p.clone())
        q.grad = g.clone()
        expected: dict[Tensor, dict[str, Any]] = {q: {k: t.clone() for k, t in stats.items()}}
        try:
            run_chain(chain, [q], known, expected, {})
        except Exception:
            return  # a small parameter is not what it is made for
        new = {k: _wide(t) if kind.dtype is torch.float32 else t for k, t in made.new.items()}
        stats |= {k: p.new_zeros(shape if t.full else (), dtype=t.dtype) for k, t in new.items()}
        program = Program(made.code, made.outs, len(made.scalars), _with(kind, new))
        streams = [p, g, *(stats[name] for name in program.kind.names), *map(_one, SHARED)]
        run_eagerly(program, [[t] for t in streams], made.scalars)
    same = _close(p, q.data) and _close(g, q.grad)
    for name, value in expected[q].items():
        ours = stats.get(name, made.numbers.get(name))
        same = same and (_close(ours, value) if isinstance(value, Tensor) else _equal(ours, value))
    if not same:
        raise NotRecorded(
            f"the chain {chain} cannot be fused: it does something else with a stand-in than with a"
            " tensor, as isinstance(t, torch.Tensor) or Python's random numbers would have it"
        )


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


def _with(kind: Kind, new: Mapping[str, Type]) -> Kind:
    return replace(kind, stats={**kind.stats, **new})


def _one(_: str) -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _close(a: Any, b: Any) -> bool:
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
    )


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))
