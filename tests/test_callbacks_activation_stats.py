"""Statistics of activations: the numbers of float64, batch by batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.callbacks import ActivationStats
from treadle.callbacks.layer_plots import plot_color_dim
from treadle.errors import UsageError
from treadle.loop import Callback, CancelBatchException


class Outputs(Callback):
    """The outputs of a module, kept by a hook of torch's own."""

    def __init__(self, module):
        self.outputs = []
        module.register_forward_hook(
            lambda m, i, o: self.outputs.append(o.detach().double()) if m.training else None
        )


def test_the_numbers_are_those_of_the_outputs():
    learn = tiny_learner(cbs=ActivationStats())
    learn.add_cb(Outputs(learn.model[2]))
    learn.fit(2)
    stats = learn.activation_stats
    outputs = learn.outputs.outputs
    assert len(outputs) == 16
    assert stats.batches == list(range(16))
    assert list(stats.layers) == ["0", "2"]
    got = stats.layer_stats("2")
    assert got == stats.layer_stats(1) == stats.layer_stats(-1)
    np.testing.assert_allclose(got["mean"], [o.mean() for o in outputs], atol=1e-6)
    np.testing.assert_allclose(got["std"], [o.std(correction=0) for o in outputs], rtol=1e-5)
    near = [(o.abs() <= 0.05).double().mean() for o in outputs]
    np.testing.assert_allclose(got["near_zero"], near, atol=1e-7)
    hist = stats.hist("2")
    assert hist.shape == (16, 40)
    by_hand = np.histogram(outputs[3].abs(), bins=40, range=(0, 10))[0] / outputs[3].numel()
    np.testing.assert_allclose(hist[3], by_hand, atol=1e-7)


def test_great_and_absent_values():
    """What is beyond the histogram counts in its last bin; what is no number in none."""

    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            fixed = torch.tensor([0.0, -0.04, 3.1, -1e6]) + 0 * self.weight
            return x[:, :4] * 0 + fixed

    learn = tiny_learner(model=Strange(), cbs=ActivationStats(), lr=0.0)
    learn.fit(1)
    hist = learn.activation_stats.hist(0)[0]
    assert {i: share for i, share in enumerate(hist.tolist()) if share} == {
        0: 0.5,
        12: 0.25,
        39: 0.25,
    }
    assert learn.activation_stats.layer_stats(0)["near_zero"][0] == 0.5


def test_every_and_other_modules():
    learn = tiny_learner()
    stats = ActivationStats([learn.model[1]], every=3)
    learn.fit(2, cbs=stats)
    assert stats.batches == [0, 3, 6, 8, 11, 14]
    assert list(stats.layers) == ["1"]
    assert min(stats.layer_stats("1")["near_zero"]) > 0.1  # a ReLU


def test_several_outputs_and_half_precision():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 4)

        def forward(self, x):
            out, _ = self.lstm(x[:, None])
            return self.head(out[:, 0])

    learn = tiny_learner(model=Half(), cbs=ActivationStats(), precision="bf16")
    learn.fit(1)
    assert np.isfinite(learn.activation_stats.layer_stats("lstm")["std"]).all()


def test_a_layer_that_did_not_run_and_a_batch_that_was_cancelled():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(8, 4), nn.Linear(8, 4), 0

        def forward(self, x):
            self.calls += self.training
            return self.a(x) + (self.b(x) if self.calls % 2 else 0)

    class SkipSome(Callback):
        order = -30

        def before_batch(self):
            if self.iter in (0, 4):
                raise CancelBatchException

    learn = tiny_learner(model=Sometimes(), cbs=[ActivationStats(), SkipSome()])
    learn.fit(1)
    stats = learn.activation_stats
    assert stats.batches == [1, 2, 3, 5, 6, 7]
    assert np.isnan(stats.layer_stats("b")["mean"]).tolist() == [False, True] * 3
    assert np.isfinite(stats.layer_stats("a")["mean"]).all()


def test_each_fit_starts_anew_and_an_interrupt_keeps_what_was_seen():
    learn = tiny_learner(cbs=ActivationStats())
    learn.fit(1)

    def interrupt(cb):
        if cb.iter == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=Callback(before_batch=interrupt))
    assert len(learn.activation_stats.layer_stats(0)["mean"]) == 4


def test_an_unknown_layer_is_refused():
    learn = tiny_learner(cbs=ActivationStats())
    with pytest.raises(UsageError, match="no statistics of layer 0; there are 0 layers"):
        learn.activation_stats.layer_stats(0)
    learn.fit(1)
    for layer, hint in (("conv1", "known are 0, 2"), (2, "2 layers"), (-3, "2 layers")):
        with pytest.raises(UsageError, match=hint):
            learn.activation_stats.color_dim(layer)


# Pictures


def test_the_plots_show_the_numbers():
    learn = tiny_learner(cbs=ActivationStats(every=2))
    learn.fit(1)
    stats = learn.activation_stats
    figure = stats.plot_layer_stats("0")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean", "std", "share near zero"]
    line = figure.axes[1].lines[0]
    assert list(line.get_xdata()) == [0, 2, 4, 6]
    assert list(line.get_ydata()) == stats.layer_stats("0")["std"]
    picture = stats.color_dim("0").axes[0].collections[0]
    shown = np.asarray(picture.get_array())
    np.testing.assert_allclose(shown, np.maximum(stats.hist("0").numpy(), 1e-5).T)


def test_color_dim_of_one_batch_and_of_none():
    figure = plot_color_dim("a", [0], np.full((1, 40), 1 / 40), 10.0)
    assert figure.axes[0].get_xlabel() == "training batches"
    with pytest.raises(UsageError, match="Train first"):
        plot_color_dim("a", [], np.zeros((0, 40)), 10.0)


def test_color_dim_of_a_batch_without_values():
    hist = np.full((3, 40), 1 / 40)
    hist[1] = math.nan
    plot_color_dim("a", [0, 1, 2], hist, 10.0).canvas.draw()
