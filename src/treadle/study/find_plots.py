"""What `lr_find` and `find` saw, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.plots import BLUE, ORANGE, STYLE, plot_lr_find
from treadle.study.lr_find import usable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treadle.study.find import Found


def plot_sweeps(found: Any, num_it: int) -> Figure:
    """The smoothed loss of each sweep over the rate, the suggestions, and the range as a band.
    Where nothing is suggested, the title says why."""
    curves = [usable(sweep, num_it) for sweep in found.sweeps]
    if not any(lrs for lrs, _ in curves):
        curves = [(sweep.lrs, sweep.losses) for sweep in found.sweeps]
    lrs, losses = max(curves, key=lambda curve: len(curve[0]))
    marks = {
        name: (lr, losses[_nearest(lrs, lr)])
        for name, lr in zip(found._fields, found, strict=True)
        if lr is not None
    }
    figure = plot_lr_find(lrs, losses, marks)
    axes = figure.axes[0]
    for others in curves:
        if others[0] is not lrs:
            axes.plot(*others, color=BLUE, alpha=0.35, linewidth=1)
    if found.low is not None:
        label = f"{found.low:.2g} to {found.high:.2g}"
        axes.axvspan(found.low, found.high, color=BLUE, alpha=0.1, linewidth=0, label=label)
        axes.legend()
    else:
        _explain(axes, found.why)
    return figure


def plot_trials(found: Found) -> Figure:
    """The loss at the end of the trials of each value, its standard error as a bar, and the range
    as a band. Values that diverged have no point; the title says the reason."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(found.values))
        axes.errorbar(places, found.losses, found.errors, fmt="o-", color=BLUE, capsize=3)
        axes.set_xticks(list(places), [f"{value:g}" for value in found.values])
        axes.set(xlabel=found.name, ylabel=f"loss after {found.num_it} updates")
        if found.low is not None and found.high is not None:
            ends = found.values.index(found.low), found.values.index(found.high)
            axes.axvspan(ends[0] - 0.3, ends[1] + 0.3, color=BLUE, alpha=0.1, linewidth=0)
        if found.value is not None:
            at = found.values.index(found.value)
            axes.plot([at], [found.losses[at]], "o", color=ORANGE, markersize=8)
        _explain(axes, found.why)
    return figure


def _explain(axes: Any, why: str) -> None:
    axes.set_title(why, fontsize=9, fontweight="normal", wrap=True, parse_math=False)


def _nearest(lrs: list[float], lr: float) -> int:
    """The index of the rate nearest to `lr` by its ratio."""
    return min(range(len(lrs)), key=lambda i: max(lrs[i] / lr, lr / lrs[i]))
