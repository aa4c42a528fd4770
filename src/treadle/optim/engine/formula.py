"""The operations of a recorded chain as mathematics, an assignment a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from treadle.optim.engine.named import Sum, Term
from treadle.optim.engine.tape import Entry

Id = int | str


class Held(NamedTuple):
    """What a stepper finds or leaves, by name: the places of tensors in the code, and numbers."""

    tensors: Mapping[str, Id]
    numbers: Mapping[str, str]


class Text(NamedTuple):
    """A formula, and how strongly its outermost operation binds."""

    text: str
    binds: int

    def within(self, binds: int) -> str:
        """The formula as an operand of what binds so strongly, or as its left one."""
        return self.text if self.binds >= binds else f"({self.text})"

    @property
    def negative(self) -> bool:
        """Whether it is a product, or one name, with a minus."""
        return self.binds == PRODUCT and self.text.startswith("-")

    def turned(self) -> Text:
        """The formula with the other sign."""
        if self.negative:
            return Text(self.text[1:], PRODUCT)
        return Text(f"-{self.within(PRODUCT)}", PRODUCT)


TEST, SUM, PRODUCT, POWER, ATOM = range(5)

_SIGNS = {
    "gt": ">", "ge": "≥", "lt": "<", "le": "≤", "eq": "=", "ne": "≠",
    "logical_and": "and", "logical_or": "or", "logical_xor": "xor",
}  # fmt: skip
_AROUND = {
    "abs": ("|", "|"), "norm1": ("‖", "‖₁"), "norm2": ("‖", "‖"), "norminf": ("‖", "‖∞"),
}  # fmt: skip
_CALLED = {
    "clamp_min": "max", "clamp_max": "min", "maximum": "max", "minimum": "min",
    "amax": "max", "amin": "min", "logical_not": "not",
}  # fmt: skip
_LETTERS = "uvwabcdefhijklmnoqrstxyz"
_NUMBERS = "", *"₁₂₃₄₅₆₇₈₉"  # so that there are 240 letters
_NAME = re.compile(r"[^\W\d]\w*")
_SHORT = 8  # characters that are rather written twice than given a letter


class Formulas:
    """The formulas of `code`, whose numbers are `numbers` in their order."""

    def __init__(self, code: Sequence[Entry], numbers: Iterable[Term]) -> None:
        rest = iter(numbers)
        self._code: list[tuple[str, list[Any]]] = [
            (entry[0], [_number(next(rest)) if x is None else x for x in entry[1:]])
            for entry in code
        ]
        self._held: dict[Any, Text] = {}

    def lines(self, before: Held, after: Held) -> list[str]:
        """What a stepper does, in its order. What is needed twice gets a letter."""
        taken = {*after.tensors, *after.numbers}
        letters = (x for n in _NUMBERS for y in _LETTERS if (x := y + n) not in taken)
        lines = list(self._assignments(before.tensors, after.tensors, letters))
        lines += [
            f"{name} ← {text}"
            for name, text in after.numbers.items()
            if text not in (name, before.numbers.get(name))
        ]
        return _lettered(lines, before.numbers, letters)

    def _assignments(
        self, before: Mapping[str, Id], after: Mapping[str, Id], letters: Iterator[str]
    ) -> Iterator[str]:
        self._held = {}
        for name, id_ in before.items():
            self._held.setdefault(id_, Text(name, ATOM))
        becomes: dict[Id, list[str]] = {}
        for name, id_ in after.items():
            if before.get(name) != id_:
                becomes.setdefault(id_, []).append(name)
        wanted = sorted({*becomes, *self._needed_twice(becomes)}, key=_place)
        for i, id_ in enumerate(wanted):
            text = self._text(id_)
            if id_ not in becomes:
                if len(text.text) > _SHORT:
                    letter = next(letters)
                    yield f"{letter} = {text.text}"
                    self._held[id_] = Text(letter, ATOM)
                continue
            for name in becomes[id_]:
                old = before.get(name)
                if old in self._held and self._held[old].text == name:
                    del self._held[old]  # it is gone after this line
                    if old in self._leaves(wanted[i + 1 :], {id_}):
                        letter = next(letters)
                        yield f"{letter} = {name}"
                        self._held[old] = Text(letter, ATOM)
            for name in becomes[id_]:
                yield f"{name} ← {text.text}"
                text = Text(becomes[id_][0], ATOM)
            self._held[id_] = text

    # ---- what depends on what

    def _given(self, id_: Id) -> list[Id]:
        """The tensors that `id_` is computed from."""
        if id_ in self._held or not isinstance(id_, int) or id_ < 0:
            return []
        name, operands = self._code[id_]
        if name in ("to_", "same") or name.startswith("zeros"):
            operands = operands[1:]  # of the first, only shape and dtype matter
        return [x for x in operands if not isinstance(x, Text)]

    def _leaves(self, ids: Iterable[Id], known: Collection[Id]) -> set[Id]:
        """What `ids` are computed from in the end, where `known` need no computation."""
        found: set[Id] = set()
        todo = list(ids)
        while todo:
            id_ = todo.pop()
            if id_ not in known and id_ not in found:
                found.add(id_)
                todo += self._given(id_)
        return found

    def _needed_twice(self, ids: Iterable[Id]) -> list[Id]:
        """The temporaries that several operations take, on the way to `ids`."""
        takers: dict[Id, int] = {}
        for id_ in self._leaves(ids, ()):
            for x in set(self._given(id_)):
                takers[x] = takers.get(x, 0) + 1
        return [x for x, n in takers.items() if n > 1 and x not in self._held]

    # ---- one operation

    def _text(self, x: Any) -> Text:
        if isinstance(x, Text):
            return x
        if x in self._held:
            return self._held[x]
        name, operands = self._code[x]
        base, _, dtype = name.partition(":")
        if base == "zeros":
            return Text("0", ATOM)
        if base in ("to_", "same"):
            return self._text(operands[1])
        base = base.removesuffix("_")
        texts = [self._text(operand) for operand in operands]
        if base == "mul" and isinstance(operands[1], Text):
            texts.reverse()
        return _formula(dtype.removeprefix("torch.") or base, texts)


def _lettered(lines: list[str], numbers: Collection[str], letters: Iterator[str]) -> list[str]:
    """`lines` with letters for what stands several times in brackets and is made of numbers."""
    for inner in sorted({x for line in lines for x in _brackets(line)}, key=len, reverse=True):
        repeated = sum(line.count(f"({inner})") for line in lines) > 1
        if repeated and len(inner) > 2 * _SHORT and set(_NAME.findall(inner)) <= set(numbers):
            letter = next(letters)
            lines = [line.replace(f"({inner})", letter) for line in lines]
            return [f"{letter} = {inner}", *_lettered(lines, {*numbers, letter}, letters)]
    return lines


def _brackets(line: str) -> Iterator[str]:
    """All that stands in brackets."""
    opened: list[int] = []
    for i, sign in enumerate(line):
        if sign == "(":
            opened.append(i)
        elif sign == ")":
            yield line[opened.pop() + 1 : i]


def _place(id_: Id) -> int:
    return id_ if isinstance(id_, int) else -1


def _number(term: Term) -> Text:
    text = str(term)
    if isinstance(term.alone, Sum):
        return Text(text, SUM)
    if term.alone is not None:
        return Text(text, POWER if "^" in text else ATOM)
    return Text(text, PRODUCT if term.factors or term.coefficient < 0 else ATOM)


def _formula(name: str, x: list[Text]) -> Text:
    """The operation `name` on `x`."""
    if name in _WRITTEN:
        return _WRITTEN[name](*x)
    if name in _SIGNS:
        return Text(f"{x[0].within(SUM)} {_SIGNS[name]} {x[1].within(SUM)}", TEST)
    if name in _AROUND:
        left, right = _AROUND[name]
        return Text(f"{left}{x[0].text}{right}", ATOM)
    return Text(f"{_CALLED.get(name, name)}({', '.join(text for text, _ in x)})", ATOM)


def _plus(a: Text, b: Text) -> Text:
    if b.negative:
        return Text(f"{a.within(SUM)} - {b.text[1:]}", SUM)
    return Text(f"{a.within(SUM)} + {b.within(SUM)}", SUM)


def _minus(a: Text, b: Text) -> Text:
    if b.negative:
        return _plus(a, b.turned())
    return Text(f"{a.within(SUM)} - {b.within(PRODUCT)}", SUM)


def _times(a: Text, b: Text) -> Text:
    if a.negative:
        return _times(a.turned(), b).turned()
    if b.negative:
        return _times(a, b.turned()).turned()
    if a.text == "1":
        return b
    if b.binds == PRODUCT and b.text.startswith("1/"):
        return Text(a.within(PRODUCT) + b.text[1:], PRODUCT)
    if a == b:
        return _power(a, "²")
    return Text(f"{a.within(PRODUCT)}·{b.within(PRODUCT)}", PRODUCT)


def _over(a: Text, b: Text) -> Text:
    if a.negative:
        return _over(a.turned(), b).turned()
    return Text(f"{a.within(PRODUCT)}/{b.within(POWER)}", PRODUCT)


def _power(a: Text, sign: str) -> Text:
    return Text(f"{a.within(ATOM)}{sign}", POWER)


def _root(a: Text) -> Text:
    return Text(f"√{a.within(ATOM)}", POWER)


_ONE = Text("1", ATOM)
_WRITTEN: dict[str, Callable[..., Text]] = {
    "add": _plus,
    "axpy": lambda a, b, n: _plus(a, _times(n, b)),
    "sub": _minus,
    "rsub": lambda a, b: _minus(b, a),
    "mul": _times,
    "div": _over,
    "addcmul": lambda a, b, c, n: _plus(a, _times(n, _times(b, c))),
    "addcdiv": lambda a, b, c, n: _plus(a, _over(_times(n, b), c)),
    "lerp": lambda a, b, w: _plus(a, _times(w, _minus(b, a))),
    "pow": lambda a, n: _power(a, f"^{n.within(ATOM)}"),
    "rpow": lambda a, b: _power(b, f"^{a.within(ATOM)}"),
    "square": lambda a: _power(a, "²"),
    "cube": lambda a: _power(a, "³"),
    "inverse_square": lambda a: _over(_ONE, _power(a, "²")),
    "sqrt": _root,
    "rsqrt": lambda a: _over(_ONE, _root(a)),
    "reciprocal": lambda a: _over(_ONE, a),
    "neg": lambda a: a.turned(),
    "softplus": lambda a, beta, _: Text(f"softplus({a.text}, {beta.text})", ATOM),
}
