"""A fit that was interrupted and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from killed import in_processes
from resume_cases import BS, CASES, N_VALID, outcome

from treadle.callbacks import Every
from treadle.loop import Callback

EVERY_BATCH = Every(minutes=1e-9)
OTHERS = [name for name in CASES if name != "everything"]


class Interrupted(Exception):
    """What a test throws into a fit."""


class Interrupt(Callback):
    """Ends a fit, or what comes after it, when so many batches have been trained by this one."""

    order = 20
    run_valid = False
    state_names = ()

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
    """For each case: the first epoch's last batch, one after it, one of the last epoch, another."""
    drawn = random.Random(7)
    found = []
    for name, case in CASES.items():
        other = drawn.randrange(1, case.batches)
        found += [(name, batches) for batches in sorted({4, 6, case.batches - 2, other})]
    return found


@pytest.mark.parametrize(("name", "batches"), stops())
def test_a_resumed_fit_ends_with_the_same_bits(name, batches, tmp_path):
    interrupted(name, tmp_path, batches)
    assert resumed(name, tmp_path) == uninterrupted(name)


@pytest.mark.parametrize("name", ["everything", "fine_tune"])
def test_as_often_as_it_is_interrupted(name, tmp_path):
    interrupted(name, tmp_path, 3)
    for _ in range(3):
        learn = CASES[name].learner(tmp_path, seed=2)
        with learn.no_logging(), pytest.raises(Interrupted):
            learn.resume(cbs=Interrupt(3))
    assert resumed(name, tmp_path) == uninterrupted(name)


@pytest.mark.parametrize("every", [Every(epochs=1), Every(updates=2), Every(epochs=2, updates=5)])
@pytest.mark.parametrize("name", ["everything", "torch"])
def test_however_often_it_is_checkpointed(name, every, tmp_path):
    interrupted(name, tmp_path, 13, every)
    assert resumed(name, tmp_path) == uninterrupted(name)


@pytest.mark.parametrize(("name", "batches"), [("fine_tune", 13), ("everything", 7), ("torch", 3)])
def test_from_the_beginning_of_a_fit(name, batches, tmp_path):
    """Whatever files that fit has written since: in fine_tune the best model of the second one lies
    where that of the first was."""
    interrupted(name, tmp_path, batches, Every(updates=100))
    assert resumed(name, tmp_path) == uninterrupted(name)


@pytest.mark.parametrize(("workers", "cache"), [(2, None), (1, "memory"), (3, "auto")])
def test_with_other_workers_and_another_cache(workers, cache, tmp_path):
    interrupted("everything", tmp_path, 8)
    assert resumed("everything", tmp_path, workers, cache) == uninterrupted("everything")


@pytest.mark.parametrize("moment", ["after_train", "after_validate", "after_epoch", "after_fit"])
def test_wherever_it_is_interrupted(moment, tmp_path):
    learn = CASES["everything"].learner(tmp_path, seed=1)

    def interrupt(cb: Callback) -> None:
        if cb.epoch == 2:
            raise Interrupted

    with learn.no_logging(), pytest.raises(Interrupted):
        CASES["everything"].train(
            learn, cbs=Callback(**{moment: interrupt}), checkpoint=EVERY_BATCH
        )
    assert resumed("everything", tmp_path) == uninterrupted("everything")


def test_a_fit_that_is_over_is_over(tmp_path):
    learn = CASES["everything"].learner(tmp_path, seed=1)
    with learn.no_logging():
        CASES["everything"].train(learn, checkpoint=Every(updates=100))
    again = CASES["everything"].learner(tmp_path, seed=2)
    heard = Callback(before_batch=lambda cb: pytest.fail("a batch was run again"))
    with again.no_logging():
        again.resume(cbs=heard)
    assert outcome(again) == outcome(learn) == uninterrupted("everything")


def test_no_batch_that_is_done_is_drawn_again(tmp_path, monkeypatch):
    interrupted("everything", tmp_path, 13)
    learn = CASES["everything"].learner(tmp_path, seed=2)
    block = learn.dls.train.dataset.blocks[0]
    read: list[int] = []
    whole = type(block).pixels
    monkeypatch.setattr(type(block), "pixels", lambda *args: read.append(1) or whole(*args))
    with learn.no_logging():
        learn.resume()
    assert len(read) == 2 * BS + N_VALID


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that were forked")
@pytest.mark.parametrize(
    ("names", "workers", "runs", "kills"),
    [(["everything"], 0, 100, 180), (["everything"], 2, 40, 40), (OTHERS, 0, 28, 28)],
    ids=["everything", "everything with workers", "the other cases"],
)
def test_killed_processes_lose_nothing(names, workers, runs, kills, tmp_path):
    tally = in_processes(tmp_path, names, workers, runs, kills, seeds=[1, 2])
    assert tally.wrong == []
    assert tally.runs >= runs
    assert tally.kills["all"] >= kills
    assert tally.share("before the first checkpoint") < 0.5, "such kills test little"
    assert tally.share("in mid-epoch") > 0.1
    assert tally.kills["while a checkpoint was written or removed"]
    assert tally.kills["of a process that had resumed"]
