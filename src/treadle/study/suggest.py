"""Rules that read a learning rate off the curve of an `lr_find` sweep.

Each takes the rates and the smoothed losses of a sweep, equally long, and gives the suggested rate.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The middle of the longest descent: of the longest subsequence of falling losses, the rate
    half way between where it starts and where it ends."""
    start, end = _longest_descent(losses)
    return float(lrs[(start + end) // 2])


def minimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate with the lowest loss: at the minimum itself it is about to diverge."""
    return float(lrs[int(np.argmin(losses))]) / 10


def steep(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest by the logarithm of the rate."""
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return float(lrs[int(np.argmin(slopes))])


def _longest_descent(losses: Sequence[float]) -> tuple[int, int]:
    """First and last index of the longest strictly falling subsequence, by patience sorting."""
    best: list[float] = []  # best[k]: minus the highest last loss of a descent of length k + 1
    last: list[int] = []  # last[k]: the index of that loss
    first_of = [0] * len(losses)
    for i, loss in enumerate(losses):
        k = bisect_left(best, -loss)
        first_of[i] = first_of[last[k - 1]] if k else i
        if k == len(best):
            best.append(-loss)
            last.append(i)
        else:
            best[k], last[k] = -loss, i
    return first_of[last[-1]], last[-1]
