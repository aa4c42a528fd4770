"""Schedules: pure functions of progress.

A schedule is any function from progress in [0, 1] to a value; progress is applied updates over
planned updates. Two kinds of names stand here. `sched_cos(start, end, pos)` computes one value;
`SchedCos(start, end)` gives the schedule, a function of `pos` alone. `combine_scheds` joins
schedules end to end.

>>> warm_up_then_down = combined_cos(0.25, 0.1, 1.0, 0.0)
>>> [round(warm_up_then_down(pos), 3) for pos in (0.0, 0.25, 0.625, 1.0)]
[0.1, 1.0, 0.5, 0.0]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from treadle.errors import UsageError

Schedule = Callable[[float], float]


def sched_no(start: float, end: float, pos: float) -> float:
    """Constant at `start`."""
    return start


def sched_lin(start: float, end: float, pos: float) -> float:
    """A straight line from `start` to `end`.

    >>> sched_lin(0.0, 2.0, 0.25)
    0.5
    """
    return start + pos * (end - start)


def sched_cos(start: float, end: float, pos: float) -> float:
    """Half a cosine from `start` to `end`: flat at both ends (arXiv 1608.03983)."""
    return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2


def sched_exp(start: float, end: float, pos: float) -> float:
    """Equal ratios in equal progress: a straight line on a logarithmic axis. Ends must be > 0."""
    return start * math.pow(end / start, pos)


def sched_poly(start: float, end: float, power: float, pos: float) -> float:
    """A power law: `start + (end - start) * pos**power`."""
    return start + (end - start) * math.pow(pos, power)


def SchedNo(start: float, end: float) -> Schedule:
    """The constant schedule at `start`."""
    return partial(sched_no, start, end)


def SchedLin(start: float, end: float) -> Schedule:
    """The linear schedule from `start` to `end`."""
    return partial(sched_lin, start, end)


def SchedCos(start: float, end: float) -> Schedule:
    """The half-cosine schedule from `start` to `end`."""
    return partial(sched_cos, start, end)


def SchedExp(start: float, end: float) -> Schedule:
    """The exponential schedule from `start` to `end`.

    Raises:
        UsageError: if either end is not positive.
    """
    if start <= 0 or end <= 0:
        raise UsageError(
            f"SchedExp({start}, {end}): an exponential schedule needs two positive ends; "
            "use SchedLin or SchedCos to reach zero."
        )
    return partial(sched_exp, start, end)


def SchedPoly(start: float, end: float, power: float) -> Schedule:
    """The power-law schedule from `start` to `end`."""
    return partial(sched_poly, start, end, power)


def combine_scheds(pcts: Sequence[float], scheds: Sequence[Schedule]) -> Schedule:
    """Join schedules end to end: `scheds[i]` fills the share `pcts[i]` of the whole progress.

    Each part sees its own progress from 0 to 1, and the last one reaches exactly 1.

    Raises:
        UsageError: if the counts differ, a share is negative, or the shares do not add up to 1.

    >>> up_down = combine_scheds([0.5, 0.5], [SchedLin(0, 1), SchedLin(1, 0)])
    >>> [up_down(pos) for pos in (0, 0.25, 0.5, 1)]
    [0.0, 0.5, 1.0, 0.0]
    """
    if len(pcts) != len(scheds) or not pcts:
        raise UsageError(
            f"combine_scheds got {len(pcts)} shares and {len(scheds)} schedules; "
            "give one share for each schedule."
        )
    # fsum and a tolerance: 0.7 + 0.2 + 0.1 is not 1 in floating point.
    if min(pcts) < 0 or not math.isclose(math.fsum(pcts), 1.0, abs_tol=1e-9):
        raise UsageError(
            f"combine_scheds got the shares {list(pcts)}, which add up to {math.fsum(pcts):g}; "
            "they must not be negative and must add up to 1."
        )
    ends = [*list(accumulate(pcts))[:-1], 1.0]
    starts = [0.0, *ends[:-1]]
    parts = [
        (start, end - start, sched)
        for start, end, sched in zip(starts, ends, scheds, strict=True)
        if end > start
    ]
    inner_ends = [start for start, _, _ in parts[1:]]

    def combined(pos: float) -> float:
        start, length, sched = parts[bisect_right(inner_ends, pos)]
        return sched((pos - start) / length)

    return combined


def combined_cos(pct: float, start: float, middle: float, end: float) -> Schedule:
    """The one-cycle shape: a half cosine up from `start` to `middle` in the share `pct` of the
    progress, then one down to `end` (arXiv 1708.07120)."""
    return combine_scheds([pct, 1 - pct], [SchedCos(start, middle), SchedCos(middle, end)])
