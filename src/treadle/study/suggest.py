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
    return float(lrs[max(end - length // 2, 0)])


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
