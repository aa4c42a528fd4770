"""What checkpoints of 100 MB cost a training, measured in one that goes on.

In windows of so many updates, by turns with and without a checkpoint: the difference of two that
follow one another is the cost of one checkpoint, all of it: the copy that the training thread waits
for, and the processor, memory and disk that the writing takes from the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import nn

from common import Report, paired_difference
from treadle.callbacks import CheckpointCallback, Every
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop import Callback
from treadle.losses import MSELossFlat
from treadle.optim import Adam

WIDTH, BATCH_SIZE, UPDATES = 2048, 64, 100  # a window: some three seconds on two cores
BARS = {"wait, ms": 50, "of a minute, %": 1.0}


class Timed(CheckpointCallback):
    """Notes for how long the training thread was held by each checkpoint."""

    def __init__(self, every: Every) -> None:
        super().__init__(every)
        self.held: list[float] = []

    def after_batch(self) -> None:
        before, start = self.written, time.perf_counter()
        super().after_batch()
        if self.written != before:
            self.held.append(time.perf_counter() - start)


class Windows(Callback):
    """Notes when each window begins: wall time, and processor time of all threads."""

    order = math.inf
    run_before = CheckpointCallback  # so that a checkpoint is in the window that it begins
    run_valid = False
    state_names = ()

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def after_batch(self) -> None:
        if self.learn.updates % UPDATES == 0:
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())


def learner(folder: Path, batches: int) -> Learner:
    """A network whose weights and averages are 100 MB, on batches that lie in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH // 2, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH // 2),
    )
    batch = torch.randn(BATCH_SIZE, WIDTH // 2), torch.randn(BATCH_SIZE, WIDTH // 2)
    dls = DataLoaders([batch] * batches)
    return Learner(dls, model, MSELossFlat(), Adam, lr=1e-4, path=folder)


def measure(report: Report, folder: Path) -> None:
    """Seconds of waiting, and what a checkpoint a minute costs."""
    pairs = report.options.rounds
    windows, timed = Windows(), Timed(Every(updates=2 * UPDATES))
    # The first makes its memory, so that its window and the one behind it do not count.
    learn = learner(folder, batches=(2 * pairs + 4) * UPDATES)
    with learn.no_logging():
        learn.fit(1, cbs=[windows, timed])
    size = sum(file.stat().st_size for file in timed.writer.last.iterdir()) / 1e6
    held = [1e3 * seconds for seconds in timed.held[1:]]
    wait = report.add("a checkpoint", "wait, ms", held, digits=1)
    longest = report.add("a checkpoint", "longest wait, ms", [max(held)], digits=1)
    first = report.add("a checkpoint", "first wait, ms", [1e3 * timed.held[0]], digits=1)
    wall, cpu = (_costs(report, name, getattr(windows, name)) for name in ("wall", "cpu"))
    report.note(
        f"{len(held)} checkpoints of {size:.0f} MB: the training thread waited {wait:.0f} ms "
        f"(longest {longest:.0f}, the first {first:.0f}; bar {BARS['wait, ms']}). One a minute "
        f"costs {wall:.2f} % of the time and {cpu:.2f} % of the processor (bar "
        f"{BARS['of a minute, %']:g} %)."
    )


def _costs(report: Report, name: str, marks: Sequence[float]) -> float:
    """The cost of a checkpoint in percent of a minute."""
    lengths = [after - before for before, after in pairwise(marks)]
    with_one, without = lengths[3::2], lengths[4::2]
    pairs = list(zip(with_one, without, strict=False))
    per_minute = [100 * (a - b) / 60 for a, b in pairs]
    report.add("a checkpoint", f"{name}, s a window without", [median(without)])
    seconds = paired_difference(*zip(*pairs, strict=True))
    report.add("a checkpoint", f"{name}, s", [seconds])
    return report.add("a checkpoint", f"{name}, % of a minute", per_minute, digits=2)
