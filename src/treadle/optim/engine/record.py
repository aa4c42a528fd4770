"""Running a chain once, on stand-ins, for all parameters that have the same kind and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from treadle.optim.chain import Chain
from treadle.optim.engine.surface import Value
from treadle.optim.engine.tape import (
    CheckedCode,
    Code,
    G,
    Kind,
    NotRecorded,
    NotThisTime,
    OnMatrices,
    Outs,
    P,
    ShapeAsked,
    Tape,
    Type,
    infer,
)

Maker = tuple[tuple[str, ...], int, int]  # what a stepper returned; zeros made before and after it

# What may be shared by the parameters of a bucket: what nobody can change in place.
PLAIN = (int, float, bool, str, type(None), complex)


class Recording(NamedTuple):
    """What a chain asked for: operations on tensors, numbers for them, and new numbers to keep."""

    code: Code
    outs: Outs
    scalars: list[float]
    numbers: dict[str, Any]  # the stats that are no tensors, and that a stepper has returned
    new: dict[str, Type]  # the tensors that there were not; each is to start as zeros
    returned: list[str]  # all stats that steppers have returned, in their order


def record(chain: Chain, known: Mapping[str, Any], kind: Kind, checked: bool = False) -> Recording:
    """Run `chain` on stand-ins. `known` has the hyper-parameters, flags and stats that are numbers.

    With `checked`, the types of each operation are worked out at once, which takes longer but can
    say where in a stepper they go wrong.

    Raises NotRecorded, with a clause that names stepper, operation and line. What a stepper itself
    raises is reported so as well: on the reference engine it will show whether it was at fault.
    """
    tape = Tape(kind)
    if checked:
        tape.code = CheckedCode(tape)
    try:
        return _record(chain, known, tape)
    finally:
        # Values know their tape. Without this there would be a cycle to collect in every step.
        tape.inputs, tape.zeros = [], []


def _record(chain: Chain, known: Mapping[str, Any], tape: Tape) -> Recording:
    p, g = Value(tape, P), Value(tape, G)
    p.grad = g
    values = {name: Value(tape, name) for name in tape.kind.names}
    tape.inputs = [p, g, *values.values()]
    given = {**known, **values}
    kept: dict[str, Any] = {}
    makers: list[Maker] = []
    made = 0
    stepper = chain[0]
    try:
        for stepper in chain:
            out = stepper.fn(p, **given) if stepper.takes_all else stepper(p, given)  # type: ignore[arg-type]
            if isinstance(out, dict):
                given.update(out)
                kept.update(out)
                if len(tape.zeros) != made:
                    makers.append((tuple(out), made, len(tape.zeros)))
            made = len(tape.zeros)
    except Exception as error:
        raise _refusal(tape, stepper.name, error) from None
    if tape.failure is not None:
        raise _refusal(tape, stepper.name, tape.failure)
    numbers: dict[str, Any] = {}
    new: dict[str, Value] = {}
    for name, value in kept.items():
        if type(value) is not Value:
            if isinstance(value, torch.Tensor) and name not in values:
                raise NotThisTime(f"the stat {name} was made from no stand-in")
            if name in values or not isinstance(value, PLAIN):
                raise NotRecorded(f"the stat {name} has become a {type(value).__name__}")
            numbers[name] = value
        elif value is not values.get(name):
            _check_alone(tape, name, value, kept)
            (values if name in values else new)[name] = value
    if p.grad is not g:
        raise NotRecorded("a stepper assigns to p.grad; write into it, as p.grad.copy_(...) does")
    outs = (p._id, g._id, *[value._id for value in values.values()])
    if new:
        return _with_new(tape, outs, list(values), new, numbers, list(kept), makers)
    return Recording(tuple(tape.code), outs, tape.scalars, numbers, {}, list(kept))


def _refusal(tape: Tape, stepper: str, error: Exception) -> NotRecorded:
    cause = tape.failure or error
    if isinstance(cause, ShapeAsked | OnMatrices):
        return cause
    what = str(cause) if isinstance(cause, NotRecorded) else f"it raises {type(error).__name__}"
    return NotRecorded(f"stepper {stepper} cannot be fused: {what}")


def _check_alone(tape: Tape, name: str, value: Value, kept: Mapping[str, Any]) -> None:
    """Raise NotRecorded if the stat `name` is one tensor with something else."""
    others = [*tape.inputs, *(v for k, v in kept.items() if k != name)]
    if any(value is other for other in others) or value._tape is not tape:
        raise NotRecorded(f"the stat {name} is a tensor that is kept elsewhere, too")


def _with_new(
    tape: Tape,
    outs: Outs,
    old: Sequence[str],
    new: Mapping[str, Value],
    numbers: dict[str, Any],
    returned: list[str],
    makers: Sequence[Maker],
) -> Recording:
    """The recording of a chain that made the stats `new`, as if they had been there as zeros.

    So the first step needs no program of its own: where a stepper has made zeros for a stat, code
    reads that stat instead.
    """
    types = infer(tape.code, tape.kind)

    def type_of(id_: int | str) -> Type:
        return types[id_] if isinstance(id_, int) and id_ >= 0 else tape.kind.type_of(id_)

    found = {name: type_of(value._id) for name, value in new.items()}
    if tape.kind.single:
        found = {name: replace(type_, full=True) for name, type_ in found.items()}
    zeros = {
        place: name for place, name in _pairs(tape, new, makers) if types[place] == found[name]
    }

    def move(x: Any) -> Any:
        """What operand `x` is called without the zeros."""
        if not isinstance(x, int) or x < 0:
            return x
        return zeros.get(x, x - sum(place < x for place in zeros))

    code = tuple(
        (entry[0], *map(move, entry[1:])) for i, entry in enumerate(tape.code) if i not in zeros
    )
    becomes = dict(zip(old, outs[2:], strict=True)) | {name: v._id for name, v in new.items()}
    moved = [move(id_) for id_ in (*outs[:2], *(becomes[name] for name in sorted(becomes)))]
    return Recording(code, tuple(moved), tape.scalars, numbers, found, returned)


def _pairs(
    tape: Tape, new: Mapping[str, Value], makers: Sequence[Maker]
) -> Iterator[tuple[int, str]]:
    """The places where zeros were made, each with the stat that they were made for.

    That is the stat that they were returned as; or, as in `return {"m": m * mom + g}`, the only
    new one that the stepper returned if it made zeros once.
    """
    for names, before, after in makers:
        made = tape.zeros[before:after]
        mine = [name for name in names if name in new]
        same = [(place, n) for value, place in made for n in mine if new[n] is value]
        yield from same or [(place, mine[0]) for _, place in made if len(made) == len(mine) == 1]
