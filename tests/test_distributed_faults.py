"""A process of a run that is killed, hangs or raises: what the others do."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from torch import nn

from ranks import on_ranks, outcomes
from treadle.callbacks import CheckpointCallback, Every
from treadle.data import DataLoaders
from treadle.distributed import heartbeat
from treadle.errors import RankError, UsageError
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.metrics import accuracy
from treadle.optim import Adam
from treadle.world import is_broken, world

AT_ONCE = 3.0
"""Seconds within which others learn of a process that is gone; time-outs are far longer."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"BEAT_S": 0.1, "SILENT_S": 0.6, "STUCK_S": 1.0, "EXPLAIN_S": 2.0}.items():
        monkeypatch.setattr(heartbeat, name, value)


class At(Callback):
    """Does something in one process, in the middle of the third batch's step."""

    state_names = ()

    def __init__(self, rank, act):
        self.rank, self.act = rank, act

    def before_step(self):
        if self.iter == 2:
            time.sleep(0.25)  # a beat or two
            if world().rank == self.rank:
                self.act()


def _data(n):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def _learner(n=40, n_valid=8, bs=8, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    dls = DataLoaders.from_dsets(
        _data(n),
        _data(n_valid),
        global_bs=bs,
        drop_last=False,
        num_workers=0,
        device="cpu",
        seed=3,
    )
    return Learner(dls, model, nn.CrossEntropyLoss(), Adam, lr=0.01, **options)


def _fit(rank, act, cbs=()):
    """How a fit ended, in how many seconds, and what else a process can do then."""
    learn = _learner(cbs=[At(rank, act), *cbs])
    began, cause = time.monotonic(), ""
    try:
        with learn.no_logging():
            learn.fit(1)
        ended = "trained"
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}"
        cause = type(error.__cause__).__name__
    return ended, cause, time.monotonic() - began


def test_one_process_has_no_watch():
    seen = []
    look = Callback(after_batch=lambda cb: seen.extend(t.name for t in threading.enumerate()))
    learn = _learner(cbs=[look])
    with learn.no_logging():
        learn.fit(1)
    assert seen and "treadle-watch" not in seen


def _own(error="the user's own"):
    raise RuntimeError(error)


def _loop():
    while True:
        pass


def _crash():
    faulthandler.disable()  # pytest's, which would print
    os.kill(os.getpid(), signal.SIGSEGV)


def _hold():
    """Killed, with a child that holds on to its connections."""
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


ENDS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
    "crashed": (_crash, "was killed by SIGSEGV"),
    "left": (lambda: os._exit(4), "ended with exit status 4"),
    "killed, but its workers": (_hold, "was killed by SIGKILL"),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_one_that_is_gone_is_named_at_once_by_all_others(how):
    act, said = ENDS[how]
    found = outcomes(3, _fit, 1, act)
    assert found[1][0] == "died"
    for rank in 0, 2:
        ended, cause, seconds = found[rank][1]
        assert re.match(rf"RankError: rank 1 \(process \d+ on .*\) {said}, last heard of in", ended)
        assert "update 2 (epoch 0, batch 2), at before_step (test_distributed_faults" in ended
        assert cause == "RuntimeError" and seconds < AT_ONCE


def test_one_that_raises_raises_its_own_and_the_others_name_it():
    (first, cause, seconds), (own, *_), (third, *_) = on_ranks(3, _fit, 1, _own)
    assert own == "RuntimeError: the user's own"
    assert first == third
    assert first.startswith("RankError: rank 1 raised RuntimeError: the user's own. All processes")
    assert cause == "RuntimeError" and seconds < AT_ONCE


def test_what_rank_0_raises_is_told_before_it_ends():
    """It keeps what the processes tell one another."""
    (own, *_), (second, *_) = on_ranks(2, _fit, 0, _own)
    assert own == "RuntimeError: the user's own"
    assert second.startswith("RankError: rank 0 raised RuntimeError: the user's own")


