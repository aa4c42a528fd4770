"""Rules that read a learning rate off the curve of an `lr_find` sweep.

Each takes the rates and the smoothed losses of a sweep, equally long, and gives the suggested rate.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The middle of the longest descent: of the longest subsequence of falling losses, half its
    length back from where it ends."""
    end, length = _longest_descent(losses)
    # A third of the way in and half of the next, each rounded down, as fastai's rule does: on one
    # curve both suggest one rate.
    return float(lrs[max(end - length + length // 3 + length // 6, 0)])


def slide(
    lrs: Sequence[float],
    losses: Sequence[float],
    lr_diff: int = 15,
    thresh: float = 0.005,
    adjust_value: float = 1.0,
) -> float:
    """The left end of an interval that slides down from the right of the curve for as long as the
    slopes at its two ends differ by more than `thresh`: the last rate before the loss takes off.

    The interval is `lr_diff` points wide. Slopes are changes of the loss from one point to the
    next, so `thresh` is in the loss's own unit. The rate is multiplied by `adjust_value`. Use
    `partial(slide, thresh=...)` to set these. Where the curve is no longer than the interval, it is
    the curve's first rate.

    Source: the interval slide rule of A. Chang, as in fastai 2.8, which suggests the same rates.

    >>> lrs = [10.0**k for k in range(-6, 0)]
    >>> slide(lrs, [2.0, 2.0, 1.9, 1.6, 2.5, 5.0], lr_diff=2, thresh=1.0)
    0.0001
    """
    left = len(losses) - 1 - lr_diff
    if left < 0:
        return float(lrs[0]) * adjust_value
    slopes = np.gradient(np.asarray(losses, dtype=float))
    differ = np.abs(slopes[lr_diff:] - slopes[:-lr_diff]) > thresh
    while left > 0 and differ[left] and differ[left - 1]:
        left -= 1
    return float(lrs[left]) * adjust_value


def minimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate with the lowest loss: at the minimum itself it is about to diverge."""
    return float(lrs[int(np.argmin(losses))]) / 10


def steep(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest by the logarithm of the rate."""
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return float(lrs[int(np.argmin(slopes))])


def _longest_descent(losses: Sequence[float]) -> tuple[int, int]:
    """The last index and the length of the longest strictly falling subsequence, by patience
    sorting."""
    best: list[float] = []  # best[k]: minus the highest last loss of a descent of length k + 1
    end = 0
    for i, loss in enumerate(losses):
        k = bisect_left(best, -loss)
        if k == len(best):
            best.append(-loss)
            end = i
        else:
            best[k] = -loss
    return end, len(best)
