"""A fit that was interrupted and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from resume_cases import CASES, outcome

from treadle.callbacks import CheckpointCallback, Every
from treadle.loop import Callback

EVERY_BATCH = Every(minutes=1e-9)


class Interrupted(Exception):
    """What a test throws into a fit."""


class Interrupt(Callback):
    """Ends a fit, or what comes after it, when so many batches have been trained by this one."""

    order = 20
    run_valid = False

    def __init__(self, batches: int) -> None:
        self.left = batches

    def after_batch(self):
        self.left -= 1
        if self.left < 0:
            raise Interrupted


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Here processes are interrupted, not the machine: what is written need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@cache
def uninterrupted(name: str) -> dict[str, str]:
    """What comes out of a run without any checkpoint."""
    with TemporaryDirectory() as folder:
        learn = CASES[name].learner(Path(folder), seed=1)
        seen = Interrupt(10**9)
        with learn.no_logging():
            CASES[name].train(learn, cbs=seen)
        assert 10**9 - seen.left == CASES[name].batches
        return outcome(learn)


def interrupted(name: str, path: Path, batches: int, every: Every = EVERY_BATCH) -> None:
    learn = CASES[name].learner(path, seed=1)
    with learn.no_logging(), pytest.raises(Interrupted):
        CASES[name].train(learn, cbs=Interrupt(batches), checkpoint=every)


def resumed(name: str, path: Path, workers: int = 0, cache: str | None = None) -> dict[str, str]:
    learn = CASES[name].learner(path, seed=2, workers=workers, cache=cache)
    with learn.no_logging():
        learn.resume()
    return outcome(learn)


def stops() -> list[tuple[str, int]]:
    """For each case: the first batch, the end of the first epoch and the first after it, the last
    one, and some between."""
    drawn = random.Random(7)
    found = []
    for name, case in CASES.items():
        last = case.batches - 1
        between = drawn.sample(range(2, last), 3)
        found += [(name, batches) for batches in sorted({1, 4, 5, 6, last, *between})]
    return found


@pytest.mark.parametrize(("name", "batches"), stops())
def test_a_resumed_fit_ends_with_the_same_bits(name, batches, tmp_path):
    interrupted(name, tmp_path, batches)
    assert resumed(name, tmp_path) == uninterrupted(name)
