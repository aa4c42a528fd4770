"""Fits in several processes that a notebook or a script of one process starts for them."""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ranks import on_ranks
from treadle.callbacks import CheckpointCallback, Every
from treadle.data import DataLoaders
from treadle.distributed import DDP
from treadle.errors import CallbackError, RankError, UsageError
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.loop.signals import Preempted
from treadle.metrics import accuracy
from treadle.optim import Adam
from treadle.world import world


def _learner(path=".", norm=False, **options):
    torch.manual_seed(0)
    x = torch.randn(72, 6, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    dls = DataLoaders.from_dsets(data, data, global_bs=16, num_workers=0, device="cpu", seed=3)
    first = nn.BatchNorm1d(6) if norm else nn.Identity()
    model = nn.Sequential(first, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    options = {"opt_func": Adam, "lr": 0.01, "metrics": accuracy, "path": path, **options}
    return Learner(dls, model, nn.CrossEntropyLoss(), **options)


def _weights(learn):
    return torch.cat([t.detach().flatten().float() for t in learn.model.state_dict().values()])


def _threads():
    return list(Path("/proc/self/task").iterdir())


def _moments(learn):
    stats = learn.opt.state_dict()["state"]
    return [t for i in sorted(stats) for _, t in sorted(stats[i].items()) if torch.is_tensor(t)]


@pytest.fixture(autouse=True)
def no_process_is_left():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert not mp.active_children()
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert not [thread for thread in threading.enumerate() if thread.name == "treadle-launch"]


class Counts(Callback):
    """Counts batches, and keeps the count."""

    state_names = ("seen", "total")

    def before_fit(self):
        self.seen, self.total = 0, 0.0

    def after_loss(self):
        self.seen += 1
        self.total += self.loss.item() * self.training


def _fitted(learn, n):
    lasting, given = Counts(), Counts()
    learn.add_cb(lasting)
    with learn.distributed(n):
        learn.fit_one_cycle(2, 0.01, cbs=Callback(after_step=lambda cb: None))
        learn.remove_cb(lasting)
        learn.fit(1, cbs=given)
    return lasting, given


@pytest.mark.parametrize("parallel", [None, "fsdp"])
def test_the_learner_is_as_if_the_fits_had_been_here(parallel, capfd):
    alone, several = _learner(), _learner(parallel=parallel)
    expected, found = _fitted(alone, 1), _fitted(several, 2)
    assert (_weights(alone) - _weights(several)).abs().max() < 1e-6
    assert not any(hasattr(p, "full_tensor") for p in several.model.parameters())
    for mine, theirs in zip(_moments(alone), _moments(several), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    mine, theirs = alone.recorder, several.recorder
    assert theirs.losses == pytest.approx(mine.losses, rel=1e-5)
    assert theirs.values == [pytest.approx(row, rel=1e-5) for row in mine.values]
    assert theirs.hypers == mine.hypers and theirs.iters == mine.iters
    assert [row[0] for row in theirs.rows] == [0] and theirs.rows[0][-1] > 0
    assert several.dls.train.epoch == alone.dls.train.epoch == 3
    assert several.dls.train.world.size == 1 and several.parallel.world.size == 1
    for one, other in zip(expected, found, strict=True):
        assert other.seen == one.seen > 0 and other.total == pytest.approx(one.total, rel=1e-5)
    assert several.updates == alone.updates and several.opt.hypers == alone.opt.hypers
    assert several.validate() == pytest.approx(alone.validate(), rel=1e-5)
    printed = capfd.readouterr()
    tables = [line.split()[:-1] for line in printed.out.splitlines()]
    assert tables[: len(tables) // 2] == tables[len(tables) // 2 :] and len(tables) == 10
    assert printed.err == ""


def test_options_of_the_strategy_are_kept():
    alone, several = _learner(norm=True), _learner(norm=True, parallel=DDP(sync_bn=True))
    alone.fit(2)
    with several.distributed(3):
        several.fit(2)
    assert (_weights(alone) - _weights(several)).abs().max() < 1e-6


def test_what_does_not_train_runs_here():
    seen = []
    learn = _learner(cbs=Callback(before_validate=lambda cb: seen.append(os.getpid())))
    with learn.distributed(2) as same:
        assert same is learn
        losses = learn.validate()
        preds, targets = learn.get_preds()
        learn.lr_find(num_it=10, show_plot=False)
        with learn.distributed(1):
            learn.fit(1)
        n_here = len(seen)
        learn.plot_plan(learn.fit, 1)
        learn.fit_flat_cos(1)
    assert losses and preds.shape == (72, 2) and len(targets) == 72
    assert set(seen) == {os.getpid()} and len(seen) == n_here >= 3
    learn.fit(1)
    assert len(seen) == n_here + 1


def test_every_thread_of_this_process_is_a_share_of_theirs():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert torch.randn(1_000_000).sin().sum() < 1e6  # as in lr_find: they are there
        learn = _learner()

        def work(cb):
            assert torch.get_num_threads() == 2
            assert torch.randn(1_000_000).sin().sum() < 1e6

        with learn.distributed(2):
            learn.fit(1, cbs=Callback(after_step=work))
    finally:
        torch.set_num_threads(before)


class Fails(Callback):
    def __init__(self, how, rank=1):
        self.how, self.rank = how, rank

    def after_step(self):
        if world().rank == self.rank and self.iter == 2:
            self.how()


def _raise(error):
    raise error


FAILURES = {
    "by an error": (
        lambda: _raise(ValueError("no such thing")),
        RankError,
        "^rank 1 raised ValueError: no such thing$",
    ),
    "by one of Treadle": (
        lambda: _raise(CallbackError("give a number")),
        CallbackError,
        r"^give a number \(in the process of rank 1\)$",
    ),
    "killed": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        RankError,
        r"^rank 1 .*was (ended|killed) by SIGKILL",
    ),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_fit_that_fails_leaves_the_learner_as_it_was(how, capfd):
    work, kind, told = FAILURES[how]
    learn = _learner()
    learn.fit(1)
    before, rows, drawn = _weights(learn), learn.recorder.rows, torch.get_rng_state()
    capfd.readouterr()
    began, threads = time.monotonic(), len(_threads())
    with pytest.raises(kind) as raised, learn.distributed(2):
        learn.fit(2, cbs=Fails(work))
    assert time.monotonic() - began < 15
    assert type(raised.value) is kind and re.search(told, str(raised.value))
    if how != "killed":
        assert "in after_step" in "".join(raised.value.__notes__)
    assert torch.equal(_weights(learn), before) and learn.recorder.rows is rows
    assert torch.equal(torch.get_rng_state(), drawn) and learn.dls.train.epoch == 1
    assert learn.processes is None and len(_threads()) == threads
    assert capfd.readouterr().err == ""
    learn.fit(1)


def test_ctrl_c_ends_them(tmp_path):
    learn, there = _learner(), tmp_path / "there"
    before = _weights(learn)

    def wait(cb):
        there.touch()
        time.sleep(30)

    def interrupt():
        while not there.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), learn.distributed(2):
        learn.fit(1, cbs=Callback(after_step=wait))
    assert time.monotonic() - began < 15
    assert torch.equal(_weights(learn), before)


def test_checkpoints_are_gone_on_with(tmp_path):
    alone = _learner(tmp_path / "alone")
    alone.fit_one_cycle(3, 0.01)
    stopped, several = _learner(tmp_path), _learner(tmp_path)
    leaves = CheckpointCallback(Every(updates=1), max_minutes=0.2 / 60)
    slow = Callback(after_step=lambda cb: time.sleep(0.05))
    with pytest.raises(Preempted, match="time limit") as left, stopped.distributed(2):
        stopped.fit_one_cycle(3, 0.01, cbs=[leaves, slow])
    assert left.value.code == 75 and left.value.checkpoint.is_dir()
    with several.distributed(2):
        several.resume(cbs=slow)
    assert (_weights(alone) - _weights(several)).abs().max() < 1e-6
    assert several.recorder.losses == pytest.approx(alone.recorder.losses, rel=1e-5)


def _trains_for_long(folder):
    def wait(cb):
        (folder / f"{os.getpid()}").touch()
        time.sleep(60)

    learn = _learner()
    with learn.distributed(2):
        learn.fit(1, cbs=Callback(after_step=wait))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_do_not_outlive_their_parent(number, tmp_path, tmp_path_factory, monkeypatch):
    left = tmp_path_factory.mktemp("left")
    monkeypatch.setattr(tempfile, "tempdir", str(left))
    parent = mp.get_context("fork").Process(target=_trains_for_long, args=(tmp_path,))
    parent.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    os.kill(parent.pid, number)
    parent.join(15)
    assert parent.exitcode == -number
    assert number == signal.SIGKILL or not list(left.iterdir())
    until = time.monotonic() + 10
    while any(_is_there(file.name) for file in tmp_path.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.02)


def _is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_numbers_that_cannot_be_meant():
    learn = _learner()
    with pytest.raises(UsageError, match="1 or more"), learn.distributed(0):
        pass
    assert learn.processes is None


def _within():
    learn = _learner()
    with learn.distributed(2):
        learn.fit(1)
    with pytest.raises(UsageError, match="one of 2 processes"), learn.distributed(3):
        pass
    return os.getpid(), _weights(learn)


def test_where_torchrun_has_started_them_nothing_is_started():
    alone = _learner()
    alone.fit(1)
    for _, weights in on_ranks(2, _within):
        assert (weights - _weights(alone)).abs().max() < 1e-6


def test_a_gpu_in_use_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    learn = _learner()
    with pytest.raises(UsageError, match="torchrun"), learn.distributed(2):
        learn.fit(1)
