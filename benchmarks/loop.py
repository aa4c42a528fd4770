"""Microseconds a step that `fit` adds to the loop that one would write by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from common import Report, Samples, Turn, arguments, interleave, paired_difference, versions
from peers import Side, homes, sides
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.metrics import accuracy
from workloads import STEPS, batches, loop_turn, net, plain_loop

PLAIN, BARE = "by hand, Treadle's Adam", "Treadle, no callbacks"
FULL = "Treadle, recorder, one-cycle, accuracy, progress"
FASTAI = {
    "by hand, fastai's Adam": "plain",
    "fastai, its defaults": "fit",
    "fastai, recorder, one-cycle, accuracy": "one-cycle",
}
FASTAI_PLAIN = next(iter(FASTAI))
MEASURE = "us a step"


def contestants(steps: int, fastai: Side | None) -> dict[str, Turn]:
    """Every turn trains a new net with a new optimizer; making them is not timed."""
    train, valid = batches(steps), batches(1)

    def treadle(work: Callable[[Learner], object], **settings: Any) -> Turn:
        def turn() -> dict[str, float]:
            dls = DataLoaders(train, valid, device="cpu")
            learn = Learner(dls, net(), F.cross_entropy, **settings)
            learn.create_opt()
            # to a file, as under nohup: a terminal's bar would be measured with its terminal
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                return loop_turn(lambda: work(learn), steps)

        return turn

    turns = {
        # with the learner's optimizer, so that only the loop differs
        PLAIN: treadle(lambda learn: plain_loop(learn.model, learn.opt, train, valid)),
        BARE: treadle(lambda learn: learn.fit(1), default_cbs=False),
        FULL: treadle(lambda learn: learn.fit_one_cycle(1, 1e-3), metrics=accuracy),
    }
    if fastai is not None:
        for name, kind in FASTAI.items():
            turns[name] = fastai.prepare("fastai_side.loop", kind=kind, steps=steps)
    return turns


def rows(report: Report, samples: Samples) -> list[list[str]]:
    """Each contestant's time a step, and what it adds to the hand-written loop of its side."""
    lines = []
    for name, measured in samples.items():
        middle = report.add(name, MEASURE, measured[MEASURE])
        plain = FASTAI_PLAIN if name in FASTAI else PLAIN
        added = paired_difference(measured[MEASURE], samples[plain][MEASURE])
        if name != plain:
            report.results[name][MEASURE]["added"] = round(added, 3)
        lines.append([name, f"{middle:.1f}", "" if name == plain else f"{added:+.1f}"])
    return lines


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args()
    options.rounds = options.rounds or (3 if options.quick else 21)
    steps = STEPS // 4 if options.quick else STEPS
    torch.set_num_threads(1)
    report = Report("loop", options, steps=steps, threads=1, batch_size=64, net="16-32-4")
    report.versions["treadle"] = versions("torch", "treadle")
    with sides(report.having(homes(options.peer), "fastai")) as others:
        fastai = others.get("fastai")
        report.meet(others)
        samples = interleave(contestants(steps, fastai), options.rounds)
    report.show(["µs a step", "in all", "added by fit"], rows(report, samples))
    report.write()


if __name__ == "__main__":
    main()
