"""Any hyper-parameter, found by short trainings."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UsageError
from treadle.study.sweep import Trial, run_trial

VALUES: dict[str, tuple[float, ...]] = {
    "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    "mom": (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    "sqr_mom": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    "wd": (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0),
}
"""What is tried where no values are given."""

ALIKE = 0.02  # of the fall of the loss: less is no reason to prefer a value


@dataclass(frozen=True, repr=False)
class Found:
    """What `find` found.

    Attributes:
        name: of the hyper-parameter.
        value: the suggestion; None if there is none.
        low, high: the ends of the range of values, among those that were tried, that do as well.
        why: the reason, as a sentence.
        values: what was tried, in rising order.
        losses: for each value the mean loss over the last quarter of its trials; inf if one of
            them diverged.
        errors: the standard error of the difference of each of these to the least.
        num_it: the length of a trial, in updates.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    why: str
    values: list[float]
    losses: list[float]
    errors: list[float]
    num_it: int

    def __repr__(self) -> str:
        said = "None" if self.value is None else f"{self.value:g}"
        return f"Found({self.name}={said}): {self.why}"


class Hold(Trial):
    """Trains for `num_it` updates with one hyper-parameter held at a value."""

    def __init__(self, name: str, value: float, num_it: int) -> None:
        self.hyper, self.value, self.num_it = name, value, num_it

    def before_fit(self) -> None:
        super().before_fit()
        self.held: Any = self.value
        if self.hyper == "lr":  # of several groups each keeps its share
            rates = [float(view.get("lr", 0.0)) for view in self.learn.hypers]
            self.held = [self.value * rate / (rates[-1] or 1.0) for rate in rates]
        self.opt.set_hyper(self.hyper, self.held)

    def before_batch(self) -> None:
        self.opt.set_hyper(self.hyper, self.held)


def find(
    learn: Any,
    name: str,
    values: Iterable[float] | None = None,
    num_it: int = 100,
    sweeps: int = 1,
    lr: Any = None,
    show_plot: bool = True,
    strict: bool = False,
) -> Found:
    """Suggest a value of the hyper-parameter `name` by short trainings, one with each of `values`.

    `lr_find` raises the rate within one training, as the loss answers to it at once. To momentum or
    weight decay it answers slowly, and a sweep would mix up the value with all those before it. So
    here each value has its own training of `num_it` updates at a constant rate, all from the same
    start and on the same batches in the same order, and the mean loss of their last quarter counts.
    Afterwards the learner is bit-for-bit what it was before, however this ends.

    A value does as well as the best if its loss is above the best one's by less than twice the
    standard error of their difference, batch by batch, or by less than 2 % of the fall of the loss.
    The range is that of the values around the best that do as well. What the suggestion means:

    - `mom`, `sqr_mom`, `lr` and others: the value whose loss is lowest, that is, with which
      training is fastest at the rate at hand. A higher momentum wants a lower rate: find the rate
      anew afterwards.
    - `wd`: the highest value that does as well as the best. A short training cannot see whether
      decay helps against overfitting, but shows how much of it training bears without harm; what
      generalizes best is at most that (arXiv 1803.09820, section 4.4).

    The suggestion is None, with the reason in `why` and on stderr, where no value makes the loss
    fall, or none makes a difference.

    Args:
        values: by default those of `treadle.study.find.VALUES`, for lr, mom, sqr_mom and wd.
        sweeps: how often, each from the same start with another order of the data.
        lr: the rate, or a slice; by default the learner's own. Find it first.
        strict: raise instead of suggesting None.

    Raises:
        UsageError: for a hyper-parameter that no stepper uses, or without values; with `strict`, if
            there is nothing to suggest.

    >>> import torch
    >>> from treadle.all import SGD, DataLoaders, Learner, nn
    >>> x = torch.randn(640, 4, generator=torch.Generator().manual_seed(0))
    >>> batches = list(zip(x.split(32), x.sum(1, keepdim=True).split(32)))
    >>> model = nn.Linear(4, 1)
    >>> learn = Learner(DataLoaders(batches), model, nn.MSELoss(), opt_func=SGD, lr=0.05)
    >>> find(learn, "wd", num_it=60, show_plot=False).value < 1
    True
    """
    tried = _read_values(name, values)
    if sweeps < 1 or num_it < 8:
        raise UsageError(
            f"find got sweeps={sweeps} and num_it={num_it}; give 1 or more sweeps and 8 or more "
            "updates, of which the last quarter counts."
        )
    runs = [[_trial(learn, Hold(name, v, num_it), o, lr) for o in range(sweeps)] for v in tried]
    found = read_trials(name, tried, np.array(runs), num_it)
    if found.value is None:
        if strict:
            raise UsageError(f"find suggests no {name}. {found.why}")
        if learn.parallel.world.is_main:
            print(f"find suggests no {name}. {found.why}", file=sys.stderr)
    if show_plot:
        from treadle.plots import show
        from treadle.study.find_plots import plot_trials

        show(plot_trials(found))
    return found


