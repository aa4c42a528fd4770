"""The learning-rate finder (arXiv 1506.01186, section 3.3): raise the rate exponentially over a few
batches, watch the loss, and put everything back."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch

from treadle.errors import UsageError
from treadle.loop.events import Callback, CancelFitException, CancelValidException
from treadle.loop.state import preserved
from treadle.schedule import SchedExp
from treadle.study.suggest import valley

SuggestFunc = Callable[[Sequence[float], Sequence[float]], float]


class LRFinder(Callback):
    """One sweep: sets the rate before each batch, keeps rates and smoothed losses, and ends the fit
    after `num_it` batches or when the smoothed loss is four times its best."""

    order = 70  # after any schedule: this rate holds
    run_valid = False
    beta = 0.98

    def __init__(
        self, start_lr: float = 1e-7, end_lr: float = 10, num_it: int = 100, stop_div: bool = True
    ) -> None:
        self.sched = SchedExp(start_lr, end_lr)
        self.num_it, self.stop_div = num_it, stop_div

    def before_fit(self) -> None:
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.average, self.best, self.cancelled = 0.0, math.inf, False

    def before_batch(self) -> None:
        self.cancelled = False
        self.lr = self.sched(len(self.lrs) / max(self.num_it - 1, 1))
        self.opt.set_hyper("lr", self.lr)

    def after_cancel_batch(self) -> None:
        self.cancelled = True

    def after_batch(self) -> None:
        if self.cancelled:
            return
        # The stop is decided here and now, so each batch waits for the device.
        self.average = self.beta * self.average + (1 - self.beta) * self.loss.item()
        smooth = self.average / (1 - self.beta ** (len(self.lrs) + 1))
        self.lrs.append(self.lr)
        self.losses.append(smooth)
        self.best = min(self.best, smooth)
        diverged = self.stop_div and not smooth <= 4 * self.best  # true for NaN too
        if diverged or len(self.lrs) >= self.num_it:
            raise CancelFitException

    def before_validate(self) -> None:
        raise CancelValidException


def lr_find(
    learn: Any,
    start_lr: float = 1e-7,
    end_lr: float = 10,
    num_it: int = 100,
    stop_div: bool = True,
    show_plot: bool = True,
    suggest_funcs: SuggestFunc | Sequence[SuggestFunc] = valley,
) -> Any:
    """Sweep the learning rate from `start_lr` to `end_lr` over `num_it` batches and suggest one.

    Afterwards the learner is bit-for-bit what it was before, however the sweep ends: weights,
    optimizer, random numbers, place in the data. The plot marks the suggestion.

    Returns:
        A named tuple `SuggestedLRs` with one rate for each of `suggest_funcs`
        (`valley`, `minimum`, `steep` of `treadle.study`).

    Raises:
        UsageError: if fewer than ten batches gave a finite loss.
    """
    finder = LRFinder(start_lr, end_lr, num_it, stop_div)
    reports = [cb for cb in learn.cbs if cb.reports]
    with preserved(learn), learn.removed_cbs(reports), learn.no_logging():
        learn.fit(math.ceil(num_it / max(len(learn.dls.train), 1)), cbs=finder)
    lrs, losses = usable(finder.lrs, finder.losses, num_it)
    funcs = [suggest_funcs] if callable(suggest_funcs) else list(suggest_funcs)
    suggested = {func.__name__: func(lrs, losses) for func in funcs}
    if show_plot:
        from treadle.plots import plot_lr_find, show

        marks = {name: (lr, losses[nearest_index(lrs, lr)]) for name, lr in suggested.items()}
        show(plot_lr_find(lrs, losses, marks))
    return namedtuple("SuggestedLRs", suggested)(**suggested)


def usable(
    lrs: Sequence[float], losses: Sequence[float], num_it: int
) -> tuple[list[float], list[float]]:
    """The part of a sweep that suggestions are read from: without the first tenth, where the
    smoothing still settles, the last five points, where it already diverges, and what is not
    finite."""
    kept = [(x, y) for x, y in zip(lrs, losses, strict=True) if math.isfinite(y)]
    kept = kept[num_it // 10 : -5]
    if len(kept) < 5:
        raise UsageError(
            f"the sweep gave {len(kept)} usable points; the loss diverged too early or there were "
            "too few batches. Lower start_lr, or raise num_it."
        )
    return [x for x, _ in kept], [y for _, y in kept]


def nearest_index(lrs: Sequence[float], lr: float) -> int:
    """The index of the rate nearest to `lr` on a logarithmic scale."""
    return int(torch.tensor(lrs).log().sub(math.log(lr)).abs().argmin())
