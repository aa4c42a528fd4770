"""The report of a comparison: who won, by how much, and the curves of all, over the seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from treadle.report.axis import Floats
from treadle.report.chart import Line, chart
from treadle.report.page import Section, page, scrolling, settings
from treadle.report.text import esc, general
from treadle.run.folder import write_text
from treadle.study.comparison import Comparison, Row, Run
from treadle.study.table import cells, heads

_GRID = 600  # places at which the curves of several seeds are brought together
_COLOURS = 8


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Writes the report of a comparison to `path`, a single HTML file, and returns the path.

    The file appears whole or not at all. Raises DataError if it cannot be written.

    >>> import tempfile
    >>> rows = [Row("sgd", "sgd_step, lr=0.1", [Run(0, epochs=[{"epoch": 0, "valid_loss": 0.5}])])]
    >>> found = Comparison("Optimizers on digits", {"epochs": 1}, ["valid_loss"], rows, [0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_comparison(found, f"{folder}/report.html").read_text("utf-8")
    >>> "sgd has the best valid loss: 0.5000 (1 seed)." in page
    True
    """
    return write_text(path, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """The report of a comparison as the text of an HTML page."""
    sections = [
        Section("results", "Results", _results(comparison)),
        Section("updates", "Loss by update", _by_update(comparison)),
        Section("seconds", "Loss by time", _by_second(comparison)),
        Section("epochs", "By epoch", _by_epoch(comparison)),
        Section("schedules", "Schedules", _schedules(comparison)),
        Section("contestants", "What was compared", _contestants(comparison)),
        Section("configuration", "What all share", settings(comparison.settings)),
        Section("environment", "Environment", settings(comparison.environment)),
    ]
    return page(
        title=comparison.title,
        kicker="the report of a comparison",
        started=comparison.started,
        headline=_verdict(comparison),
        sections=sections,
        writer=f"Treadle {comparison.environment.get('treadle', '')}".strip(),
    )


def _verdict(comparison: Comparison) -> str:
    sentences = "".join(f"<li>{esc(sentence)}</li>" for sentence in comparison.verdict())
    return f'<ul class="verdict">{sentences}</ul>'


def _results(comparison: Comparison) -> str:
    """The table: mean and spread of each column, best row first and marked."""
    ranked = comparison.ranking()
    order = [*ranked, *(row for row in comparison.rows if row not in ranked)]
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in ("runs", *heads(comparison)))
    body = "".join(
        f"<tr{' class=best' if ranked and row is ranked[0] else ''}>"
        f'<th scope="row" class="name"><span class="key {_colour(comparison, row)}">'
        f"<span>{esc(row.name)}</span></span></th><td>{_runs(row)}</td>"
        + "".join(
            f"<td>{esc(mean)}{f'<small>{esc(spread)}</small>' if spread else ''}</td>"
            for mean, spread in cells(comparison, row)
        )
        + "</tr>"
        for row in order
    )
    head = f'<tr><th scope="col" class="name">row</th>{head}</tr>'
    table = f'<table class="epochs"><thead>{head}</thead><tbody>{body}</tbody></table>'
    said = comparison.monitor.replace("_", " ")
    note = f"Mean ± standard deviation over the seeds; best {esc(said)} first."
    return f'{scrolling("Results", table)}<p class="note">{note}</p>'


def _runs(row: Row) -> str:
    done = sum(run.finished for run in row.runs)
    return str(done) if done == len(row.runs) else f"{done} of {len(row.runs)}"


def _colour(comparison: Comparison, row: Row) -> str:
    """The class of a row's curves: its own colour, and beyond the last colour dashed."""
    i = next(i for i, other in enumerate(comparison.rows) if other is row)
    return f"c{i % _COLOURS}{' dashed' if i >= _COLOURS else ''}"


# Curves over the seeds


def _by_update(comparison: Comparison) -> str:
    def curve(run: Run) -> tuple[Floats, Floats]:
        return np.arange(1.0, len(run.losses) + 1), np.asarray(run.losses, np.float64)

    return _loss_chart(comparison, curve, "updates")


def _by_second(comparison: Comparison) -> str:
    def curve(run: Run) -> tuple[Floats, Floats]:
        n = min(len(run.seconds), len(run.losses))
        return np.asarray(run.seconds[:n], np.float64), np.asarray(run.losses[:n], np.float64)

    return _loss_chart(comparison, curve, "seconds")