def _trial(learn: Any, hold: Hold, order: int, lr: Any) -> list[float]:
    """The loss of each update; infinite from where it was lost."""
    run_trial(learn, hold, order, lr)
    seen = [loss if math.isfinite(loss) else math.inf for loss in hold.raw_losses]
    return seen + [math.inf] * (hold.num_it - len(seen))


def read_trials(name: str, values: list[float], runs: NDArray[np.float64], num_it: int) -> Found:
    """What trials say: `runs` are the losses, (values, sweeps, updates); see `find`."""
    tails = runs[:, :, -(num_it // 4) :].reshape(len(values), -1)
    losses = tails.mean(axis=1)
    best = int(losses.argmin())

    def found(at: int | None, low: int, high: int, why: str, errors: Any) -> Found:
        picked = [None] * 3 if at is None else [values[i] for i in (at, low, high)]
        seen = values, losses.tolist(), errors.tolist(), num_it
        return Found(name, picked[0], picked[1], picked[2], why, *seen)

    if not math.isfinite(losses[best]):
        why = "The loss diverged with every value; lower the learning rate."
        return found(None, 0, 0, why, np.zeros(len(values)))
    with np.errstate(invalid="ignore"):  # where a trial was lost
        apart = tails - tails[best]
        errors = np.nan_to_num(apart.std(axis=1) / tails.shape[1] ** 0.5, posinf=0.0)
    fall = float(runs[best, :, 0].mean() - losses[best])
    if fall <= 0:
        why = f"With no value did the loss fall in {num_it} updates; raise num_it or the rate."
        return found(None, 0, 0, why, errors)
    alike = losses - losses[best] <= np.maximum(2 * errors, ALIKE * fall)
    low = high = best
    while low > 0 and alike[low - 1]:
        low -= 1
    while high + 1 < len(values) and alike[high + 1]:
        high += 1
    if alike.all():
        why = (
            f"All values from {values[0]:g} to {values[-1]:g} do equally well in {num_it} updates, "
            f"to a loss of {losses[best]:.3g}."
        )
        return found(None, 0, 0, why, errors)
    at = high if name == "wd" else best
    why = f"The loss is lowest, {losses[best]:.3g}, with {values[best]:g}"
    why += f"; {values[low]:g} to {values[high]:g} do as well." if low < high else "."
    if at in (0, len(values) - 1) and values[at] != 0:
        why += f" No value beyond {values[at]:g} was tried: give some."
    return found(at, low, high, why, errors)


def _read_values(name: str, values: Iterable[float] | None) -> list[float]:
    if values is None and name not in VALUES:
        raise UsageError(
            f"find has no values of its own for {name!r}, only for {', '.join(VALUES)}; give "
            "values=[...], from lowest to highest."
        )
    tried = sorted({float(v) for v in (VALUES[name] if values is None else values)})
    if len(tried) < 2 or not all(map(math.isfinite, tried)):
        raise UsageError(f"find got the values {tried} for {name}; give two or more numbers.")
    return tried
