"""What a compiled program does in each pass over the parameters, and behind the last one.

A reduction needs all entries of its operand before anything can be computed with it, so a program
with reductions goes over the parameters several times. A pass computes anew what it needs of what
another one has computed: that is cheaper than to write it to memory and to read it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treadle.optim.engine.ops import REDUCTIONS
from treadle.optim.engine.program import Id, Line, Program


@dataclass(frozen=True)
class Pass:
    """What is read, computed and written for the entries of a parameter."""

    streams: list[Id]  # read or written
    read: list[Id]
    lines: list[Line]  # a reduction among them is of an earlier pass, and known
    goal: list[Line]  # the reductions that this pass takes
    outs: dict[Id, Id]  # stream and the value written to it


def passes(program: Program) -> list[Pass]:
    """The passes, in their order; the last one writes all streams of the parameters' shapes."""
    found = []
    for stage in range(program.stages):
        goal = [x for x in program.lines if x.name in REDUCTIONS and x.stage == stage]
        outs = _outs(program, full=True) if stage == program.stages - 1 else {}
        if goal or outs:
            found.append(_pass(program, goal, outs))
    return found


def finish(program: Program) -> Pass | None:
    """What is written to tensors of no dimensions: every pass may read them, so it comes last."""
    outs = _outs(program, full=False)
    return _pass(program, [], outs) if outs else None


def _outs(program: Program, full: bool) -> dict[Id, Id]:
    return {s: x for s, x in program.outs.items() if program.types[s].full == full}


def _pass(program: Program, goal: Sequence[Line], outs: dict[Id, Id]) -> Pass:
    wanted = {*outs.values(), *(line.operands[0] for line in goal)}
    lines: list[Line] = []
    needed = set(wanted)
    for line in reversed(program.lines):
        if line.id in needed:
            lines.insert(0, line)
            if line.name not in REDUCTIONS:
                needed.update(line.operands)
    read = [s for s in program.streams if s in needed]
    streams = [s for s in program.streams if s in needed or s in outs]
    return Pass(streams, read, lines, list(goal), outs)
