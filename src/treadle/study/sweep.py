"""Trials that leave no trace: the sweep of `lr_find`, and what every trial starts from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from treadle.errors import UsageError
from treadle.interrupts import scoped
from treadle.loop.events import Callback, CancelFitException, CancelValidException
from treadle.loop.state import preserved
from treadle.loop.training import assigned
from treadle.schedule import SchedExp
from treadle.study.seeding import rewind, seed_all


@dataclass(frozen=True)
class Sweep:
    """What one sweep saw, a number for each update: the rate (of the last parameter group), the
    smoothed loss, and the loss itself, before the update."""

    lrs: list[float]
    losses: list[float]
    raw_losses: list[float]


class Trial(Callback):
    """A fit of `num_it` updates and no validation, in which a hyper-parameter is held or moved.

    An update may take several batches (`GradientAccumulation`); its loss is then their mean.
    """

    order = 70  # after any schedule: what is tried holds
    run_valid = False
    num_it: int

    def before_fit(self) -> None:
        self.raw_losses: list[float] = []
        self.done, self.at_epoch = False, 0

    def after_step(self) -> None:
        learn = self.learn
        loss = learn.loss if learn.window is None else learn.window.loss
        # Whether to stop is decided here and now, so each update waits for the device.
        self.raw_losses.append(loss.item())
        self.done = self.is_lost() or len(self.raw_losses) >= self.num_it

    def is_lost(self) -> bool:
        """Whether to go on is no use; asked after each update."""
        return not math.isfinite(self.raw_losses[-1])

    def after_batch(self) -> None:
        if self.done:
            raise CancelFitException

    def after_train(self) -> None:
        if self.done or len(self.raw_losses) == self.at_epoch:  # or this epoch had no update
            raise CancelFitException
        self.at_epoch = len(self.raw_losses)

    def before_validate(self) -> None:
        raise CancelValidException


class LRFinder(Trial):
    """One sweep: sets the rate before each batch, keeps rates and losses, and ends the fit after
    `num_it` updates or when the smoothed loss is four times its best.

    Of several parameter groups each keeps its share of the rate that it has when the fit starts;
    the rate that is kept is the last group's.

    Attributes: `lrs`, `losses` (an exponentially weighted average without the bias of its start)
    and `raw_losses`, a number for each update.
    """

    beta = 0.98

    def __init__(
        self, start_lr: float = 1e-7, end_lr: float = 10, num_it: int = 100, stop_div: bool = True
    ) -> None:
        self.sched = SchedExp(start_lr, end_lr)
        self.num_it, self.stop_div = num_it, stop_div

    def before_fit(self) -> None:
        super().before_fit()
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.average, self.best = 0.0, math.inf
        rates = [float(view.get("lr", 0.0)) for view in self.learn.hypers]
        if rates[-1] <= 0:
            raise UsageError(
                f"the rates of the parameter groups are {rates}, and a sweep keeps their shape by "
                "the last one, which must be above 0; set learn.lr to a number, or to a slice "
                "such as slice(1e-5, 1e-3)."
            )
        self.shape = [rate / rates[-1] for rate in rates]

    def before_batch(self) -> None:
        self.lr = self.sched(len(self.lrs) / max(self.num_it - 1, 1))
        self.opt.set_hyper("lr", [self.lr * share for share in self.shape])

    def is_lost(self) -> bool:
        self.average = self.beta * self.average + (1 - self.beta) * self.raw_losses[-1]
        smooth = self.average / (1 - self.beta ** len(self.raw_losses))
        self.lrs.append(self.lr)
        self.losses.append(smooth)
        self.best = min(self.best, smooth)
        return self.stop_div and not smooth <= 4 * self.best  # true for NaN too


def run_sweep(learn: Any, finder: LRFinder, order: int = 0, lr: Any = None) -> Sweep:
    """Sweep once, in the `order`-th order of the data, and put everything back. `lr` gives the
    groups their shape, if the learner's own is not to."""
    run_trial(learn, finder, order, lr)
    return Sweep(finder.lrs, finder.losses, finder.raw_losses)


def run_trial(learn: Any, trial: Trial, order: int = 0, lr: Any = None) -> None:
    """Fit with `trial` and put everything back, however it ends.

    Order 0 of the data is the one that the next fit would see; the others are drawn anew.
    """
    with _leaving_no_trace(learn):
        if order:
            seed = int(torch.randint(2**31, (order,))[-1])
            seed_all(seed)
            rewind(learn.dls, seed)
        # The trial ends the fit. For schedules of the learner's own it is the start of a long one.
        learn.fit(trial.num_it, lr=lr, cbs=trial)


@scoped
def _leaving_no_trace(learn: Any) -> Iterator[None]:
    """Learner and loaders are as before afterwards; nothing is reported or printed."""
    if learn.device is not None:  # where the fit takes them, so that what is kept is of there
        learn.model.to(learn.device)
        if learn.precision.device_type != learn.device.type:
            learn.precision.to(learn.device)
    reports = [cb for cb in learn.cbs if cb.reports]
    here = assigned(learn, "processes", None)
    with preserved(learn), learn.removed_cbs(reports), learn.no_logging(), here:
        yield
