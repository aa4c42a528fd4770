"""Numbers that remember by name what they were computed from, for programs shown as mathematics.

A chain is recorded with a `NamedFloat` for lr in place of 0.001: it computes as that number does,
and what Python makes of it on the way to an operation, `1 - lr*wd`, is known as a formula. What
knows only plain numbers, such as `math.sqrt`, gives a plain number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

Book = dict[int, tuple[float, "Term"]]  # by id: a float that was handed out, and its formula


class Sum(str):
    """A factor that needs brackets in a product."""

    __slots__ = ()


class Term(NamedTuple):
    """A coefficient times named factors, each with its power: 2·lr/(1 - mom)."""

    coefficient: float
    factors: dict[str, int]

    @property
    def alone(self) -> str | None:
        """The one factor that it is, if it is one."""
        one = self.coefficient == 1 and [*self.factors.values()] == [1]
        return next(iter(self.factors)) if one else None

    def __str__(self) -> str:
        if self.alone is not None:
            return str(self.alone)
        above = [_power(f, n) for f, n in self.factors.items() if n > 0]
        below = [_power(f, -n) for f, n in self.factors.items() if n < 0]
        size = abs(self.coefficient)
        if size != 1 or not above:
            above.insert(0, spelled(size))
        text = ("-" if self.coefficient < 0 else "") + "·".join(above)
        if below:
            text += f"/({'·'.join(below)})" if len(below) > 1 else f"/{below[0]}"
        return text


def of_name(name: str) -> Term:
    """The term that is a name."""
    return Term(1.0, {name: 1})


def spelled(x: float) -> str:
    """A number for a reader: four digits.

    >>> [spelled(x) for x in (0.1, 1e-05, 3, 1 - 0.9, float("inf"))]
    ['0.1', '1e-5', '3', '0.1', '∞']
    """
    text = f"{x:.4g}".replace("inf", "∞")
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def _power(factor: str, n: int) -> str:
    text = f"({factor})" if isinstance(factor, Sum) or ("^" in factor and n > 1) else factor
    return text + {1: "", 2: "²", 3: "³"}.get(n, f"^{n}")


def _product(a: Term, b: Term, sign: int = 1) -> Term:
    """a·b, or a/b if `sign` is -1."""
    factors = dict(a.factors)
    for factor, n in b.factors.items():
        factors[factor] = factors.get(factor, 0) + sign * n
    coefficient = a.coefficient * b.coefficient**sign
    return Term(coefficient, {f: n for f, n in factors.items() if n})


def _quotient(a: Term, b: Term) -> Term:
    return _product(a, b, -1)


def _sum(a: Term, b: Term) -> Term:
    if not a.factors and not b.factors:
        return Term(a.coefficient + b.coefficient, {})
    if b.coefficient < 0:
        return _difference(a, Term(-b.coefficient, b.factors))
    return of_name(Sum(f"{a} + {b}"))


def _difference(a: Term, b: Term) -> Term:
    if not a.factors and not b.factors:
        return Term(a.coefficient - b.coefficient, {})
    if b.coefficient < 0:
        return _sum(a, Term(-b.coefficient, b.factors))
    return of_name(Sum(f"{a} - {f'({b})' if isinstance(b.alone, Sum) else b}"))


def _raised(a: Term, b: Term) -> Term:
    n = b.coefficient
    if not b.factors and n == int(n) and a.coefficient:
        return Term(a.coefficient**n, {f: int(k * n) for f, k in a.factors.items()})
    return of_name(f"{_whole(a)}^{_whole(b)}")


def _whole(a: Term) -> str:
    """`a`, in brackets unless it is one name or number."""
    text = str(a)
    return text if text.replace("_", "").replace(".", "").isalnum() else f"({text})"


def _method(
    compute: Callable[[Any, Any], Any], write: Callable[[Term, Term], Term], swapped: bool = False
) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        return named(compute(_plain(a), _plain(b)), write(_term(a), _term(b)), self.book)

    return method


class _Named:
    """What `NamedFloat` and `NamedInt` have in common."""

    term: Term
    book: Book

    __add__ = _method(operator.add, _sum)
    __radd__ = _method(operator.add, _sum, swapped=True)
    __sub__ = _method(operator.sub, _difference)
    __rsub__ = _method(operator.sub, _difference, swapped=True)
    __mul__ = _method(operator.mul, _product)
    __rmul__ = _method(operator.mul, _product, swapped=True)
    __truediv__ = _method(operator.truediv, _quotient)
    __rtruediv__ = _method(operator.truediv, _quotient, swapped=True)
    __pow__ = _method(operator.pow, _raised)
    __rpow__ = _method(operator.pow, _raised, swapped=True)

    def __neg__(self) -> Any:
        return named(-_plain(self), _product(Term(-1.0, {}), self.term), self.book)

    def __float__(self) -> float:
        """A float of its own, so that the book can tell later where it comes from."""
        value = float(_plain(self))
        self.book[id(value)] = value, self.term
        return value


class NamedFloat(_Named, float):
    """A float with a formula."""


class NamedInt(_Named, int):
    """An int with a formula."""


def named(value: Any, term: Term, book: Book) -> Any:
    """`value` with its formula, if it is an int or a float."""
    value = _plain(value)
    kind: Any = {int: NamedInt, float: NamedFloat}.get(type(value))
    if kind is None:
        return value
    made = kind.__new__(kind, value)
    made.term, made.book = term, book
    return made


def _term(x: Any) -> Term:
    return x.term if isinstance(x, _Named) else Term(float(x), {})


def _plain(x: Any) -> Any:
    return +x if isinstance(x, _Named) else x  # type: ignore[operator]
