"""Ctrl-C at any moment leaves a learner that can be used, and as it was."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback

import interrupt_kit as kit
import pytest
import torch
from checkpoint_kit import in_child
from torch import nn

from treadle import native
from treadle.data import DataLoaders
from treadle.interrupts import interruptible, scoped, undivided
from treadle.learner import Learner
from treadle.loop import Callback

MOMENTS = int(os.environ.get("TREADLE_TEST_INTERRUPTS", "200"))
SHARES = {"fit_one_cycle": 7, "fine_tune": 4, "lr_find": 4, "validate": 2, "get_preds": 2}
SHARES |= {"no_logging": 1}  # of 20


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("treadle.callbacks.progress.make_display", kit.terminal)
    # What is raised in one of these (hypothesis has one, once it was used) Python drops.
    kept = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(kept)


@pytest.mark.parametrize(("workers", "mixed"), [(0, "mixup"), (2, "cutmix")])
def test_at_random_moments(workers, mixed, tmp_path):
    drawn = random.Random(workers)
    learn = kit.learner(tmp_path, workers, mixed)
    done = 0
    for name, verb in kit.VERBS.items():
        verb(learn)
        seconds = kit.seconds_of(verb, learn)
        wanted = max(MOMENTS * SHARES[name] // 40, 1)
        found = 0
        while found < wanted:
            before, bits = kit.standing(learn), kit.weights(learn)
            after = drawn.uniform(0, seconds)
            found += kit.interrupted(verb, learn, after)
            told = f"{name} interrupted after {after:.6f} s"
            assert kit.standing(learn) == before, told
            if name in ("lr_find", "no_logging"):
                assert kit.weights(learn) == bits, told
            kit.check_usable(learn, tmp_path)
            learn.unfreeze()
        done += found
    assert done >= MOMENTS // 2


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_undivided_call_is_done_before_it_is_interrupted():
    done = []

    @undivided
    def inner() -> None:
        press()
        done.append("inner")

    @undivided
    def outer() -> None:
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_within_an_undivided_call_what_is_interruptible_is_interrupted_at_once():
    done = []

    @interruptible
    def batches() -> None:
        try:
            press()
            done.append("not reached")
        finally:
            clean()

    @undivided
    def clean() -> None:
        press()  # a second one, soon after
        done.append("cleaned")

    @undivided
    def outer() -> None:
        try:
            batches()
        finally:
            press()
            done.append("undone")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["cleaned", "undone"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_asks_again_after_a_second_is_not_made_to_wait(monkeypatch):
    monkeypatch.setattr("treadle.interrupts._PATIENCE_S", 0.01)
    done = []

    @undivided
    def hangs() -> None:
        press()
        done.append("waited")
        time.sleep(0.02)
        press()
        done.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        hangs()
    assert done == ["waited"]


def test_a_scope_that_is_interrupted_while_it_opens_is_undone():
    done = []

    @scoped
    def scope():
        try:
            press()
            done.append("entered")
            yield
        finally:
            press()
            done.append("left")

    with pytest.raises(KeyboardInterrupt), scope():
        done.append("not reached")
    assert done == ["entered", "left"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_scope_keeps_its_error_and_may_swallow_it():
    @scoped
    def scope():
        with pytest.raises(ZeroDivisionError):
            yield 3

    with scope() as value:
        raise ZeroDivisionError
    assert value == 3


def test_a_handler_of_the_users_is_asked_in_the_end():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        undivided(press)()
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_the_call_sets_stays():
    def mine(number: int, frame: object) -> None:
        pass

    before = signal.getsignal(signal.SIGINT)
    try:
        undivided(signal.signal)(signal.SIGINT, mine)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_is_not_interrupted_for_the_main_one():
    @undivided
    def main() -> None:
        press()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    @undivided
    def other() -> None:
        with scoped(nothing)():
            done.append("in a thread")

    def nothing():
        yield

    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        main()
    assert done == ["in a thread"]


def test_an_optimizer_steps_whole_or_not_at_all(tmp_path):
    learn = kit.learner(tmp_path, 0, "mixup")
    steps = []
    cbs = [Callback(before_step=lambda _: press(), after_step=lambda _: steps.append(1))]
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=cbs)
    assert steps == [1]
    assert (learn.updates, len(learn.recorder.losses)) == (1, 1)


class Slow(torch.utils.data.Dataset):
    """Takes longer to read than one waits."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.5)
        return torch.ones(1), torch.ones(1)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork beside threads
def test_processes_of_torchs_loader_end_with_the_fit(tmp_path):
    slow = torch.utils.data.DataLoader(Slow(), 2, num_workers=2)
    learn = Learner(DataLoaders(slow, slow), nn.Linear(1, 1), nn.MSELoss(), path=tmp_path)
    main = threading.get_ident()

    def press_while_it_waits() -> None:
        while "_try_get_data" not in "".join(traceback.format_stack(sys._current_frames()[main])):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=press_while_it_waits).start()
    with learn.no_logging(), pytest.raises(KeyboardInterrupt) as caught:
        learn.fit(1)
    assert caught.value.__traceback__ is not None  # which holds on to the loader's iterator
    assert multiprocessing.active_children() == []


def test_ctrl_c_does_not_reach_the_compiler(monkeypatch, tmp_path):
    """In a terminal all processes of the group get it. Without the kernel steps would be slow."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    compiler = tmp_path / "slow-cc"
    begun = tmp_path / "begun"
    slow = f'case "$*" in *kernel.c*) echo >> {begun}; sleep 0.3;; esac'
    compiler.write_text(f'#!/bin/sh\n{slow}\nexec {_cc()} "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    for known in (native._compiler, native._version):
        known.cache_clear()

    def work() -> None:
        os.setpgid(0, 0)

        def press_all() -> None:
            while not begun.exists():
                time.sleep(0.01)
            os.killpg(0, signal.SIGINT)

        threading.Thread(target=press_all).start()
        built = []
        try:
            undivided(lambda: built.append(native.build("void run(void *work) {}")))()
        except KeyboardInterrupt:
            os._exit(len(begun.read_text()) if built else 9)  # how often it was tried

    try:
        assert in_child(work) == 1
    finally:
        for known in (native._compiler, native._version):
            known.cache_clear()


def _cc() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("there is no C compiler")
    return found
