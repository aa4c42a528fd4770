"""The learning-rate finder (arXiv 1506.01186, section 3.3): raise the rate exponentially over a few
updates, watch the loss, and put everything back."""

from __future__ import annotations

import math
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treadle.errors import UsageError
from treadle.study.curve import Supported, read_curve
from treadle.study.suggest import valley
from treadle.study.sweep import LRFinder, Sweep, run_sweep

SuggestFunc = Callable[[Sequence[float], Sequence[float]], float]


def lr_find(
    learn: Any,
    start_lr: Any = 1e-7,
    end_lr: float = 10,
    num_it: int = 100,
    stop_div: bool = True,
    show_plot: bool = True,
    suggest_funcs: SuggestFunc | Sequence[SuggestFunc] | None = valley,
    sweeps: int = 1,
    strict: bool = False,
) -> Any:
    """Sweep the learning rate from `start_lr` to `end_lr` over `num_it` updates; suggest one, and
    the range of those that serve.

    Afterwards the learner is bit-for-bit what it was before, however the sweep ends: weights,
    buffers, optimizer, precision, random numbers, place in the data, records. The plot marks the
    suggestions and the range.

    **The suggestions** (`valley`, `slide`, `minimum`, `steep` of `treadle.study`, or a function of
    your own of the rates and the smoothed losses) read each sweep as fastai's do: without its first
    tenth and its last five points. The strong smoothing makes them careful: they often lie below
    the range. Of several sweeps each is the median.

    **The range** is read from the loss itself; `treadle.study.curve.read_curve` says how. It is
    made for `fit_one_cycle`, whose highest rate holds only for a while; with the constant rate of
    `fit` stay in its lower half.

    **Where the curve supports none**, because it is flat, diverges from the start or has too few
    points, every suggestion is None and `why` says it; it is printed to stderr as well.

    Several parameter groups keep the shape of their rates: that of `learn.lr`, or of `start_lr` if
    it is a slice or a list. The rates of sweep and suggestions are the last group's. With
    `GradientAccumulation` an update, and so a point, takes several batches. Callbacks that only
    report or judge (`Callback.reports`: Recorder, EMA, trackers) do not take part.

    Args:
        stop_div: end a sweep when the smoothed loss is four times its best.
        suggest_funcs: None suggests no rate, but gives the range.
        sweeps: how often to sweep, each from the same start with another order of the data (and
            other random numbers). A loader that never shuffles has one order.
        strict: raise instead of suggesting None.

    Returns:
        A named tuple `SuggestedLRs` with one rate for each of `suggest_funcs` under its name, and
        with `low`, `high`, `why` and `sweeps`, a list of `Sweep`.

    Raises:
        UsageError: for a range or a number of sweeps that cannot be meant; with `strict`, if there
            is nothing to suggest.

    >>> import torch
    >>> from treadle.all import SGD, DataLoader, DataLoaders, Learner, nn
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(512, 4)
    >>> data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    >>> dls = DataLoaders(DataLoader(data, bs=32, shuffle=True, device="cpu"))
    >>> learn = Learner(dls, nn.Linear(4, 1), nn.MSELoss(), opt_func=SGD)
    >>> found = lr_find(learn, sweeps=3, show_plot=False)
    >>> found._fields, found.low < 0.1 < found.high
    (('valley',), True)
    """
    _check(start_lr, end_lr, sweeps)
    first, shape = _shape(start_lr)
    seen = [
        run_sweep(learn, LRFinder(first, end_lr, num_it, stop_div), order, shape)
        for order in range(sweeps)
    ]
    supported = read_curve(seen, num_it)
    if supported.low is None:
        if strict:
            raise UsageError(f"lr_find suggests no rate. {supported.why}")
        if learn.parallel.world.is_main:
            print(f"lr_find suggests no rate. {supported.why}", file=sys.stderr)
    found = suggested_lrs(_functions(suggest_funcs), seen, supported, num_it)
    if show_plot:
        from treadle.plots import show
        from treadle.study.find_plots import plot_sweeps

        show(plot_sweeps(found, num_it))
    return found


class _Found:
    """What `SuggestedLRs` has beside its rates."""

    low: float | None
    high: float | None
    why: str
    sweeps: list[Sweep]

    def __repr__(self) -> str:
        rates = zip(self._fields, self, strict=True)  # type: ignore[attr-defined, call-overload]
        said = ", ".join(f"{name}={f'{r:.3g}' if r is not None else None}" for name, r in rates)
        tail = f", {self.low:.2g} to {self.high:.2g}" if self.low else f": {self.why}"
        return f"SuggestedLRs({said}){tail}"


def suggested_lrs(
    funcs: dict[str, SuggestFunc], sweeps: list[Sweep], supported: Supported, num_it: int
) -> Any:
    """The result of `lr_find`."""
    rates: dict[str, float | None] = dict.fromkeys(funcs)
    if supported.low is not None:
        curves = [usable(sweep, num_it) for sweep in sweeps]
        for name, func in funcs.items():
            of_each = [func(lrs, losses) for lrs, losses in curves if len(lrs) >= 5]
            rates[name] = math.exp(float(np.median(np.log(of_each))))
    plain = namedtuple("SuggestedLRs", rates, rename=True)  # type: ignore[misc]
    found: Any = type("SuggestedLRs", (_Found, plain), {})(*rates.values())
    found.low, found.high, found.why = supported.low, supported.high, supported.why
    found.sweeps = sweeps
    return found


def usable(sweep: Sweep, num_it: int) -> tuple[list[float], list[float]]:
    """The rates and smoothed losses that suggestions are read from: without the first tenth, where
    the smoothing still settles, the last five points, where the loss already diverges, and what is
    not finite."""
    points = zip(sweep.lrs, sweep.losses, strict=True)
    kept = [(lr, loss) for lr, loss in points if math.isfinite(loss)][num_it // 10 : -5]
    return [lr for lr, _ in kept], [loss for _, loss in kept]


def _functions(suggest_funcs: Any) -> dict[str, SuggestFunc]:
    """The rules by their names; a partial has that of its function."""
    funcs = [suggest_funcs] if callable(suggest_funcs) else list(suggest_funcs or [])
    return {getattr(func, "func", func).__name__: func for func in funcs}


def _shape(start_lr: Any) -> tuple[float, Any]:
    """The last group's first rate; and the rates of all groups, None for those of the learner."""
    if isinstance(start_lr, slice):
        return float(start_lr.stop), start_lr
    if isinstance(start_lr, Sequence):
        return float(start_lr[-1]), list(start_lr)
    return float(start_lr), None


def _check(start_lr: Any, end_lr: float, sweeps: int) -> None:
    first = _shape(start_lr)[0]
    if not 0 < first < end_lr:
        raise UsageError(
            f"lr_find got start_lr={start_lr} and end_lr={end_lr}; the rate rises from one to the "
            "other, so give 0 < start_lr < end_lr."
        )
    if sweeps < 1:
        raise UsageError(f"lr_find got sweeps={sweeps}; give 1 or more.")
