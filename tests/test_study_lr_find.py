"""The rate finder: leaves everything as it was, however it ends, and reads the curve as it says."""

from __future__ import annotations

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.all import (
    SGD,
    Adam,
    Callback,
    DataLoader,
    DataLoaders,
    UsageError,
    minimum,
    ranger,
    steep,
    valley,
)
from treadle.study.lr_find import usable


def everything(learn):
    """All that a sweep could disturb, as plain values to compare."""
    opt = None if learn.opt is None else copy.deepcopy(learn.opt.state_dict())
    return {
        "model": {name: t.clone() for name, t in learn.model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in learn.model.parameters()],
        "trainable": [p.requires_grad for p in learn.model.parameters()],
        "modes": [module.training for module in learn.model.modules()],
        "opt": opt,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "cbs": list(learn.cbs),
        "recorded": (list(learn.recorder.losses), list(learn.recorder.values)),
        "place": (learn.epoch, learn.iter, learn.n_epoch, learn.training, learn.updates),
        "loader": getattr(learn.dls.train, "epoch", None),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


class Noisy(nn.Module):
    """Dropout and batch norm: a sweep moves the generator and the running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 4)
        )

    def forward(self, x):
        return self.layers(x) + 0.001 * (random.random() + np.random.rand())


def noisy_learner(**kwargs):
    learn = tiny_learner(**kwargs)
    torch.manual_seed(0)
    learn.model = Noisy()
    return learn


@pytest.mark.parametrize("opt_func", [Adam, SGD, partial(SGD, mom=0.9), ranger])
@pytest.mark.parametrize("fitted", [False, True])
def test_nothing_is_different_after_a_sweep(opt_func, fitted):
    learn = noisy_learner(opt_func=opt_func)
    if fitted:
        learn.fit(1, 1e-3)
    before = everything(learn)
    learn.lr_find(num_it=40, show_plot=False)
    assert_same(before, everything(learn))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["after_pred", "after_backward", "after_step", "before_fit"])
def test_nothing_is_different_after_an_interrupted_sweep(error, where):
    class Fail(Callback):
        armed = False

        def hears(self, name):
            return name == where

        def __getattr__(self, name):
            return self.fail if name == where else super().__getattr__(name)

        def fail(self):
            if self.armed and (where == "before_fit" or self.iter == 3):
                raise error

    learn = noisy_learner(cbs=Fail)
    learn.fit(1)
    learn.fail.armed = True
    before = everything(learn)
    with pytest.raises(error):
        learn.lr_find(num_it=40, show_plot=False)
    assert_same(before, everything(learn))


def test_a_fit_after_a_sweep_is_the_fit_without_it():
    results = []
    for sweep in (False, True):
        learn = noisy_learner()
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        if sweep:
            learn.lr_find(num_it=30, show_plot=False)
        learn.fit_one_cycle(2, 1e-2)
        results.append((learn.recorder.raw_losses, learn.model.state_dict()))
    assert_same(*results)


def test_the_loaders_epoch_is_put_back():
    x = torch.randn(64, 8)
    data = torch.utils.data.TensorDataset(x, x.argmax(1) % 4)
    learn = tiny_learner()
    learn.dls = DataLoaders(
        DataLoader(data, bs=16, shuffle=True, device="cpu"), DataLoader(data, bs=16, device="cpu")
    )
    learn.fit(1)
    before = everything(learn)
    learn.lr_find(num_it=20, show_plot=False)
    assert_same(before, everything(learn))
    assert learn.dls.train.epoch == 1


def test_the_suggestion_trains():
    learn = tiny_learner()
    suggested = learn.lr_find(show_plot=False, suggest_funcs=(valley, minimum, steep))
    assert suggested._fields == ("valley", "minimum", "steep")
    assert type(suggested).__name__ == "SuggestedLRs"
    start = learn.validate()[0]
    learn.fit(3, suggested.valley)
    assert learn.validate()[0] < start


def test_rules_on_a_curve_whose_answer_is_known():
    lrs = np.geomspace(1e-6, 1, 61)
    # flat, falling from 1e-4 to 1e-2 as a straight line in log(lr), then rising
    losses = np.interp(np.log10(lrs), [-6, -4, -2, 0], [2.0, 2.0, 1.0, 4.0])
    assert minimum(lrs, losses) == pytest.approx(1e-3)
    assert 1e-4 <= steep(lrs, losses) <= 1e-2
    assert valley(lrs, losses) == pytest.approx(1e-3, rel=0.3)


def test_too_few_points_are_a_sentence():
    with pytest.raises(UsageError, match="usable points"):
        usable([1e-3] * 12, [float("nan")] * 12, 12)


def test_a_diverging_sweep_stops_early():
    learn = tiny_learner()
    batches = []
    learn.add_cb(Callback(after_batch=lambda cb: batches.append(cb.iter)))
    learn.lr_find(start_lr=1e-3, end_lr=1e6, num_it=100, show_plot=False)
    assert 15 < len(batches) < 100
