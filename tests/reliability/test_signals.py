"""A fit that is asked to end leaves with a checkpoint, and goes on from it with the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from checkpoint_kit import in_child
from resume_cases import CASES, outcome

from treadle.callbacks import CheckpointCallback, Every
from treadle.errors import UsageError
from treadle.loop import Callback, Preempted
from treadle.run.checkpoint import newest_checkpoint

RARELY = Every(updates=1000)


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Here processes are interrupted, not the machine: what is written need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture
def heard():
    """Handlers of the user's, for the time of a test, and the signals that they heard."""
    came: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, lambda n, _: came.append(n))
    mine = {n: signal.getsignal(n) for n in before}
    yield came
    assert mine == {n: signal.getsignal(n) for n in before}, "not the handlers of before"
    for number, handler in before.items():
        signal.signal(number, handler)


class Send(Callback):
    """Sends a signal to this process at an event, when it is the `nth` time that it comes."""

    order = math.inf
    run_after = CheckpointCallback
    state_names = ()

    def __init__(self, moment: str, nth: int = 1, number: int = signal.SIGTERM) -> None:
        super().__init__(**{moment: self.send})
        self.left, self.number = nth, number

    def send(self, _: Callback) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@cache
def uninterrupted(name: str) -> dict[str, str]:
    with TemporaryDirectory() as folder:
        learn = CASES[name].learner(Path(folder), seed=1)
        with learn.no_logging():
            CASES[name].train(learn)
        return outcome(learn)


def resumed(name: str, path: Path) -> dict[str, str]:
    learn = CASES[name].learner(path, seed=2)
    with learn.no_logging():
        learn.resume()
    return outcome(learn)


def signalled(name: str, path: Path, send: Send) -> Preempted:
    learn = CASES[name].learner(path, seed=1)
    with learn.no_logging(), pytest.raises(Preempted) as left:
        CASES[name].train(learn, cbs=send, checkpoint=RARELY)
    assert left.value.checkpoint == newest_checkpoint(path / "checkpoints")
    return left.value


MOMENTS = [
    ("everything", "before_fit", 1),
    ("everything", "before_step", 2),
    ("everything", "before_batch", 2),  # in a window that is half full
    ("everything", "after_train", 1),
    ("everything", "before_validate", 2),
    ("everything", "after_pred", 7),  # in the second batch of the first validation
    ("everything", "after_validate", 1),
    ("everything", "after_epoch", 2),
    ("everything", "after_epoch", 3),  # when the last epoch is over
    ("everything", "after_fit", 1),
    ("schedule_free", "before_validate", 1),
    ("torch", "before_validate", 2),
    ("plateau", "before_validate", 3),
    ("fine_tune", "after_fit", 1),  # of the first of its two fits
    ("short", "before_validate", 1),
]


@pytest.mark.parametrize(("name", "moment", "nth"), MOMENTS)
def test_a_signal_at_any_moment(name, moment, nth, tmp_path, heard):
    left = signalled(name, tmp_path, Send(moment, nth))
    assert (left.code, left.reason) == (143, "SIGTERM")
    assert resumed(name, tmp_path) == uninterrupted(name)
    assert heard == []


def test_a_resumed_validation_can_be_left_again(tmp_path, heard):
    signalled("everything", tmp_path, Send("before_validate", 2))
    for nth in (1, 2):
        learn = CASES["everything"].learner(tmp_path, seed=2)
        with learn.no_logging(), pytest.raises(Preempted):
            learn.resume(cbs=Send("before_validate", nth, signal.SIGUSR1))
    assert resumed("everything", tmp_path) == uninterrupted("everything")


def test_random_moments(tmp_path):
    program = Path(__file__).with_name("signalled.py")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a forked process waits for threads it lacks
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "30", "1"],
        capture_output=True,
        text=True,
        check=False,
        env=alone,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["signals"] >= 30
    assert told["leave"] < 5