def _loss_chart(
    comparison: Comparison, curve: Callable[[Run], tuple[Floats, Floats]], x_label: str
) -> str:
    lines = [_line(comparison, row, [curve(run) for run in _shown(row)]) for row in comparison.rows]
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    note = ""
    if any(len(line.low) for line in lines):
        note = "Smoothed training loss: the mean of the seeds, and from their lowest to highest."
    drawn = chart("", lines, x_label, f"Training loss by {x_label}. {_said(lines)}", n_ticks=6)
    return f"{f'<p class=note>{note}</p>' if note else ''}{drawn}"


def _by_epoch(comparison: Comparison) -> str:
    """A chart for each column, the one that decides first."""
    names = sorted(comparison.metric_names, key=lambda name: name != comparison.monitor)
    charts = []
    for name in names:
        lines = [
            _line(comparison, row, [_column(run, name) for run in _shown(row)], dots=True)
            for row in comparison.rows
        ]
        lines = [line for line in lines if len(line.xs) and np.isfinite(line.ys).any()]
        if lines and max(len(line.xs) for line in lines) > 1:
            said = f"{name} by epoch. {_said(lines)}"
            charts.append(chart(name.replace("_", " "), lines, "epoch", said))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _column(run: Run, name: str) -> tuple[Floats, Floats]:
    rows = [(row.get("epoch", i), row.get(name)) for i, row in enumerate(run.epochs)]
    known = [(at, math.nan if value is None else value) for at, value in rows]
    return (
        np.array([at for at, _ in known], np.float64),
        np.array([value for _, value in known], np.float64),
    )


def _shown(row: Row) -> list[Run]:
    """The finished runs; if there is none, those that failed, up to where they did."""
    return [run for run in row.runs if run.finished] or list(row.runs)


def _line(
    comparison: Comparison,
    row: Row,
    curves: Sequence[tuple[Floats, Floats]],
    dots: bool = False,
) -> Line:
    """The mean of a row's curves with the band between the lowest and the highest."""
    curves = [(xs, ys) for xs, ys in curves if len(xs)]
    kind = _colour(comparison, row)
    if not curves:
        return Line(kind, row.name, (), ())
    if len(curves) == 1:
        xs, ys = curves[0]
        return Line(kind, row.name, xs.tolist(), ys.tolist(), dots)
    grid = _grid([xs for xs, _ in curves])
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    low, mean, high = values.min(axis=0), values.mean(axis=0), values.max(axis=0)
    return Line(kind, row.name, grid.tolist(), mean.tolist(), dots, low.tolist(), high.tolist())


def _grid(axes: Sequence[Floats]) -> Floats:
    """Places that all have: their own if they agree and are few, else evenly spread."""
    first, last = max(xs[0] for xs in axes), min(xs[-1] for xs in axes)
    own = min(axes, key=len)
    if len(own) <= _GRID and all(np.array_equal(xs[: len(own)], own) for xs in axes):
        return own
    grid = np.linspace(first, max(first, last), min(_GRID, len(own)))
    whole = all((xs == np.round(xs)).all() for xs in axes)
    return np.unique(grid.round() if whole else grid)


def _said(lines: Sequence[Line]) -> str:
    """Where each curve begins and ends, in words."""
    return " ".join(
        f"{line.label} from {general(line.ys[0])} to {general(line.ys[-1])}." for line in lines
    )


def _schedules(comparison: Comparison) -> str:
    """Each hyper-parameter that moves in some row, of all rows that have it."""
    charts = []
    for name in dict.fromkeys(name for row in comparison.rows for name in _hypers(row)):
        lines = [
            Line(_colour(comparison, row), row.name, range(1, len(values) + 1), values)
            for row in comparison.rows
            if (values := _hypers(row).get(name))
        ]
        if any(len(set(line.ys)) > 1 for line in lines):
            charts.append(chart(name, lines, "updates", f"{name} by update. {_said(lines)}"))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _hypers(row: Row) -> dict[str, Sequence[float]]:
    """The schedules of a row's first run; the other seeds have the same."""
    return dict(_shown(row)[0].hypers) if row.runs else {}


def _contestants(comparison: Comparison) -> str:
    return settings({row.name: _described(row) for row in comparison.rows})


def _described(row: Row) -> str:
    rates = [general(run.rate_found) for run in row.runs if run.rate_found is not None]
    found = f"; rates found: {', '.join(rates)}" if rates else ""
    return f"{row.describe}{found}"
