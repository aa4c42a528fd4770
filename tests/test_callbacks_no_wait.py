"""Nothing here waits for the device in a training step: reading a tensor from the host is made to
fail, from before a batch to after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import tiny_learner
from treadle.callbacks import (
    ActivationStats,
    BnFreeze,
    ChannelsLast,
    CutMix,
    EMACallback,
    GradientLog,
    MixUp,
)
from treadle.data import DataLoaders
from treadle.loop import Callback

READS = {
    torch.ops.aten._local_scalar_dense.default,  # item, bool, float, int
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.unique_dim.default,
}


class NoReads(TorchDispatchMode):
    """On a GPU these operations, and copies to the CPU, would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in READS, f"{func} reads a tensor"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reads(monkeypatch):
    """A callback that forbids reads within batches, but for the optimizer's step."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a tensor is read")

    class Forbid(Callback):
        order = -1000
        run_valid = False
        seen = 0

        def before_batch(self):
            self.mode = NoReads()
            self.mode.__enter__()
            for name in ("cpu", "tolist", "numpy"):  # which have no operation of their own on a CPU
                monkeypatch.setattr(torch.Tensor, name, forbidden)
            Forbid.seen += 1

        def after_step(self):
            self.before_batch()

    class Allow(Callback):
        order = 1000
        run_valid = False

        def before_step(self):
            self.learn.forbid.mode.__exit__(None, None, None)
            monkeypatch.undo()

        def after_batch(self):
            self.before_step()

    return [Forbid(), Allow()]


def image_learner(**kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, 8, 8, generator=generator)
    y = torch.randint(4, (32,), generator=generator)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    return tiny_learner(
        dls=DataLoaders(batches[:3], batches[3:], device="cpu"), model=model, **kwargs
    )


@pytest.mark.parametrize(
    "cb",
    [
        ActivationStats(),
        BnFreeze(),
        ChannelsLast(),
        CutMix(),
        EMACallback(),
        GradientLog(),
        MixUp(),
    ],
    ids=repr,
)
def test_a_training_step_does_not_wait(cb, no_reads):
    learn = image_learner(cbs=[cb, *no_reads])
    with learn.no_bar():
        learn.fit(2)
    assert no_reads[0].seen == 12


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.item(),
        bool,
        float,
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: torch.equal(t, t),
    ],
)
def test_the_test_sees_a_read(read, no_reads):
    learn = image_learner(cbs=[Callback(after_loss=lambda cb: read(cb.loss.detach())), *no_reads])
    try:
        with pytest.raises(AssertionError, match="read"), learn.no_bar():
            learn.fit(1)
    finally:
        no_reads[0].mode.__exit__(None, None, None)
