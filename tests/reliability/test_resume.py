"""A fit that was interrupted and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from resume_cases import BS, CASES, N_VALID, outcome

from treadle.callbacks import Every
from treadle.loop import Callback

EVERY_BATCH = Every(minutes=1e-9)


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
def test_killed_processes_lose_nothing(tmp_path):
    """As many kills as TREADLE_TEST_KILLS says, with 0 and with 2 workers."""
    kills = int(os.environ.get("TREADLE_TEST_KILLS", "10"))
    program = Path(__file__).with_name("killed.py")
    given = [str(tmp_path), "everything", str(kills), "1", "0", "2"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a forked process waits for threads it lacks
    done = subprocess.run(
        [sys.executable, str(program), *given],
        capture_output=True,
        text=True,
        check=False,
        env=alone,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 2 * kills
    assert told["early"] < told["kills"] / 2, "kills before the first checkpoint test nothing"
    assert told["wrong"] == {}
