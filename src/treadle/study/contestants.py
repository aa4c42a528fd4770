"""The rows of a comparison, as they are given: an optimizer, its rate, and how it is fitted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from treadle.errors import UsageError, nearest

Fit = str | Callable[..., object]
"""The name of a learner's method, or a function `fit(learn, epochs, lr)`."""

FITS = ("fit", "fit_flat_cos", "fit_one_cycle")


@dataclass(frozen=True)
class Contestant:
    """One row: what is set on a fresh learner, and the fit that is called.

    Attributes:
        name: the row's name.
        opt_func: makes the optimizer; None keeps the learner's own.
        lr: the rate; None keeps the learner's own.
        fit: see `Fit`.
        kwargs: further arguments of the fit.
    """

    name: str
    opt_func: Callable[..., Any] | None
    lr: float | None
    fit: Fit
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def dress(self, learn: Any) -> None:
        """Give a fresh learner the optimizer and the rate of this row; what was frozen stays so."""
        frozen = getattr(learn.opt, "frozen_idx", 0)
        if self.opt_func is not None:
            learn.opt_func = self.opt_func
        if self.lr is not None:
            learn.lr = self.lr
        learn.create_opt()
        if frozen:
            learn.freeze_to(frozen)

    def train(self, learn: Any, epochs: int, lr: float) -> None:
        """The fit itself."""
        if callable(self.fit):
            self.fit(learn, epochs, lr, **self.kwargs)
        else:
            getattr(learn, self.fit)(epochs, lr, **self.kwargs)

    def describe(self, learn: Any) -> str:
        """The optimizer of a learner that was dressed, and the fit, as text."""
        first = repr(learn.opt).splitlines()[0].removeprefix("Optimizer: ")
        chain = first.removeprefix("OptimWrapper of ").removesuffix(" (")
        hypers = learn.opt.hypers[-1]
        hypers = {k: v for k, v in hypers.items() if type(v) in (int, float)} | {"lr": learn.lr}
        said = [f"{name}={value:g}" for name, value in hypers.items()]
        fit = self.fit if isinstance(self.fit, str) else getattr(self.fit, "__name__", "a fit")
        given = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"{', '.join([chain, *said])}; {fit}" + (f"({given})" if given else "")


def read_rows(rows: Mapping[str, Any], lr: float | None, fit: Fit) -> list[Contestant]:
    """The contestants that `rows` of `compare` give; `lr` and `fit` are for those without their
    own.

    Raises UsageError for what cannot be meant.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise UsageError(
            f"compare got the rows {rows!r}; give a dict with an optimizer for each name, for "
            'example {"sgd": SGD, "adam": {"opt_func": Adam, "lr": 1e-3}}.'
        )
    return [_read_row(str(name), row, lr, fit) for name, row in rows.items()]


def _read_row(name: str, row: Any, lr: float | None, fit: Fit) -> Contestant:
    if callable(row):
        row = {"opt_func": row}
    if not isinstance(row, Mapping):
        raise UsageError(
            f"the row {name!r} is {row!r}; give what makes its optimizer (SGD, "
            "partial(Optimizer, cbs=[...], mom=0.9), a class of torch.optim), or a dict with "
            "opt_func, lr, fit and arguments of the fit."
        )
    rest = dict(row)
    opt_func = rest.pop("opt_func", None)
    if opt_func is not None and not callable(opt_func):
        raise UsageError(
            f"opt_func of the row {name!r} is {opt_func!r}; give a function, as SGD is."
        )
    fit = rest.pop("fit", fit)
    if not callable(fit) and fit not in FITS:
        raise UsageError(
            f"fit={fit!r} of the row {name!r} is no method that fits; {nearest(str(fit), FITS)} A "
            "function fit(learn, epochs, lr) will do as well."
        )
    return Contestant(name, opt_func, rest.pop("lr", lr), fit, rest)


def check_arguments(contestant: Contestant, learn: Any) -> None:
    """Raise UsageError if the fit of `contestant` does not take what its row gives."""
    fit = contestant.fit
    if callable(fit):
        return
    known = list(inspect.signature(getattr(learn, fit)).parameters)[2:]
    for name in contestant.kwargs:
        if name not in known:
            raise UsageError(
                f"the row {contestant.name!r} has {name!r}, which {fit} does not take; "
                f"{nearest(name, ['opt_func', 'lr', 'fit', *known])}"
            )
