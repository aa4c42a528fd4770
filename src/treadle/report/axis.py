"""Axes: where a number stands on one, and the round numbers that are written beside it.

`chart.js` has the same rules, for a chart that was zoomed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.report.text import general

Floats = NDArray[np.float64]

_TOP_HEAVY = 20  # how far above the median the peak may be before the axis is logarithmic


@dataclass(frozen=True)
class Scale:
    """Places numbers on an axis: 0 at its start, 1 at its end."""

    lo: float
    hi: float
    log: bool = False

    def __call__(self, values: Floats) -> Floats:
        if self.log:
            return (np.log10(values) - math.log10(self.lo)) / math.log10(self.hi / self.lo)
        return (values - self.lo) / (self.hi - self.lo)

    def at(self, value: float) -> float:
        """Where one number stands."""
        return float(self(np.array([value]))[0])


def x_scale(xs: Floats) -> Scale:
    """From the first number to the last."""
    lo, hi = float(xs.min()), float(xs.max())
    return Scale(lo, hi) if hi > lo else Scale(lo - 0.5, hi + 0.5)


def y_scale(ys: Floats) -> Scale:
    """Room for all finite values; logarithmic where a divergence would flatten all the rest."""
    real = ys[np.isfinite(ys)]
    if len(real) == 0:
        return Scale(0.0, 1.0)
    lo, hi = float(real.min()), float(real.max())
    if lo > 0 and hi > _TOP_HEAVY * float(np.median(real)):
        return Scale(lo / 1.2, hi * 1.2, log=True)
    if lo == hi:
        margin = 0.1 * abs(lo) or 1.0
        return Scale(lo - margin, hi + margin)
    if 0 <= lo < 0.4 * hi:  # near enough to zero to show it
        return Scale(0.0, hi + 0.04 * hi)
    margin = 0.06 * (hi - lo)
    return Scale(lo - margin, hi + margin)


def ticks(scale: Scale, n: int, whole: bool = False) -> list[tuple[float, str]]:
    """About `n` round numbers on an axis with their labels; `whole` forbids fractions."""
    if scale.log:
        return [(v, general(v)) for v in _log_ticks(scale, n)]
    power = 10.0 ** math.floor(math.log10((scale.hi - scale.lo) / n))
    steps = [max(m * power, 1.0) if whole else m * power for m in (1, 2, 5, 10)]
    step, counts = min(
        ((step, _multiples(scale, step)) for step in steps),
        key=lambda choice: abs(len(choice[1]) - n),
    )
    values = [i * step for i in counts]
    if max(map(abs, values), default=0) < 1e-3 or step >= 1e5:
        return [(v, general(v)) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(v, f"{v:,.{decimals}f}") for v in values]


def _multiples(scale: Scale, step: float) -> range:
    """The i for which i * step lies on the axis, its ends included despite rounding."""
    return range(math.ceil(scale.lo / step - 1e-9), math.floor(scale.hi / step + 1e-9) + 1)


def _log_ticks(scale: Scale, n: int) -> list[float]:
    """Powers of ten, every few of them if they are many; with 2 and 5 between if they are few."""
    first, last = math.floor(math.log10(scale.lo)), math.ceil(math.log10(scale.hi))
    between = (1, 2, 5) if last - first <= 3 else (1,)
    stride = math.ceil((last - first) / (2 * n))
    marks = [m * 10.0**e for e in range(first, last + 1, stride) for m in between]
    return [mark for mark in marks if scale.lo <= mark <= scale.hi]