def test_the_time_limit(tmp_path, heard):
    learn = CASES["everything"].learner(tmp_path, seed=1)
    checkpoint = CheckpointCallback(max_minutes=1e-9)
    with learn.no_logging(), pytest.raises(Preempted) as left:
        CASES["everything"].train(learn, cbs=checkpoint)
    assert (left.value.code, learn.iter, learn.epoch) == (75, 0, 0)
    assert "time limit of 6e-08 seconds" in str(left.value)
    assert resumed("everything", tmp_path) == uninterrupted("everything")


def test_the_time_limit_is_not_reached(tmp_path, heard):
    learn = CASES["schedule_free"].learner(tmp_path, seed=1)
    with learn.no_logging():
        CASES["schedule_free"].train(learn, cbs=CheckpointCallback(max_minutes=60))
    assert outcome(learn) == uninterrupted("schedule_free")
    with pytest.raises(UsageError, match="max_minutes"):
        CheckpointCallback(max_minutes=0)


def test_what_the_fit_changed_is_undone_when_it_leaves(tmp_path, heard):
    learn = CASES["everything"].learner(tmp_path, seed=1)
    before = list(learn.cbs), learn.window, learn.loss_func, learn.logger
    with learn.no_logging(), pytest.raises(SystemExit):
        CASES["everything"].train(learn, cbs=Send("before_step"), checkpoint=RARELY)
    assert (learn.cbs, learn.window, learn.loss_func, learn.logger) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("treadle")]


def test_an_uncaught_one_ends_the_process_with_its_status(tmp_path):
    def work() -> None:
        torch.set_num_threads(1)
        learn = CASES["schedule_free"].learner(tmp_path, seed=1)
        with learn.no_logging():
            learn.fit(1, cbs=Send("before_step", 1, signal.SIGUSR1), checkpoint=RARELY)

    def uncaught() -> None:
        try:
            work()
        except SystemExit as left:  # as the interpreter does
            os._exit(left.code)

    assert in_child(uncaught) == 128 + signal.SIGUSR1


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    def work() -> None:
        torch.set_num_threads(1)
        learn = CASES["schedule_free"].learner(tmp_path, seed=1)
        twice = [Send("before_batch", 1), Callback(before_step=lambda _: time.sleep(60))]
        with learn.no_logging():
            learn.fit(1, cbs=[*twice, Again()], checkpoint=RARELY)

    class Again(Send):
        def __init__(self) -> None:
            super().__init__("after_loss", 1, signal.SIGUSR1)

    assert in_child(work) == -signal.SIGUSR1


def test_ctrl_c_among_the_signals(tmp_path):
    learn = CASES["schedule_free"].learner(tmp_path, seed=1)
    checkpoint = CheckpointCallback(RARELY, signals=(signal.SIGINT, signal.SIGTERM))
    with learn.no_logging(), pytest.raises(Preempted) as left:
        learn.fit(3, 0.01, cbs=[checkpoint, Send("after_loss", 2, signal.SIGINT)])
    assert left.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resumed("schedule_free", tmp_path) == uninterrupted("schedule_free")


def test_without_checkpoints_nothing_about_signals_changes(tmp_path, heard):
    during = []
    learn = CASES["schedule_free"].learner(tmp_path, seed=1)
    look = Callback(after_batch=lambda _: during.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    with learn.no_logging():
        learn.fit(1, cbs=[look, Send("before_step")])
    assert set(during) == {before}
    assert heard == [signal.SIGTERM]


def test_in_another_thread_no_signal_is_heard(tmp_path, heard):
    learn = CASES["schedule_free"].learner(tmp_path, seed=1)
    before, during = signal.getsignal(signal.SIGTERM), []

    def look(_: Callback) -> None:
        during.append(signal.getsignal(signal.SIGTERM))

    def work() -> None:
        with learn.no_logging():
            learn.fit(1, cbs=Callback(after_batch=look), checkpoint=RARELY)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert set(during) == {before}
    assert newest_checkpoint(tmp_path / "checkpoints")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        learn = CASES["schedule_free"].learner(tmp_path, seed=1)
        with learn.no_logging():
            learn.fit(1, cbs=Send("before_step", 1, signal.SIGUSR1), checkpoint=RARELY)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
