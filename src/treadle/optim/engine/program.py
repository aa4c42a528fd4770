"""A recorded chain with its types worked out, as code generators and the eager engine read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from treadle.optim.engine.ops import REDUCTIONS
from treadle.optim.engine.tape import (
    SHARED,
    Code,
    G,
    Kind,
    NotRecorded,
    Outs,
    P,
    Type,
    infer,
    promoted,
)

Id = int | str


@dataclass(frozen=True)
class Line:
    """One operation whose result is used."""

    id: int
    name: str  # without a trailing underscore or dtype
    operands: tuple[Id | str, ...]  # "$3" is number 3
    type: Type  # of the result
    computed: torch.dtype  # what the operands are brought to
    stage: int  # how many passes over the parameter must be over before


class Program:
    """The operations that a step needs, in order, and what becomes of the parameter and the stats.

    `streams` are the tensors of a parameter in the order of the pointer table: the parameter, its
    gradient, the stats by name, what a guard keeps. `stage` of an operation is the number of
    reductions that lie one after the other before it.
    """

    def __init__(self, code: Code, outs: Outs, numbers: int, kind: Kind) -> None:
        self.code, self.kind = code, kind
        self.numbers = numbers
        types = infer(code, kind)
        self.streams: tuple[Id, ...] = (P, G, *kind.names, *SHARED)
        self.types: dict[Id, Type] = {name: kind.type_of(name) for name in self.streams}
        self.types.update(enumerate(types))
        becomes = zip(self.streams, outs, strict=False)  # few write what a guard keeps
        self.outs = {name: out for name, out in becomes if name != out}
        for name, out in self.outs.items():
            was, becomes_ = self.types[name], self.types[out]
            if becomes_.dtype != was.dtype or (becomes_.full != was.full and not kind.single):
                raise NotRecorded(
                    f"the dtype or shape of {_spoken(name)} changes from step to step"
                )
        self.lines = self._lines(code)
        self.stages = 1 + max((line.stage for line in self.lines), default=0)
        self.reduces = any(line.name in REDUCTIONS for line in self.lines)

    def _lines(self, code: Code) -> list[Line]:
        lines: list[Line] = []
        stages: dict[Id, int] = dict.fromkeys(self.streams, 0)
        number = 0
        for id_, (name, *given) in enumerate(code):
            operands: list[Id] = []
            for x in given:
                operands.append(f"${number}" if x is None else x)
                number += x is None
            tensors = [x for x in given if x is not None]
            of = [self.types[x] for x in tensors]
            if name == "where":
                of = of[1:] or [self.types[id_]]
            base = name.partition(":")[0]
            stage = max((stages[x] for x in tensors), default=0)
            stages[id_] = stage + (base in REDUCTIONS)
            lines.append(
                Line(
                    id_,
                    base if base in ("to_",) else base.removesuffix("_"),
                    tuple(operands),
                    self.types[id_],
                    _computed(base, of, self.types[id_]),
                    stage,
                )
            )
        needed: set[Id] = set(self.outs.values())
        used = []
        for line in reversed(lines):
            if line.id in needed:
                needed.update(line.operands)
                used.append(line)
        self.read = [name for name in self.streams if name in needed]
        return used[::-1]


def _computed(name: str, of: list[Type], result: Type) -> torch.dtype:
    """What an operation on operands of the types `of` is computed in."""
    if name in ("zeros", "same", "to_", "cast", "stochastic") or all(
        x.dtype is torch.bool for x in of
    ):
        return result.dtype
    return promoted(name, of)


def _spoken(name: Any) -> str:
    return {P: "the parameter", G: "the gradient"}.get(name, f"the stat {name}")
