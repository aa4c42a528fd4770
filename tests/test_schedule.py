"""Schedules against their formulas, and joined end to end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import UsageError
from treadle.schedule import (
    SchedCos,
    SchedExp,
    SchedLin,
    SchedNo,
    SchedPoly,
    combine_scheds,
    combined_cos,
)

ends = st.floats(1e-6, 1e3)
progress = st.floats(0, 1)


@given(ends, ends)
def test_each_kind_runs_from_start_to_end(start, end):
    kinds = (SchedLin, SchedCos, SchedExp, lambda a, b: SchedPoly(a, b, 2))
    for sched in (kind(start, end) for kind in kinds):
        assert sched(0) == pytest.approx(start, rel=1e-6, abs=1e-9)
        assert sched(1) == pytest.approx(end, rel=1e-6, abs=1e-9)
    assert SchedNo(start, end)(0.7) == start


@given(ends, ends, progress)
def test_each_kind_stays_between_its_ends(start, end, pos):
    low, high = sorted((start, end))
    for sched in (SchedLin(start, end), SchedCos(start, end), SchedExp(start, end)):
        assert low * (1 - 1e-9) <= sched(pos) <= high * (1 + 1e-9)


def test_formulas():
    assert SchedCos(1, 0)(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert SchedExp(1e-4, 1)(0.5) == pytest.approx(1e-2)
    assert SchedPoly(0, 1, 3)(0.5) == pytest.approx(0.125)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), progress)
def test_joined_parts_each_see_their_own_progress(weights, pos):
    pcts = [w / sum(weights) for w in weights]
    joined = combine_scheds(pcts, [SchedLin(i, i + 1) for i in range(len(pcts))])
    edges = [math.fsum(pcts[:i]) for i in range(len(pcts) + 1)]
    i = max(k for k in range(len(pcts)) if edges[k] <= pos + 1e-12)
    assert joined(pos) == pytest.approx(i + (pos - edges[i]) / pcts[i], abs=1e-6)
    assert joined(1.0) == len(pcts)


def test_shares_that_do_not_add_up_in_floating_point_are_taken():
    joined = combine_scheds([0.7, 0.2, 0.1], [SchedNo(1, 1), SchedNo(2, 2), SchedNo(3, 3)])
    assert (joined(0), joined(0.8), joined(1.0000000000000002)) == (1, 2, 3)


@pytest.mark.parametrize("pcts", [[0.5], [0.5, 0.4], [-0.5, 1.5], []])
def test_shares_that_cannot_be_meant_are_refused(pcts):
    with pytest.raises(UsageError, match="combine_scheds got"):
        combine_scheds(pcts, [SchedNo(1, 1), SchedNo(2, 2)])


def test_an_exponential_needs_positive_ends():
    with pytest.raises(UsageError, match="positive"):
        SchedExp(0, 1)


def test_one_cycle():
    lr = combined_cos(0.25, 0.1 / 25, 0.1, 0.1 / 1e5)
    assert lr(0) == pytest.approx(0.004)
    assert lr(0.25) == pytest.approx(0.1)
    assert lr(1) == pytest.approx(1e-6)
    assert max(lr(i / 1000) for i in range(1001)) == pytest.approx(0.1)
