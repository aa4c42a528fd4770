"""The figure of a comparison: losses by updates and by seconds, a metric by epoch, the rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from treadle.plots import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from treadle.study.comparison import Comparison, Row, Run

# Okabe and Ito's eight, without yellow, which is too pale for a line on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":")  # the colours once more, where there are more rows than colours
SKIP = 5  # the first losses, large and of little meaning, as `plots.plot_loss`


def figure_of(comparison: Comparison) -> Figure:
    """Four panels. A line is one run; each row has a colour, and the same in all panels."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(10.0, 7.2), layout="constrained")
        by_update, by_second, by_epoch, schedule = figure.subplots(2, 2).flat
        column = comparison.monitor
        _draw(by_update, comparison, lambda run: (range(len(run.losses)), run.losses))
        _draw(by_second, comparison, lambda run: (run.seconds, run.losses))
        _draw_epochs(by_epoch, comparison, column)
        _draw_rates(schedule, comparison)
        by_update.set(xlabel="updates", ylabel="training loss, smoothed")
        by_second.set(xlabel="seconds of training", ylabel="training loss, smoothed")
        by_epoch.set(xlabel="epoch", ylabel=column.replace("_", " "))
        by_epoch.locator_params(axis="x", integer=True)
        schedule.set(xlabel="updates", ylabel="learning rate")
        handles = [_handle(comparison, row) for row in comparison.rows]
        # A row's name may hold a dollar sign: it is text, not mathematics.
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=3)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def style_of(comparison: Comparison, row: Row) -> dict[str, Any]:
    """The colour and the dashes of a row."""
    place = [other.name for other in comparison.rows].index(row.name)
    dashes = DASHES[place // len(COLORS) % len(DASHES)]
    return {"color": COLORS[place % len(COLORS)], "linestyle": dashes}


def _handle(comparison: Comparison, row: Row) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=row.name, **style_of(comparison, row))


def _draw(
    axes: Axes,
    comparison: Comparison,
    points: Callable[[Run], tuple[Sequence[float], Sequence[float]]],
) -> None:
    for row in comparison.rows:
        for run in row.runs:
            xs, ys = points(run)
            skip = SKIP if len(ys) > 2 * SKIP else 0
            drawn = [y if math.isfinite(y) else math.nan for y in ys[skip:]]
            style = style_of(comparison, row)
            axes.plot(xs[skip:], drawn, alpha=0.75, linewidth=1.2, **style)
    # All start from the same weights: what is far above the loss there only hides the others.
    starts = [run.raw_losses[0] for row in comparison.rows for run in row.runs if run.raw_losses]
    starts = [loss for loss in starts if 0 < loss < math.inf]
    if starts and axes.get_ylim()[1] > 2 * max(starts):
        axes.set_ylim(top=2 * max(starts), bottom=0)


def _draw_epochs(axes: Axes, comparison: Comparison, column: str) -> None:
    for row in comparison.rows:
        for run in row.runs:
            values = [epoch.get(column) for epoch in run.epochs]
            ys = [math.nan if value is None else value for value in values]
            style = style_of(comparison, row)
            axes.plot(range(len(ys)), ys, marker="o", markersize=3.5, alpha=0.75, **style)


def _draw_rates(axes: Axes, comparison: Comparison) -> None:
    """One line a row where its seeds share the schedule, as they do unless each found its rate."""
    for row in comparison.rows:
        drawn = {tuple(run.hypers.get("lr", ())) for run in row.runs if run.finished}
        for rates in drawn:
            axes.plot(rates, **style_of(comparison, row))
    if any(line.get_ydata() is not None and len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
        axes.set_yscale("log")
