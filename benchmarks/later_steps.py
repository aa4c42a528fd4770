"""The later steps of optimizer.py: the time, the share of the bandwidth, the cost of the calls."""

from __future__ import annotations

from statistics import linear_regression, median

from bench import YARDSTICK, Bench
from common import Samples, Turn, interleave
from parameter_sets import ParameterSet
from stepping import NUMBER, PARAMS_STREAMS, after_work, copy_turn, later

LATER, AFTER = "later step, ms", "step right after work of torch, ms"
COPIES = {"copy_": False, "add_": True}
ADAM_STREAMS = PARAMS_STREAMS + 4
HERE = ("Treadle", YARDSTICK, "torch foreach")
"""Those whose calls are counted."""
TENSORS, GROUPS, IN_GROUPS = (1, 32, 256, 1024), (1, 4, 16), 64
SMALL = [16]  # so few numbers that only the call counts


def later_step(bench: Bench) -> None:
    """How long does each further step take, and what share of a copy's bandwidth is that?"""
    for of in bench.sets:
        _rounds(bench, of)
    for of in bench.sets:
        turns = {name: after_work(name, of.shapes) for name in HERE[:2]}
        for name, measured in interleave(turns, bench.rounds(of), warm_up=2).items():
            bench.add(name, of, AFTER, measured["ms"])
    bench.show(LATER, LATER, bench.contestants)
    bench.show(AFTER, AFTER, HERE[:2])
    _bandwidth_shares(bench)


def _rounds(bench: Bench, of: ParameterSet) -> None:
    """All contestants and the yardsticks on one set."""
    with bench.others(of) as others:
        turns: dict[str, Turn] = {}
        for name in bench.entrants(of):
            given = {"contestant": name, "shapes": of.shapes, "repeat": of.repeat}
            if name in others:
                turns[name] = others[name].prepare("stepping.later", **given)
            else:
                turns[name] = later(**given)
        for name, add in COPIES.items():
            turns[name] = copy_turn(of.numbers, add)
        for name, measured in interleave(turns, bench.rounds(of), warm_up=2).items():
            for measure, values in measured.items():
                bench.add(name, of, LATER if measure == "ms" else measure, values)


def _bandwidth_shares(bench: Bench) -> None:
    large = [of for of in bench.sets if of.large]
    rows = []
    for of in large:
        reached = {name: bench.median(name, of, "GB/s") or 0.0 for name in COPIES}
        row = [of.title, *(f"{value:.1f}" for value in reached.values())]
        for name in HERE[:2]:
            time = bench.median(name, of, LATER)
            rate = 0 if time is None else ADAM_STREAMS * NUMBER * of.numbers / time / 1e6
            row.append(f"{rate:.1f} ({100 * rate / max(reached.values()):.0f} %)")
        rows.append(row)
    if large:
        header = ["GB/s", *(f"torch {name}" for name in COPIES), *HERE[:2]]
        bench.report.show(header, rows)


def overhead(bench: Bench) -> None:
    """What does a step cost that has next to nothing to compute?"""
    turns: dict[str, Turn] = {}
    for name in HERE:
        turns |= {f"{name}, {n} tensors": later(name, n * [SMALL], 10) for n in TENSORS}
        turns |= {
            f"{name}, {n} groups": later(name, IN_GROUPS * [SMALL], 10, groups=n) for n in GROUPS
        }
    samples = interleave(turns, bench.options.rounds or 60, warm_up=2)
    rows = []
    for name in HERE:
        found = {
            "one tensor": 1e3 * median(samples[f"{name}, 1 tensors"]["ms"]),
            "each tensor": _slope(samples, name, "tensors", TENSORS),
            "each group": _slope(samples, name, "groups", GROUPS),
        }
        for measure, value in found.items():
            bench.report.add(name, f"overhead of {measure}, µs", [value])
        rows.append([name, *(f"{value:.2f}" for value in found.values())])
    header = ["step with little to compute, µs", "of 1 tensor", "a tensor more", "a group more"]
    bench.report.show(header, rows)


def _slope(samples: Samples, name: str, what: str, counts: tuple[int, ...]) -> float:
    """Microseconds that one more costs: through the medians over `counts`."""
    times = [1e3 * median(samples[f"{name}, {n} {what}"]["ms"]) for n in counts]
    return linear_regression(counts, times).slope
