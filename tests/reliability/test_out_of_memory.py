"""Memory that runs out, by allocations that really fail: what is said, and that all is given
back."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
import warnings
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_kit import in_child
from torch import nn

from treadle.callbacks import GradientAccumulation, ProgressCallback, RNNCallback
from treadle.cli.main import explain
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop import Callback, OutOfMemoryError
from treadle.optim import SGD, Optimizer, sgd_step


def allocate():
    """More than any machine has."""
    return torch.empty(2**58)


class Hungry(nn.Module):
    """A layer that asks for too much in its forward or its backward pass."""

    when = ""

    def forward(self, x):
        if self.when == ("forward" if self.training else "validation"):
            allocate()
        return _HungryBack.apply(x) if self.when == "backward" else x * 1


class _HungryBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return allocate()


def hungry_step(p, hungry, **kwargs):
    if hungry:
        allocate()


class Batches:
    """Fails when its third batch is loaded, if it is to."""

    def __init__(self, n=4, bs=16, hungry=False):
        self.hungry = hungry
        self.batches = [(torch.randn(bs, 3, 4), torch.randn(bs, 4)) for _ in range(n)]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for i, batch in enumerate(self.batches):
            if self.hungry and i == 2:
                np.empty(2**58)
            yield batch


def learner(when, **settings):
    torch.manual_seed(0)
    hungry = Hungry()
    hungry.when = when
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), hungry, nn.ReLU(), nn.Linear(8, 4))
    batches = Batches(hungry=when == "loading")
    dls = DataLoaders(batches, Batches(2), device="cpu")
    with warnings.catch_warnings():  # it is said that this stepper cannot be recorded
        warnings.simplefilter("ignore")
        opt_func = partial(Optimizer, cbs=[sgd_step, hungry_step], hungry=when == "step")
        learn = Learner(dls, model, F.mse_loss, opt_func, lr=0.1, **settings)
    learn.remove_cb(ProgressCallback)
    learn.batches = batches
    return learn


SAID = {
    "forward": (RuntimeError, r"in the forward pass of batch 0 with 16 samples, input 16x3x4 f"),
    "backward": (RuntimeError, r"in the backward pass of batch 0 with 16 samples, input 16x3x4 fl"),
    "step": (RuntimeError, r"in the optimizer's step of batch 0 with 16 samples, input 16x3x4 flo"),
    "validation": (RuntimeError, r"in the forward pass of batch 0 with 16 samples, .* in validati"),
    "loading": (MemoryError, r"while a batch was loaded, in epoch 0"),
}
ADVICE = {
    "forward": r"GradientAccumulation\(n_acc=16\); mixed precision \(to_bf16\) and smaller inputs",
    "backward": r"GradientAccumulation\(n_acc=16\); mixed precision \(to_bf16\) and smaller inputs",
    "step": r"An optimizer with fewer averages \(SGD rather than Adam\) needs less",
    "validation": r"Half the batch \(val_bs\) needs about half",
    "loading": r"Smaller batches, fewer workers or a smaller cache need less",
}


@pytest.mark.parametrize("when", SAID)
def test_it_is_said_where_and_all_is_given_back(when):
    seen: list[weakref.ref] = []
    learn = learner(when)
    for module in learn.model:
        module.register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out)))
    learn.add_cb(Callback(after_loss=lambda cb: seen.append(weakref.ref(cb.loss))))
    kind, said = SAID[when]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn.fit(1)
    except kind as error:  # where users may still be, when they try less
        assert isinstance(error, OutOfMemoryError)
        assert_told(error, when, said)
        assert seen
        assert not any(ref() is not None for ref in seen)
        assert all(p.grad is None for p in learn.model.parameters())
        assert learn.pred is learn.loss is None
        assert not learn.xb
        learn.model[2].when, learn.batches.hungry = "", False
        learn.opt.set_hypers(hungry=False)
        learn.fit(1)
        assert len(learn.recorder.losses) == 4
    else:
        raise AssertionError("nothing was raised")


def assert_told(error, when, said):
    text = str(error)
    assert re.search(said, text), text
    assert re.search(ADVICE[when], text), text
    assert re.search(r"; this process had \d+\.\d\d GB at the peak\. ", text), text
    assert "\n" not in text
    assert error.training is (when != "validation")
    assert error.phase == ("forward" if when == "validation" else when)
    assert error.batch_size == (None if when == "loading" else 16)
    assert 1e7 < error.peak < 1e12
    assert isinstance(error.__cause__, SAID[when][0])
    line = "np.empty" if when == "loading" else "in allocate"
    assert line in "".join(error.__cause__.__notes__)
    assert str(error.__cause__).partition("\n")[0] in text


def test_validate_and_get_preds_say_it_too():
    learn = learner("validation")
    for ask in (learn.validate, learn.get_preds):
        with pytest.raises(OutOfMemoryError, match="in the forward pass of batch 0 with"):
            ask()
    learn.model[2].when = ""
    assert len(learn.validate()) == 1


def test_torch_s_own_type_is_kept():
    class OutOfCuda(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    learn = learner("")
    learn.model[2] = OutOfCuda()
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB\.\)$") as raised:
        learn.fit(1)
    assert isinstance(raised.value, OutOfMemoryError)


def test_other_errors_stay_as_they_are():
    learn = learner("", cbs=Callback(after_pred=fail))
    with pytest.raises(RuntimeError, match=r"^something else\n") as raised:
        learn.fit(1)
    assert not isinstance(raised.value, OutOfMemoryError)


def fail(cb):
    raise RuntimeError("something else")


def test_a_window_and_what_callbacks_keep_are_given_back():
    learn = learner("", cbs=[GradientAccumulation(48), RNNCallback()])
    inner = learn.model

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            out = self.inner(x)
            return out, [out * 1], [out * 2]

    learn.model = Three()
    learn.opt = None
    kept: list[weakref.ref] = []

    def keep_then_fail(cb):
        kept.extend(map(weakref.ref, (cb.rnn.out, cb.rnn.raw_out, cb.pred)))
        if cb.iter == 1:
            allocate()

    learn.add_cb(Callback(after_loss=keep_then_fail))
    with pytest.raises(OutOfMemoryError, match=r"GradientAccumulation\(n_acc=48\)"):
        learn.fit(1)
    assert len(kept) == 6
    assert not any(ref() is not None for ref in kept)
    assert all(p.grad is None for p in learn.model.parameters())


def test_in_the_command_it_is_one_line(capsys):
    with pytest.raises(OutOfMemoryError) as raised:
        learner("forward").fit(1)
    assert explain(raised.value) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("treadle: memory ran out in the forward pass of batch 0 with 16 ")
    assert printed.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, reads /proc")
def test_half_the_batch_trains_where_the_whole_did_not_fit():
    assert in_child(with_little_memory) == 0


def with_little_memory():
    """A batch of 128 takes 5 x 128 MB, half of it as much less. There is enough for 3.3 x 128,
    and perhaps some that the process has and does not use."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 2**18), nn.Sigmoid(), nn.Tanh(), nn.Linear(2**18, 1))

    def fit(bs, n_acc=1):
        batches = [(torch.randn(bs, 4), torch.randn(bs, 1)) for _ in range(2)]
        dls = DataLoaders(batches, batches[:0], device="cpu")
        # without stats, which the learner would rightly keep
        cbs = GradientAccumulation(n_acc)
        learn = Learner(dls, model, F.mse_loss, opt_func=SGD, lr=1e-3, cbs=cbs)
        with learn.no_logging():
            learn.fit(1)

    fit(bs=64)  # what libraries keep is there before, too
    resident = held()
    limit = memory("VmSize") + 420 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        fit(bs=128)
    except OutOfMemoryError as error:
        assert error.batch_size == 128
        now = held()
        assert now < resident * 1.01 + 2**20, (now, resident)
        fit(bs=64, n_acc=128)
    else:
        raise AssertionError("the whole batch did fit")


def held():
    """Resident memory, without what the allocator has and nobody uses."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def memory(name):
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
