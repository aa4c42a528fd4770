"""Microseconds a step of a training: by hand, with Treadle, and with the libraries beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from common import (
    Report,
    Samples,
    Turn,
    arguments,
    interleave,
    paired_difference,
    paired_ratio,
    versions,
)
from peers import Side, homes, side
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.metrics import accuracy
from workloads import LR, STEPS, batches, by_hand, loop_turn, net, plain_loop

FUSED, PLAIN = "by hand, torch's fused AdamW", "by hand, Treadle's Adam"
BARE = "Treadle, no callbacks"
FULL = "Treadle, recorder, one-cycle, accuracy, progress"


@dataclass(frozen=True)
class Peer:
    """A library to compare with: its trainings by row, and the loop by hand beside them."""

    fits: Mapping[str, str]
    by_hand: str = "workloads.by_hand"


PEERS = {
    "pytorch-ignite": Peer({"Ignite, loss logged": "ignite_side.fit"}),
    "skorch": Peer({"skorch, its defaults": "skorch_side.fit"}),
    "lightning": Peer({"Lightning, loss logged": "lightning_side.fit"}),
    "fastai": Peer(
        {
            "fastai, its defaults": "fastai_side.fit",
            "fastai, recorder, one-cycle, accuracy": "fastai_side.fit_one_cycle",
        },
        by_hand="fastai_side.by_hand",
    ),
    "transformers": Peer({"transformers Trainer, constant rate": "transformers_side.fit"}),
}
"""By the name under which the library is installed."""

HAND = "by hand, beside {}"
BESIDE = {BARE: PLAIN, FULL: PLAIN} | {
    fit: HAND.format(library) for library, peer in PEERS.items() for fit in peer.fits
}
"""The loop by hand to which a training is compared: of the same process and optimizer."""

MEASURE, START = "us a step", "ms, fit of one step"
ALONE = ", one step"
BARS = {FULL: ("x fused", 1.0), BARE: ("added", 10.0)}
"""What Treadle must reach: how it is measured, and the most that it may be."""


def treadle(steps: int) -> dict[str, Turn]:
    """The contestants of this process. Every turn trains a new net with a new optimizer; making
    them is not timed."""
    train, valid = batches(steps), batches(1)

    def turns(work: Callable[[Learner], object], **settings: Any) -> Turn:
        def turn() -> dict[str, float]:
            dls = DataLoaders(train, valid, device="cpu")
            learn = Learner(dls, net(), F.cross_entropy, **settings)
            learn.create_opt()
            return loop_turn(lambda: work(learn), steps)

        return turn

    return {
        FUSED: by_hand(steps),
        # with the learner's optimizer, so that only the loop differs
        PLAIN: turns(lambda learn: plain_loop(learn.model, learn.opt, train, valid)),
        BARE: turns(lambda learn: learn.fit(1), default_cbs=False),
        FULL: turns(lambda learn: learn.fit_one_cycle(1, LR), metrics=accuracy),
    }


def contestants(steps: int, others: Mapping[str, Side]) -> dict[str, Turn]:
    """Treadle and the libraries in `others`; a training of one step of each as well."""
    turns = treadle(steps)
    alone = {name: turn for name, turn in treadle(1).items() if name in BESIDE}
    for library, other in others.items():
        peer = PEERS[library]
        turns[HAND.format(library)] = other.prepare(peer.by_hand, steps=steps)
        for name, workload in peer.fits.items():
            turns[name] = other.prepare(workload, steps=steps)
            alone[name] = other.prepare(workload, steps=1)
    return turns | {name + ALONE: turn for name, turn in alone.items()}


def rows(report: Report, samples: Samples) -> list[list[str]]:
    """Each contestant's time a step, beside its own loop by hand and the one with torch's fused."""
    taken = {
        name: measured[MEASURE] for name, measured in samples.items() if not name.endswith(ALONE)
    }
    middle = {name: report.add(name, MEASURE, values) for name, values in taken.items()}
    lines = []
    for name in [FUSED, PLAIN, *(name for name in BESIDE if name in taken)]:
        numbers = report.results[name][MEASURE]
        ratio = paired_ratio(taken[name], taken[FUSED])
        numbers["x fused"] = round(ratio, 3)
        line = [name, f"{middle[name]:.1f}", f"{ratio:.2f}", "", "", ""]
        if own := BESIDE.get(name):
            added = paired_difference(taken[name], taken[own])
            numbers["added"] = round(added, 3)
            start = report.add(name, START, [us / 1e3 for us in samples[name + ALONE][MEASURE]])
            line[3:] = [f"{middle[own]:.1f}", f"{added:+.1f}", f"{start:.1f}"]
        lines.append(line)
    return lines


def bars(report: Report) -> list[list[str]]:
    """What was reached beside what must be."""
    titles = {"x fused": "× by hand, fused", "added": "µs added by fit"}
    lines = []
    for name, (measure, most) in BARS.items():
        reached = report.results[name][MEASURE][measure]
        title = f"{name}: {titles[measure]}"
        lines.append([title, f"{most:.3f}", f"{reached:.3f}", "yes" if reached <= most else "no"])
    return lines


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args()
    options.rounds = options.rounds or (3 if options.quick else 21)
    steps = STEPS // 4 if options.quick else STEPS
    torch.set_num_threads(1)
    report = Report("loop", options, steps=steps, threads=1, batch_size=64, net="16-32-4")
    report.versions["treadle"] = versions("torch", "treadle")
    where = report.having(homes(options.peer), *PEERS)
    with ExitStack() as stack:
        # A process each, though some share an interpreter: what one library does to a process
        # when it is imported must not be measured as another's.
        others = {
            library: stack.enter_context(side(python, HF_HUB_OFFLINE="1"))
            for library, python in where.items()
        }
        report.meet(others)
        samples = interleave(contestants(steps, others), options.rounds)
    header = ["µs a step", "in all", "× by hand, fused", "its loop by hand", "added by fit"]
    report.show([*header, "fit of one step, ms"], rows(report, samples))
    report.show(["what Treadle must reach", "at most", "reached", "met"], bars(report))
    report.write()


if __name__ == "__main__":
    main()
