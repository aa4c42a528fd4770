"""Line charts as HTML: curves in an SVG that stretches, labels beside it that do not.

The SVG fills its box whatever the width, with strokes of constant thickness; ticks and labels
are HTML text, placed in per cent. So a chart is as readable on a phone as on a wide screen, and
colours and fonts are the page's own, in light and dark.

Beside the picture stand the numbers: as JSON, from which `chart.js` shows values, zooms and hides
curves, and as a table, for who does not see the picture. Without its script a chart is whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from treadle.report.axis import Floats, Scale, ticks, x_scale, y_scale
from treadle.report.text import clean, esc, general

MAX_POINTS = 2000
MAX_DETAIL = 6000  # points of a curve that a zoom can show
MAX_DOTS = 60
MAX_ROWS = 11
_SIDE = 1000  # of the SVG's own coordinates, which start at the top left
_PLACES = {"updates": "update {}", "seconds": "{} s"}


@dataclass(frozen=True)
class Line:
    """One curve. `kind` is its CSS class: raw, train, valid or metric, or c0, c1, ... in a chart
    of many. `low` and `high` are the edges of a band around it, if it has one."""

    kind: str
    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class _Curve:
    """A line as it is drawn: `xs`, `ys`, `low` and `high` in the numbers of the data, thinned."""

    line: Line
    dots: bool
    xs: Floats
    ys: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, line: Line, limit: int) -> _Curve:
        xs, ys, low, high = (
            np.asarray(values, np.float64) for values in (line.xs, line.ys, line.low, line.high)
        )
        kept = thinned(ys, limit)
        low, high = (edge[kept] if len(edge) else edge for edge in (low, high))
        return cls(line, line.dots and len(xs) <= MAX_DOTS, xs[kept], ys[kept], low, high)


def thin(xs: Floats, ys: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """At most `limit` points that look like all of them; see `thinned`.

    >>> xs, ys = thin(np.arange(9000.0), np.eye(1, 9000, 4321)[0], limit=300)
    >>> len(xs) <= 300, ys.max()
    (True, np.float64(1.0))
    """
    kept = thinned(ys, limit)
    return xs[kept], ys[kept]


def thinned(ys: Floats, limit: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which of the points to keep, at most `limit`.

    The series is cut into buckets; each keeps its lowest and its highest point, so that a spike
    of a single update survives, and one that is not finite, so that a gap does.
    """
    if len(ys) <= limit:
        return np.arange(len(ys))
    keep = {0, len(ys) - 1}
    for bucket in np.array_split(np.arange(len(ys)), max((limit - 2) // 3, 1)):
        finite = np.isfinite(ys[bucket])
        if not finite.all():
            keep.add(int(bucket[np.argmin(finite)]))
        if finite.any():
            real = bucket[finite]
            keep.update((int(real[ys[real].argmin()]), int(real[ys[real].argmax()])))
    return np.array(sorted(keep))


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
    a faint vertical line, and `n_ticks` is about how many numbers an axis gets.
    """
    drawn = [line for line in lines if len(line.xs)]
    detail = [_Curve.of(line, MAX_DETAIL) for line in drawn]
    curves = [_Curve.of(line, MAX_POINTS) for line in drawn]
    x = x_scale(np.concatenate([curve.xs for curve in curves]))
    y = y_scale(np.concatenate([v for curve in curves for v in (curve.ys, curve.low, curve.high)]))
    whole = all((curve.xs == np.round(curve.xs)).all() for curve in curves)
    x_ticks, y_ticks = ticks(x, n_ticks, whole=whole), ticks(y, n_ticks)
    svg = [f'<path class="grid" d="{_rules(y, [v for v, _ in y_ticks], "h")}"/>']
    svg.append(f'<path class="mark" d="{_rules(x, marks, "v")}"/>')
    svg += [_band(curve, x, y) for curve in curves if len(curve.low)]
    svg += [_drawn(curve, x, y) for curve in curves]
    data = _data(title, detail, x, y, x_label, marks, n_ticks, whole)
    return (
        f'<figure class="chart"><figcaption>{f"<b>{esc(title)}</b>" if title else ""}'
        f'<span class="log"{"" if y.log else " hidden"}>log scale</span>'
        f"{_legend(curves) if len(curves) > 1 else ''}</figcaption>"
        f'<div class="plot" role="img" aria-label="{esc(description)}">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(svg)}</svg>{_labels(x, x_ticks, y, y_ticks)}</div>"
        f'<div class="xl">{esc(x_label)}</div>{_table(curves, x_label, title or "The chart")}'
        f'<script type="application/json">{data}</script></figure>'
    )


def _legend(curves: Sequence[_Curve]) -> str:
    keys = (
        f'<button type="button" class="key {curve.line.kind}" aria-pressed="true">'
        f"<span>{esc(curve.line.label)}</span></button>"
        for curve in curves
    )
    return f'<span class="legend" role="group" aria-label="Curves shown">{"".join(keys)}</span>'


def _labels(
    x: Scale, x_ticks: Sequence[tuple[float, str]], y: Scale, y_ticks: Sequence[tuple[float, str]]
) -> str:
    return "".join(
        f'<span class="yt" style="bottom:{100 * y.at(v):.2f}%">{esc(text)}</span>'
        for v, text in y_ticks
    ) + "".join(
        f'<span class="xt" style="left:{100 * x.at(v):.2f}%">{esc(text)}</span>'
        for v, text in x_ticks
    )


def _rules(scale: Scale, values: Sequence[float], way: str) -> str:
    """Straight lines across the chart at `values`: horizontal (h) or vertical (v)."""
    if way == "h":
        return "".join(f"M0,{_SIDE * (1 - scale.at(v)):.1f}h{_SIDE}" for v in values)
    return "".join(f"M{_SIDE * scale.at(v):.1f},0v{_SIDE}" for v in values)


def _drawn(curve: _Curve, x: Scale, y: Scale) -> str:
    """The points joined; what is not finite leaves a gap, and a lone point a dot. Dots proper are
    lines of no length with round ends, which do not stretch."""
    px, py = _SIDE * x(curve.xs), _SIDE * (1 - y(curve.ys))
    kind = curve.line.kind
    line = "".join(
        f"M{'L'.join(run)}{'h0' if len(run) == 1 else ''}" for run in _runs(px, py, curve.ys)
    )
    path = f'<path class="line {kind}" d="{line}"/>'
    if not curve.dots:
        return path
    dots = "".join(f"M{point}h0" for run in _runs(px, py, curve.ys) for point in run)
    return f'{path}<path class="dot {kind}" d="{dots}"/>'


def _band(curve: _Curve, x: Scale, y: Scale) -> str:
    """The area between the edges, in pieces where an edge is not finite."""
    px, extent = _SIDE * x(curve.xs), curve.low + curve.high
    lows = _runs(px, _SIDE * (1 - y(curve.low)), extent)
    highs = _runs(px, _SIDE * (1 - y(curve.high)), extent)
    area = "".join(
        f"M{'L'.join([*low, *reversed(high)])}z" for low, high in zip(lows, highs, strict=True)
    )
    return f'<path class="band {curve.line.kind}" d="{area}"/>'


def _runs(px: Floats, py: Floats, values: Floats) -> list[list[str]]:
    """The points as text, cut where `values` is not finite."""
    runs: list[list[str]] = [[]]
    for a, b, value in zip(px, py, values, strict=True):
        if math.isfinite(value):
            runs[-1].append(f"{a:.1f},{b:.1f}")
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _table(curves: Sequence[_Curve], x_label: str, title: str) -> str:
    """The curves at a few places, for who reads rather than looks."""
    longest = max(curves, key=lambda curve: len(curve.xs)).xs
    places = longest[np.unique(np.linspace(0, len(longest) - 1, MAX_ROWS).round().astype(int))]
    head = "".join(f'<th scope="col">{esc(curve.line.label)}</th>' for curve in curves)
    body = "".join(
        f'<tr><th scope="row">{_plain(place)}</th>'
        + "".join(f"<td>{_value_at(curve, place)}</td>" for curve in curves)
        + "</tr>"
        for place in places
    )
    return (
        '<details class="values"><summary>values</summary>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{esc(title)}: values">'
        f'<table class="epochs"><thead><tr><th scope="col">{esc(x_label)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _value_at(curve: _Curve, place: float) -> str:
    """The value of the last point up to `place`: what was known there."""
    i = int(np.searchsorted(curve.xs, place, side="right")) - 1
    if i < 0:
        return "–"
    band = f" ({general(curve.low[i])} to {general(curve.high[i])})" if len(curve.low) else ""
    return esc(f"{general(curve.ys[i])}{band}")


def _plain(x: float) -> str:
    return f"{x:,.0f}" if x == round(x) else general(x)


def _data(
    title: str,
    curves: Sequence[_Curve],
    x: Scale,
    y: Scale,
    x_label: str,
    marks: Sequence[float],
    n_ticks: int,
    whole: bool,
) -> str:
    """What the script draws from. No text in it can end the element that it stands in."""
    data = {
        "title": clean(title),
        "place": _PLACES.get(x_label, f"{clean(x_label)} {{}}"),
        "whole": whole,
        "nTicks": n_ticks,
        "x": [x.lo, x.hi],
        "y": [y.lo, y.hi, y.log],
        "marks": list(marks),
        "curves": [
            {
                "kind": curve.line.kind,
                "label": clean(curve.line.label),
                "dots": curve.dots,
                "x": _short(curve.xs),
                "y": _short(curve.ys),
                "low": _short(curve.low),
                "high": _short(curve.high),
            }
            for curve in curves
        ],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _short(values: Floats) -> list[float | int | None]:
    """Numbers of at most six digits, which no screen can tell from all of theirs; None for what
    is not finite. A whole number keeps all its digits: it may count updates."""
    return [
        (int(v) if v == round(v) and abs(v) < 1e15 else float(f"{v:.6g}"))
        if math.isfinite(v)
        else None
        for v in values.tolist()
    ]
