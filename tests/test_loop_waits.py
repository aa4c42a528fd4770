"""A training step reads nothing from the device, and a long fit keeps nothing that it need not."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import torch

from helpers import tiny_learner
from treadle.all import (
    Adam,
    Callback,
    GradientAccumulation,
    GradientClip,
    ParamScheduler,
    SchedCos,
    accuracy,
)

READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")


class NoReads(Callback):
    """Makes every read of a tensor fail, from before a batch is looked at to when all have seen it.

    `to` is left out: a batch may have to be brought to the device.
    """

    order = -1000

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def before_batch(self):
        for name in READS:
            self.monkeypatch.setattr(torch.Tensor, name, self.fail)

    def after_batch(self):
        self.after.append(self.iter)

    @staticmethod
    def fail(*args, **kwargs):
        raise AssertionError("this read waits for the device")


class ReadsAgain(Callback):
    order = 1000

    def __init__(self, monkeypatch):
        self.monkeypatch, self.batches = monkeypatch, 0

    def after_batch(self):
        self.monkeypatch.undo()
        self.batches += 1


@pytest.mark.parametrize("opt_func", [Adam, torch.optim.SGD])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("window", [(), (GradientAccumulation(48),)])
def test_no_step_reads_from_the_device(opt_func, precision, window, monkeypatch):
    """Training and validation, with all default callbacks, a schedule, a metric and clipping."""
    learn = tiny_learner(opt_func=opt_func, precision=precision, metrics=accuracy, cbs=window)
    learn.fit(1)  # what is made once may be looked at
    strict, again = NoReads(monkeypatch), ReadsAgain(monkeypatch)
    strict.after = []
    learn.fit_one_cycle(2, 0.1, cbs=[strict, again, GradientClip(1.0)])
    assert again.batches == len(strict.after) == 2 * (8 + 3)


def test_the_reads_that_are_watched_for_are_found(monkeypatch):
    for name, read in {
        "item": lambda t: t.item(),
        "cpu": lambda t: t.cpu(),
        "tolist": lambda t: t.tolist(),
        "numpy": lambda t: t.detach().numpy(),
        "__bool__": bool,
        "__float__": float,
    }.items():
        assert name in READS
        strict, again = NoReads(monkeypatch), ReadsAgain(monkeypatch)
        strict.after = []
        reader = Callback(after_loss=lambda cb, read=read: read(cb.loss))
        with pytest.raises(AssertionError, match="waits for the device"):
            tiny_learner(cbs=[strict, again, reader]).fit(1)
        monkeypatch.undo()


def test_memory_is_flat_over_many_epochs():
    """Under 1 kB an epoch, with what the recorder keeps: two steps, a row, three hyper-parameters.

    No tensor is kept from epoch to epoch.
    """
    learn = tiny_learner(metrics=accuracy)
    learn.dls.loaders[:] = [learn.dls.train[:2], learn.dls.valid[:1]]
    kept = []

    def look(cb):
        if cb.epoch in (50, 199):
            gc.collect()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            kept.append((tracemalloc.get_traced_memory()[0], tensors))

    sched = ParamScheduler({"lr": SchedCos(0.1, 0.01)})
    tracemalloc.start()
    try:
        with learn.no_logging():
            learn.fit(200, cbs=[Callback(after_epoch=look), sched])
    finally:
        tracemalloc.stop()
    (before, tensors_before), (after, tensors_after) = kept
    assert (after - before) / 149 < 1000
    assert tensors_after == tensors_before


def test_a_long_epoch_does_not_pile_up_losses_on_the_device(monkeypatch):
    from treadle.callbacks import recorder

    monkeypatch.setattr(recorder, "_CHUNK", 3)
    learn, waiting = tiny_learner(), []

    def look(cb):
        waiting.append(len(cb.recorder._single))
        assert not any(loss.requires_grad for loss in cb.recorder._single)  # nor their graphs

    watch = Callback(after_batch=look)
    watch.order = 51
    learn.fit(1, cbs=watch)
    assert max(waiting) < 3
    assert len(learn.recorder.raw_losses) == 8
