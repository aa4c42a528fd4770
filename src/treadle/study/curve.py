"""What range of rates the curve of a sweep supports, or why it supports none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.study.sweep import Sweep

Curve = NDArray[np.float64]

# A curve of nothing but noise reaches this many standard errors once in a hundred times, whatever
# its length (found by simulation).
CLEAR = 4.0


@dataclass(frozen=True)
class Supported:
    """The range of rates, both None if the curve supports none, and the reason as a sentence."""

    low: float | None
    high: float | None
    why: str


def read_curve(sweeps: Sequence[Sweep], num_it: int) -> Supported:
    """The range of rates that `sweeps`, all of the same rates, support.

    At each rate the median over the sweeps counts. This curve is smoothed by a triangle over a
    fifteenth of its points, which unlike a running average does not shift it to higher rates.
    The loss begins at its mean over the first tenth, and falls to the curve's least value.

    The range ends at the highest rate at which at least half of that fall is still there: beyond
    it, training undoes more than it does. It begins a decade below, or where half of the fall was
    first reached, if that is lower: a sweep takes only a few updates at each rate, and a training
    that takes hundreds at one rate does as much with a lower one.

    A fall is clear above four standard errors of the two values that it is the difference of. A
    curve without one that diverges late still tells which rates are too high: the range is the
    decade below the rate where it was last within one error of its start. Where it diverges from
    the start, stays flat, or has fewer points than `fewest(num_it)`, there is none.
    """
    curve = _median(sweeps)
    lrs = max((sweep.lrs for sweep in sweeps), key=len)
    if len(curve) < fewest(num_it):
        return Supported(None, None, _too_few(len(curve), num_it, len(lrs)))
    head, width = max(len(curve) // 10, 3), max(len(curve) // 30, 1)
    smooth, weights = _smoothed(curve, width)
    start, at = float(curve[:head].mean()), int(smooth.argmin())
    fall = start - float(smooth[at])
    calm = curve[: max(at + 1, len(curve) // 5)]  # before it rises, which is no noise
    spread = 1.4826 * float(np.median(np.abs(np.diff(calm)))) / 2**0.5
    error = spread * (float((weights**2).sum()) + 1 / head) ** 0.5
    if not fall > CLEAR * error:
        return _without_a_fall(lrs, smooth, start, error)
    last = int(np.flatnonzero(smooth <= start - fall / 2)[-1])
    first = at
    while first > 0 and smooth[first - 1] <= start - fall / 2:
        first -= 1
    low, high = float(min(lrs[first], lrs[last] / 10)), float(lrs[last])
    return Supported(low, high, _fell(low, high, start, fall, last + 1 == num_it))


def fewest(num_it: int) -> int:
    """How many points a curve needs: ten beside the first tenth, where nothing happens yet."""
    return num_it // 10 + 10


def _median(sweeps: Sequence[Sweep]) -> Curve:
    """The median loss at each rate, as far as it is finite; a sweep that ended counts as lost."""
    table = np.full((len(sweeps), max(len(sweep.lrs) for sweep in sweeps) + 1), np.inf)
    for row, sweep in zip(table, sweeps, strict=True):
        row[: len(sweep.raw_losses)] = sweep.raw_losses
    table[np.isnan(table)] = np.inf
    middle: Curve = np.sort(table, axis=0)[len(sweeps) // 2]  # of two the worse
    lost = ~np.isfinite(middle)  # at the last point at the latest
    return middle[: int(np.argmax(lost))]


def _smoothed(curve: Curve, width: int) -> tuple[Curve, Curve]:
    """The mean of each point and `width` neighbours on either side, by weights that fall off as a
    triangle; and the weights."""
    half = np.arange(1, width + 2)
    weights = np.concatenate([half, half[-2::-1]]) / (width + 1) ** 2
    whole = np.convolve(np.ones_like(curve), weights, mode="same")  # less than 1 near the ends
    return np.convolve(curve, weights, mode="same") / whole, weights


def _too_few(n: int, num_it: int, seen: int) -> str:
    if seen == 0:
        return "There was no update: every batch was cancelled before its step."
    if n == 0:
        return (
            "The loss was not finite before the first update, so it is not the rate: look at data, "
            "model and loss. TerminateOnNaNCallback says where it came from."
        )
    if n < num_it:
        return (
            f"The loss diverged from the start: the sweep ended after {n} of {num_it} updates. "
            "Lower start_lr."
        )
    return f"{n} updates are too few points for a curve; raise num_it to 20 or more."


def _without_a_fall(lrs: Sequence[float], smooth: Curve, start: float, error: float) -> Supported:
    """What a curve tells that has no clear fall: where it begins to rise for good."""
    rising = len(smooth)
    while rising > 0 and smooth[rising - 1] > start + CLEAR * error:
        rising -= 1
    if rising == len(smooth):
        return Supported(
            None,
            None,
            f"The loss stayed flat at {start:.3g} up to the rate {lrs[rising - 1]:.2g}: it fell by "
            "no more than its own noise. Raise end_lr; or num_it, sweeps or the batch size, if it "
            "is noise that hides the fall.",
        )
    if rising <= len(smooth) // 5:
        return Supported(
            None,
            None,
            f"The loss diverged from the start: it began at {start:.3g} with the rate "
            f"{lrs[0]:.2g} and only rose. Lower start_lr.",
        )
    # There the rise is clear. It began where the loss was last within an error of its start.
    near = np.flatnonzero(smooth[:rising] <= start + error)
    last = float(lrs[int(near.max(initial=0))])
    return Supported(
        last / 10,
        last,
        f"The loss diverged above the rate {last:.2g} and had not clearly fallen before: the range "
        "is the decade below. More sweeps or larger batches may show where it falls.",
    )


def _fell(low: float, high: float, start: float, fall: float, to_the_end: bool) -> str:
    said = f"The loss fell from {start:.3g} to {start - fall:.3g}; {low:.2g} to {high:.2g} serve."
    if to_the_end:
        said += " It had not risen again at end_lr: still higher rates may serve too."
    return said
