"""What one run of a chain on stand-ins has asked for, as code.

The code of a tape has one tuple an operation, `(name, operand, ...)`. An operand is

    -1, -2     the parameter, its gradient, as they were before the step
    a str      the stat of that name, as it was before the step
    an int     the result of the operation at that place of the code
    None       the next of the tape's `scalars`, the numbers that Python has computed

So no number that Python computed is part of the code, and neither a new learning rate nor the next
step changes it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from treadle.optim.engine.ops import ELEMENTWISE, LOGIC, REDUCTIONS

Entry = tuple[Any, ...]
Code = tuple[Entry, ...]
Outs = tuple[int | str, ...]  # what parameter, gradient and stats, by name, have become

P, G = -1, -2
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = {str(dtype): dtype for dtype in FLOATS}
_HERE = str(Path(__file__).parent)


class NotRecorded(Exception):
    """A stepper does what cannot be written down; the message is a clause that says what."""


class ShapeAsked(NotRecorded):
    """A stepper asks for the shape, and the parameters at hand do not have the same."""


class OnMatrices(NotRecorded):
    """A stepper multiplies matrices, or shapes a tensor for it.

    It runs on the reference engine, and there is nothing to mend: the products take the time.
    """


class NotThisTime(NotRecorded):
    """The reference engine takes this one step; the next may be recorded.

    So it is when a stepper has made a new stat by a function that takes no tensor, as `torch.full`
    does (in the next step the stat is there), or two parameters have one gradient.
    """


@dataclass(frozen=True)
class Type:
    """The type of a value: its dtype, and whether it has the parameter's shape (or is 0-d)."""

    dtype: torch.dtype
    full: bool


# What a guard keeps for the parameters of a bucket: see `guard`. No stat has such a name.
SCALE, NORM = "*scale", "*norm"
SHARED = {SCALE: Type(torch.float64, False), NORM: Type(torch.float64, False)}


@dataclass(frozen=True)
class Kind:
    """What the parameters of a bucket have in common, as far as steppers may ask for it."""

    dtype: torch.dtype
    device: torch.device
    shape: torch.Size | None  # None: their shapes differ
    stats: Mapping[str, Type]

    @functools.cached_property
    def names(self) -> list[str]:
        """The stats in the order in which engines hold them."""
        return sorted(self.stats)

    @property
    def single(self) -> bool:
        """Whether the parameters have no dimensions, so that all stats are of their shape."""
        return self.shape is not None and not self.shape

    def type_of(self, name: int | str) -> Type:
        """The type of an input: the parameter, its gradient, a stat, or what a guard keeps."""
        if isinstance(name, str):
            return self.stats[name] if name in self.stats else SHARED[name]
        return Type(self.dtype, True)


class Tape:
    """The code, the numbers, and why the recording failed if it did."""

    __slots__ = ("code", "failure", "inputs", "kind", "scalars", "zeros")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.code: list[Entry] = []
        self.scalars: list[float] = []
        self.zeros: list[tuple[Any, int]] = []  # what zeros_like gave, and its place
        self.inputs: list[Any] = []
        self.failure: NotRecorded | None = None

    def fail(self, what: str, kind: type[NotRecorded] = NotRecorded) -> NoReturn:
        """Give up. It is remembered, should the stepper catch the exception."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
        error = kind(f"{what} ({where})")
        self.failure = self.failure or error
        raise error

    def add(self, *entry: Any) -> int:
        """The place of a new operation."""
        self.code.append(entry)
        return len(self.code) - 1


class CheckedCode(list[Entry]):
    """The code of a tape that fails as soon as an operation's types do."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def append(self, entry: Entry) -> None:
        """Add an operation."""
        try:
            infer([*self, entry], self._tape.kind)
        except NotRecorded as error:
            self._tape.fail(str(error))
        super().append(entry)


def infer(code: Sequence[Entry], kind: Kind) -> list[Type]:
    """The type of each operation's result, by torch's rules of promotion.

    Raises NotRecorded for what torch would refuse or an engine does not compute.
    """
    types: list[Type] = []
    for name, *operands in code:
        given = [
            types[x] if isinstance(x, int) and x >= 0 else kind.type_of(x)
            for x in operands
            if x is not None
        ]
        types.append(_result(name, given))
    return types


def _result(name: str, given: list[Type]) -> Type:
    """The type of what `name` gives for operands of the types `given`."""
    name, _, dtype = name.partition(":")
    if dtype:  # "cast:torch.float32"
        return Type(_DTYPES[dtype], given[0].full)
    if name in REDUCTIONS:
        if not given[0].full or given[0].dtype is torch.bool:
            raise NotRecorded(f"it takes the {name} of what is no float tensor of p's shape")
        return Type(given[0].dtype, False)
    if name.endswith("_"):
        if any(x.full for x in given) and not given[0].full:
            raise NotRecorded("it writes a tensor of p's shape into one of no dimensions")
        promoted(name, given)
        return given[0]
    if name == "stochastic":
        return given[0]
    if name in ("zeros", "same"):
        if given[0] != given[-1]:
            raise NotRecorded("it assigns a tensor of another shape or dtype to .data")
        return given[0]
    full = any(x.full for x in given)
    if name == "where":
        if given[0].dtype is not torch.bool:
            raise NotRecorded("it calls where with a condition that is no truth value")
        if len(given) == 1:
            return Type(torch.float32, full)  # two Python floats
        return Type(promoted(name, given[1:]), full)
    if name in LOGIC:
        if any(x.dtype is not torch.bool for x in given):
            raise NotRecorded(f"it calls {name} on numbers")
        return Type(torch.bool, full)
    dtype_ = promoted(name, given)
    return Type(torch.bool if ELEMENTWISE[name].gives_bool else dtype_, full)


def promoted(name: str, given: Sequence[Type]) -> torch.dtype:
    """The dtype that an operation on tensors of these types is computed in.

    A tensor of no dimensions does not widen the others.
    """
    floats = [x for x in given if x.dtype is not torch.bool]
    if not floats:
        if name in ("where", "to_") and given:
            return torch.bool
        raise NotRecorded(f"it calls {name} on truth values")
    of_full = [x.dtype for x in floats if x.full] or [x.dtype for x in floats]
    return functools.reduce(torch.promote_types, of_full)
