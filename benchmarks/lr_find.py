"""How good the rates of `lr_find` are, on the twelve problems of `tests/lr_problems.py`.

    python benchmarks/lr_find.py

For each problem: the rates of the grid that end within 10 % of the best loss; the range that
`lr_find(sweeps=3)` gives; and by what factor the loss is above the grid's best at the best rate of
the grid within the range, at the middle of the range, and at `valley`. With `fit_one_cycle` and
with a constant rate.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lr_problems import GRID, PROBLEMS, Problem

FITS = {"fit_one_cycle": "one cycle", "fit": "constant"}


def row(problem: Problem, fit: str, seeds: tuple[int, int]) -> tuple[str, bool, bool]:
    """The line of the table; whether the range has a good rate, and whether the ranges of the two
    seeds overlap."""
    found, other = (problem.learner(seed).lr_find(sweeps=3, show_plot=False) for seed in seeds)
    losses = {lr: problem.final_loss(lr, fit=fit) for lr in GRID}
    best = min(losses.values())
    good = [lr for lr, loss in losses.items() if loss <= 1.1 * best]
    name = f"{problem.name:14} {FITS[fit]:10} {good[0]:7.2g} to {good[-1]:<7.2g}"
    if found.low is None or other.low is None:
        return f"{name} none: {found.why} {other.why}", False, False
    within = min((loss for lr, loss in losses.items() if found.low <= lr <= found.high))
    middle = problem.final_loss(math.sqrt(found.low * found.high), fit=fit)
    valley = problem.final_loss(found.valley, fit=fit)
    text = f"{found.low:7.2g} to {found.high:<7.2g} {within / best:6.2f} {middle / best:6.2f}"
    overlap = max(found.low, other.low) <= min(found.high, other.high)
    return f"{name} {text} {valley / best:6.2f}", within <= 1.1 * best, overlap


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'problem':14} {'fit':10} {'good rates':18} {'range':18} within middle valley")
    for fit in FITS:
        began, good, overlap = time.perf_counter(), 0, 0
        for problem in PROBLEMS:
            line, is_good, overlaps = row(problem, fit, (0, 1))
            good, overlap = good + is_good, overlap + overlaps
            print(line, flush=True)
        seconds = time.perf_counter() - began
        print(f"{good} of {len(PROBLEMS)} good, {overlap} overlap; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
