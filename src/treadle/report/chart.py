"""Line charts as HTML: curves in an SVG that stretches, labels beside it that do not.

The SVG fills its box whatever the width, with strokes of constant thickness; ticks and labels
are HTML text, placed in per cent. So a chart is as readable on a phone as on a wide screen, and
colours and fonts are the page's own, in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.report.text import esc, general

Floats = NDArray[np.float64]

MAX_POINTS = 2000
MAX_DOTS = 60
_SIDE = 1000  # of the SVG's own coordinates, which start at the top left
_TOP_HEAVY = 20  # how far above the median the peak may be before the axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One curve. `kind` is its CSS class (raw, train, valid or metric)."""

    kind: str
    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class _Scale:
    """Places numbers on an axis: 0 at its start, 1 at its end."""

    lo: float
    hi: float
    log: bool = False

    def __call__(self, values: Floats) -> Floats:
        if self.log:
            return (np.log10(values) - math.log10(self.lo)) / math.log10(self.hi / self.lo)
        return (values - self.lo) / (self.hi - self.lo)


def thin(xs: Floats, ys: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """At most `limit` points that look like all of them.

    The series is cut into buckets; each keeps its lowest and its highest point, so that a spike
    of a single update survives, and one that is not finite, so that a gap does.

    >>> xs, ys = thin(np.arange(9000.0), np.eye(1, 9000, 4321)[0], limit=300)
    >>> len(xs) <= 300, ys.max()
    (True, np.float64(1.0))
    """
    if len(xs) <= limit:
        return xs, ys
    keep = {0, len(xs) - 1}
    for bucket in np.array_split(np.arange(len(xs)), max((limit - 2) // 3, 1)):
        finite = np.isfinite(ys[bucket])
        if not finite.all():
            keep.add(int(bucket[np.argmin(finite)]))
        if finite.any():
            real = bucket[finite]
            keep.update((int(real[ys[real].argmin()]), int(real[ys[real].argmax()])))
    kept = np.array(sorted(keep))
    return xs[kept], ys[kept]


def chart(
    title: str,
    lines: Iterable[Line],
    x_label: str,
    description: str,
    marks: Sequence[float] = (),
    n_ticks: int = 4,
) -> str:
    """A figure with its title (if any), its legend if there are several curves, and its axes.

    `description` is read out in place of the picture; `marks` are places on the x axis that get
    a faint vertical line, and `n_ticks` is about how many numbers the y axis gets.
    """
    curves = [
        (line, *thin(np.asarray(line.xs, np.float64), np.asarray(line.ys, np.float64)))
        for line in lines
        if len(line.xs)
    ]
    x = _x_scale(np.concatenate([xs for _, xs, _ in curves]))
    y = _y_scale(np.concatenate([ys for _, _, ys in curves]))
    x_ticks = _ticks(x, 6, whole=True)
    y_ticks = _ticks(y, n_ticks)
    svg = [f'<path class="grid" d="{_rules(y, [v for v, _ in y_ticks], "h")}"/>']
    if marks:
        svg.append(f'<path class="mark" d="{_rules(x, marks, "v")}"/>')
    for line, xs, ys in curves:
        svg.append(_curve(line, x(xs), y(ys)))
        if line.dots and len(xs) <= MAX_DOTS:
            svg += _dots(line, xs, ys, x(xs), y(ys))
    legend = "".join(
        f'<span class="key {line.kind}">{esc(line.label)}</span>' for line, _, _ in curves
    )
    labels = "".join(
        f'<span class="yt" style="bottom:{100 * _at(y, v):.2f}%">{esc(text)}</span>'
        for v, text in y_ticks
    ) + "".join(
        f'<span class="xt" style="left:{100 * _at(x, v):.2f}%">{esc(text)}</span>'
        for v, text in x_ticks
    )
    heading = f"<b>{esc(title)}</b>" if title else ""
    note = "<span>log scale</span>" if y.log else ""
    return (
        f'<figure class="chart"><figcaption>{heading}{note}'
        f"{f'<span class=legend>{legend}</span>' if len(curves) > 1 else ''}</figcaption>"
        f'<div class="plot" role="img" aria-label="{esc(description)}">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(svg)}</svg>{labels}</div>"
        f'<div class="xl">{esc(x_label)}</div></figure>'
    )


def _x_scale(xs: Floats) -> _Scale:
    lo, hi = float(xs.min()), float(xs.max())
    return _Scale(lo, hi) if hi > lo else _Scale(lo - 0.5, hi + 0.5)


def _y_scale(ys: Floats) -> _Scale:
    """Room for all finite values; logarithmic where a divergence would flatten all the rest."""
    real = ys[np.isfinite(ys)]
    if len(real) == 0:
        return _Scale(0.0, 1.0)
    lo, hi = float(real.min()), float(real.max())
    if lo > 0 and hi > _TOP_HEAVY * float(np.median(real)):
        return _Scale(lo / 1.2, hi * 1.2, log=True)
    if lo == hi:
        margin = 0.1 * abs(lo) or 1.0
        return _Scale(lo - margin, hi + margin)
    if 0 <= lo < 0.4 * hi:  # near enough to zero to show it
        return _Scale(0.0, hi + 0.04 * hi)
    margin = 0.06 * (hi - lo)
    return _Scale(lo - margin, hi + margin)


def _ticks(scale: _Scale, n: int, whole: bool = False) -> list[tuple[float, str]]:
    """About `n` round numbers on an axis with their labels; `whole` forbids fractions."""
    if scale.log:
        return [(v, general(v)) for v in _log_ticks(scale, n)]
    power = 10.0 ** math.floor(math.log10((scale.hi - scale.lo) / n))
    steps = [max(m * power, 1.0) if whole else m * power for m in (1, 2, 5, 10)]
    step, ticks = min(
        ((step, _multiples(scale, step)) for step in steps),
        key=lambda choice: abs(len(choice[1]) - n),
    )
    values = [i * step for i in ticks]
    if max(map(abs, values), default=0) < 1e-3 or step >= 1e5:
        return [(v, general(v)) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(v, f"{v:,.{decimals}f}") for v in values]


def _multiples(scale: _Scale, step: float) -> range:
    """The i for which i * step lies on the axis, its ends included despite rounding."""
    return range(math.ceil(scale.lo / step - 1e-9), math.floor(scale.hi / step + 1e-9) + 1)


def _log_ticks(scale: _Scale, n: int) -> list[float]:
    """Powers of ten, every few of them if they are many; with 2 and 5 between if they are few."""
    first, last = math.floor(math.log10(scale.lo)), math.ceil(math.log10(scale.hi))
    between = (1, 2, 5) if last - first <= 3 else (1,)
    stride = math.ceil((last - first) / (2 * n))
    ticks = [m * 10.0**e for e in range(first, last + 1, stride) for m in between]
    return [tick for tick in ticks if scale.lo <= tick <= scale.hi]


def _at(scale: _Scale, value: float) -> float:
    return float(scale(np.array([value]))[0])


def _rules(scale: _Scale, values: Sequence[float], way: str) -> str:
    """Straight lines across the chart at `values`: horizontal (h) or vertical (v)."""
    if way == "h":
        return "".join(f"M0,{_SIDE * (1 - _at(scale, v)):.1f}h{_SIDE}" for v in values)
    return "".join(f"M{_SIDE * _at(scale, v):.1f},0v{_SIDE}" for v in values)


def _curve(line: Line, xs: Floats, ys: Floats) -> str:
    """The points joined; what is not finite leaves a gap, and a lone point a dot."""
    pieces: list[str] = []
    run: list[str] = []
    for x, y in [*zip(xs, ys, strict=True), (0.0, math.nan)]:
        if math.isfinite(y):
            run.append(f"{_SIDE * x:.1f},{_SIDE * (1 - y):.1f}")
        elif run:
            pieces.append(f"M{'L'.join(run)}{'h0' if len(run) == 1 else ''}")
            run = []
    return f'<path class="line {line.kind}" d="{"".join(pieces)}"/>'


def _dots(line: Line, xs: Floats, ys: Floats, px: Floats, py: Floats) -> list[str]:
    """Round dots with a tooltip: lines of no length with round ends, which do not stretch."""
    return [
        f'<path class="dot {line.kind}" d="M{_SIDE * a:.1f},{_SIDE * (1 - b):.1f}h0">'
        f"<title>{esc(line.label)} at {general(x)}: {general(y)}</title></path>"
        for x, y, a, b in zip(xs, ys, px, py, strict=True)
        if math.isfinite(y)
    ]