def test_rank_0_killed():
    ended, _, seconds = outcomes(2, _fit, 0, ENDS["killed"][0])[1][1]
    assert re.match(r"RankError: rank 0 \(process \d+ on .*\) (was killed|is gone)", ended)
    assert seconds < AT_ONCE


def test_one_in_an_endless_loop_is_named_and_ended_when_the_time_is_over():
    for ended, _, seconds in on_ranks_with(2, _fit, 1, _loop, TREADLE_TIMEOUT="1"):
        assert re.match(r"RankError: rank 1 \(process \d+ on .*\) keeps the others", ended)
        assert "update 2 (epoch 0, batch 2), at _loop (test_distributed_faults.py" in ended
        assert 1 < seconds < 1 + 2 * AT_ONCE


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (0, "rank 0 .*, or torchrun on its machine, does not answer"),
        (1, "rank 1 .* does not answer: last heard of [1-4] s ago, in update 2"),
    ],
)
def test_one_that_is_stopped_is_named_when_the_time_is_over(rank, said):
    found = outcomes(2, _fit_beside_one_that_is_stopped, rank, TREADLE_TIMEOUT="1")
    assert found[rank] == ("died", -signal.SIGKILL)
    ended, _, seconds = found[1 - rank][1]
    assert re.match(f"RankError: {said}", ended)
    assert 1 < seconds < 1 + AT_ONCE


