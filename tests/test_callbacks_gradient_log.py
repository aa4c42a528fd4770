"""Gradient norms by parameter: those of the gradients that the loss gave, none missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import tiny_learner
from treadle.callbacks import GradientClip, GradientLog
from treadle.callbacks.layer_plots import plot_gradients
from treadle.errors import UsageError
from treadle.loop import Callback, CancelBackwardException, CancelStepException


class Grads(Callback):
    """The norms in float64, before anything may change the gradients."""

    order = -50
    run_valid = False

    def before_fit(self):
        self.norms = []

    def before_step(self):
        self.norms.append([p.grad.double().norm().item() for p in self.model.parameters()])


def test_the_norms_are_those_of_the_gradients():
    grads = Grads()
    learn = tiny_learner(cbs=[GradientLog(), GradientClip(1e-3), grads])
    learn.fit(2)
    log = learn.gradient_log
    assert log.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert log.norms.shape == (16, 4)
    assert log.norms.dtype == torch.float32
    np.testing.assert_allclose(log.norms.numpy(), grads.norms, rtol=1e-5)
    learn.fit(1)
    assert log.norms.shape == (8, 4)


def test_under_a_scaler_the_true_gradients_are_seen():
    plain = tiny_learner(cbs=GradientLog())
    scaled = tiny_learner(cbs=GradientLog())
    scaled.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain.fit(1)
    scaled.fit(1)
    assert torch.equal(plain.gradient_log.norms, scaled.gradient_log.norms)


def test_a_parameter_without_a_gradient_has_no_norm():
    learn = tiny_learner(cbs=GradientLog())
    learn.model[0].bias.requires_grad_(False)
    learn.fit(1)
    assert learn.gradient_log.norms[:, 1].isnan().all()
    assert learn.gradient_log.norms[:, [0, 2, 3]].isfinite().all()


def test_a_step_that_is_put_off_is_not_logged():
    class EverySecond(Callback):
        order = 5
        run_valid = False

        def before_step(self):
            if self.iter % 2:
                raise CancelStepException

    learn = tiny_learner(cbs=[GradientLog(), EverySecond()])
    learn.fit(1)
    assert len(learn.gradient_log.norms) == 4


def test_norms_can_be_read_while_training_and_after_an_interrupt():
    seen = []

    def look(cb):
        seen.append(len(cb.gradient_log.norms))
        if len(seen) == 5:
            raise KeyboardInterrupt

    learn = tiny_learner(cbs=[GradientLog(), Callback(after_batch=look)])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert seen == [1, 2, 3, 4, 5]
    assert len(learn.gradient_log.norms) == 5


def test_the_plot_names_the_greatest_and_the_smallest():
    names = [f"layer{i}" for i in range(6)]
    norms = np.array([[3.0, 1e-3, 5.0, math.nan, 0.1, 2.0], [3.0, 1e-3, 5.0, math.nan, 0.1, 0.0]])
    axes = plot_gradients(names, norms).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["layer2", "layer0", "layer4", "layer1"]
    assert len(axes.lines) == 5  # and the one between them, in grey; without the one of no values
    assert axes.get_yscale() == "log"


def test_the_plot_of_a_fit():
    learn = tiny_learner(cbs=GradientLog())
    with pytest.raises(UsageError, match="Train first"):
        learn.gradient_log.plot()
    learn.fit(1)
    lines = learn.gradient_log.plot().axes[0].lines
    by_name = {line.get_label(): list(line.get_ydata()) for line in lines}
    assert by_name["2.bias"] == learn.gradient_log.norms[:, 3].tolist()


def test_a_batch_without_a_backward_pass_has_no_norms():
    class NoBackward(Callback):
        def before_backward(self):
            if self.iter == 2:
                raise CancelBackwardException

    learn = tiny_learner(cbs=[GradientLog(), NoBackward()])
    learn.fit(1)
    assert learn.gradient_log.norms.isnan().all(1).tolist() == [i == 2 for i in range(8)]
