"""A recording for a reader: what each stepper of a chain does, with the names of the numbers.

It runs the chain on the recorder's stand-ins alone, and touches no parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from treadle.optim.chain import Chain, read_stepper
from treadle.optim.engine.formula import Formulas, Held
from treadle.optim.engine.named import Book, Term, named, of_name
from treadle.optim.engine.program import Program
from treadle.optim.engine.proof import prove
from treadle.optim.engine.record import Recording, record
from treadle.optim.engine.tape import Entry, Kind, NotRecorded, OnMatrices
from treadle.optim.engine.value import Value


class Rehearsal(NamedTuple):
    """A program, and for each stepper of its chain what it does, an assignment a line."""

    program: Program
    lines: list[list[str]]


class _Marks:
    """A stepper to stand between the others and to note what it sees.

    Where `book` is there, what a stepper has returned goes by its own name from then on.
    """

    def __init__(self, book: Book | None = None) -> None:
        self.book = book
        self.seen: list[Held] = []
        self.code: list[Entry] = []

    def __call__(self, p: Any, **known: Any) -> Any:
        self.code = p._tape.code
        tensors = {"p": p._id, "g": p.grad._id}
        tensors |= {name: x._id for name, x in known.items() if type(x) is Value}
        numbers = {name: x for name, x in known.items() if not isinstance(x, Tensor | Value)}
        texts = {name: str(getattr(x, "term", x)) for name, x in numbers.items()}
        before = self.seen[-1].numbers if self.seen else texts
        self.seen.append(Held(tensors, texts))
        if self.book is None:
            return None
        changed = [name for name, text in texts.items() if text not in (name, before.get(name))]
        return {name: named(numbers[name], of_name(name), self.book) for name in changed}


def rehearse_program(
    chain: Chain, hypers: Mapping[str, Any], numbers: Mapping[str, Any], kind: Kind
) -> Rehearsal:
    """What the next step of parameters of this kind does; `numbers` are stats.

    Where there are no stats yet, it is the step after the first one that is shown: it has them all.
    Raises NotRecorded as `record` and `prove` do; OnMatrices then names the stepper, too.
    """
    marks = _Marks()
    try:
        recording = record(_marked(chain, marks), {**hypers, **numbers}, kind)
        if not kind.stats and not numbers:
            kind = replace(kind, stats=recording.new)
            numbers = recording.numbers
            recording = record(chain, {**hypers, **numbers}, kind)
    except OnMatrices as refusal:
        raise OnMatrices(f"{chain[len(marks.seen) - 1].name}: {refusal}") from None
    prove(chain, {**hypers, **numbers}, recording, kind)
    program = Program(
        recording.code,
        recording.outs,
        len(recording.scalars),
        replace(kind, stats={**kind.stats, **recording.new}),
    )
    return Rehearsal(program, _lines(chain, {**hypers, **numbers}, kind, recording))


def _marked(chain: Chain, marks: _Marks) -> Chain:
    mark = read_stepper(marks)
    return Chain((mark, *(x for stepper in chain for x in (stepper, mark))))


def _lines(chain: Chain, known: dict[str, Any], kind: Kind, plain: Recording) -> list[list[str]]:
    book: Book = {}
    marks = _Marks(book)
    try:
        names = {name: named(x, of_name(name), book) for name, x in known.items()}
        recording = record(_marked(chain, marks), names, kind)
        same = (recording.code, recording.outs) == (plain.code, plain.outs)
    except NotRecorded:
        same = False
    if not same:  # a stepper looks at the type of a number
        marks = _Marks()
        recording = record(_marked(chain, marks), known, kind)
    terms = [book.get(id(x), (x, Term(x, {})))[1] for x in recording.scalars]
    formulas = Formulas(marks.code, terms)
    return [
        formulas.lines(before, after) or ["nothing"]
        for before, after in zip(marks.seen, marks.seen[1:], strict=False)
    ]