def _fit_beside_one_that_is_stopped(rank):
    ended = _fit(rank, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    os.kill(world().processes[rank].pid, signal.SIGKILL)  # nobody else would
    return ended


def test_a_slow_one_does_no_harm():
    found = on_ranks_with(2, _fit, 1, lambda: time.sleep(1), TREADLE_TIMEOUT="3")
    assert [ended for ended, *_ in found] == ["trained", "trained"]


def _late():
    if world().rank == 1:
        while not world().processes[0].fate():
            time.sleep(0.05)
        return "late"
    return _fit(1, _own)[0]


def test_one_that_does_not_come_to_the_fit_is_named():
    first, second = on_ranks_with(2, _late, TREADLE_TIMEOUT="1")
    assert second == "late"
    assert re.match(r"RankError: rank 1 \(process .*\) has not come to this fit", first)


def _apart():
    """Rank 0 waits for a message that nobody sends."""
    return _fit(0, lambda: torch.distributed.recv(torch.zeros(1), src=1))[0]


def test_that_all_wait_for_one_another_is_told_with_the_places():
    for ended in on_ranks_with(2, _apart, TREADLE_TIMEOUT="1"):
        assert "the processes waited for one another" in ended
        assert "rank 0 in update 2" in ended and "rank 1 in update" in ended


def on_ranks_with(n, work, *args, **env):
    """`on_ranks` with environment variables."""
    found = outcomes(n, work, *args, **env)
    assert [kind for kind, _ in found] == ["returned"] * n, found
    return [what for _, what in found]


# Interrupts


def _interrupted(number):
    return _fit(1, lambda: os.kill(os.getpid(), number), [CheckpointCallback()])[0]


def test_ctrl_c_at_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = on_ranks(2, _interrupted, signal.SIGINT)
    assert second.startswith("KeyboardInterrupt")
    assert first.startswith("RankError: rank 1 raised KeyboardInterrupt")


def _told_to_end():
    """Rank 0 is told to end while it waits for rank 1, which is then killed."""

    def act():
        time.sleep(0.5)
        os.kill(world().processes[0].pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    return _fit(1, act, [CheckpointCallback()])


def test_sigterm_at_one_that_waits_for_one_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended, _, seconds = outcomes(2, _told_to_end)[0][1]
    assert re.match(r"RankError: rank 1 .* was killed by SIGKILL", ended)
    assert seconds < AT_ONCE


# What is left of the run


def _alike():
    """All raise the same, and nobody waits for anybody."""

    def refuse(cb):
        raise UsageError(f"refused by rank {world().rank}")

    learn = _learner(cbs=[Callback(before_step=refuse)])
    with learn.no_logging():
        with pytest.raises(UsageError, match=f"by rank {world().rank}"):
            learn.fit(1)
        told = world().all(world().rank)
        learn.remove_cb(Callback)
        learn.fit(1)
    return told


def test_an_error_that_all_raise_leaves_them_together():
    assert on_ranks(2, _alike) == [[0, 1], [0, 1]]


def _afterwards():
    ended, *_ = _fit(1, _own)
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 1 raised RuntimeError: the user's own"):
        world().all(1)
    return ended, world().rank, world().is_main, time.monotonic() - began


def test_one_that_left_waits_for_nobody_any_more():
    first, second = on_ranks(2, _afterwards)
    assert first[1:3] == (0, True) and second[1:3] == (1, False)
    assert first[3] < 0.5 and second[3] < 0.5


def _talk_outside():
    world()
    if world().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankError, match=r"rank 1 \(process \d+ on .*\) was killed by SIGKILL"):
        world().all(1)


def test_outside_of_a_fit_one_that_is_gone_is_named_too():
    assert outcomes(2, _talk_outside) == [("returned", None), ("died", -9)]


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[x/gloo/transport/tcp/pair.cc:1] Connection closed by peer [::1]:1."), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("Connection closed by peer"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("gloo/"), False),
        (RankError("rank 0 raised OSError: full"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_which_errors_are_of_the_connections(error, broken):
    assert is_broken(error) == broken
    told = RankError("x")
    told.__cause__ = error
    assert is_broken(told) == broken


# Uneven data


def _uneven():
    learn = _learner(n=5, n_valid=1, bs=2, metrics=accuracy)
    with learn.no_logging():
        learn.fit(2)
    weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    return learn.recorder.values, weights.tolist()


def test_a_process_without_data_in_a_batch_keeps_nobody_waiting():
    first, second = on_ranks_with(2, _uneven, TREADLE_TIMEOUT="5")
    assert first == second


# Under torchrun

TRAINS = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_distributed_faults import Every, learner_in, weights_of, world

folder = Path(sys.argv[1])
learn = learner_in(folder, hurt=True)
with learn.no_logging():
    if any((folder / "checkpoints").glob("step-*")):
        learn.resume()
    else:
        learn.fit(2, checkpoint=Every(updates=5))
if world().is_main:
    (folder / "weights").write_text(weights_of(learn))
"""


RAISES = """
from treadle.world import world

if world().rank == 1:
    raise ValueError("its own")
world().all(0)
"""


def learner_in(folder, hurt):
    """With `hurt` rank 1 is killed in the first run."""

    def kill(cb):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if hurt and first and world().rank == 1 and cb.updates == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    return _learner(cbs=[Callback(after_backward=kill)], path=folder)


def weights_of(learn):
    weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def _undisturbed(folder):
    learn = learner_in(folder, hurt=False)
    with learn.no_logging():
        learn.fit(2, checkpoint=Every(updates=5))
    return weights_of(learn)


def _torchrun(folder, text, *options):
    """The exit status, what was printed, and how many of its processes are left."""
    script, mark = folder / "script.py", uuid4().hex
    script.write_text(text.format(tests=str(Path(__file__).parent)))
    source = Path(sys.modules["treadle"].__file__).parents[1]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        "TREADLE_TIMEOUT": "20",
        "MARK": mark,
    }
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*run, *options, str(script), str(folder)], env=env, capture_output=True, text=True
    )
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes():
                left.append(environ)
        except OSError:
            continue
    return done.returncode, done.stdout + done.stderr, len(left)


def test_a_restarted_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = on_ranks(2, _undisturbed, whole)
    status, told, left = _torchrun(killed, TRAINS, "--max-restarts=2")
    assert (status, left) == (0, 0), told
    assert "exitcode: -9" in told  # rank 0 may be ended by torchrun before it has said more
    assert [(killed / "weights").read_text()] * 2 == expected


def test_a_run_in_which_one_raises_ends_as_a_whole(tmp_path):
    status, told, left = _torchrun(tmp_path, RAISES)
    assert (status != 0, left) == (True, 0), told
    assert "ValueError: its own" in told and "RankError" in told
