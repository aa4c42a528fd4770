"""What guards the update: clipping, precision, and the end at numbers that are none."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn

from helpers import copied_params, same_params, tiny_learner
from treadle.callbacks import GradientClip, MixedPrecision, TerminateOnNaNCallback
from treadle.errors import UsageError
from treadle.loop import Callback, CancelFitException, CancelStepException
from treadle.losses import CrossEntropyLossFlat


class Watch(Callback):
    """The parameters after each update and the gradients that made it."""

    order = 99
    run_valid = False

    def before_fit(self):
        self.params, self.grads = [copied_params(self.model)], []

    def before_step(self):
        self.grads.append([p.grad.clone() for p in self.model.parameters()])

    def after_step(self):
        self.params.append(copied_params(self.model))


def use_scaler(learn, init_scale=1024.0):
    """A scaler as fp16 has on a GPU; powers of two scale without rounding."""
    learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return learn


# Clipping


@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 1e3])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_gradients_are_clipped_to_the_norm(max_norm, norm_type):
    plain, clipped = Watch(), Watch()
    tiny_learner(cbs=plain).fit(1)
    tiny_learner(cbs=[GradientClip(max_norm, norm_type), clipped]).fit(1)
    whole = torch.cat([grad.double().flatten() for grad in plain.grads[0]])
    factor = min(1.0, max_norm / whole.norm(norm_type).item())
    for grad, before in zip(clipped.grads[0], plain.grads[0], strict=True):
        torch.testing.assert_close(grad.double(), before.double() * factor, rtol=1e-4, atol=1e-9)


def test_with_a_scaler_the_true_gradients_are_clipped():
    for max_norm in (0.2, 100.0):
        plain, scaled = Watch(), Watch()
        tiny_learner(cbs=[GradientClip(max_norm), plain]).fit(2)
        use_scaler(tiny_learner(cbs=[GradientClip(max_norm), scaled])).fit(2)
        assert len(plain.params) == 1 + 2 * 8
        for params, others in zip(plain.params, scaled.params, strict=True):
            assert all(map(torch.equal, params, others))


class SkipSome(Callback):
    """Cancels the step of every third batch, after the clipping."""

    order = 50
    run_valid = False

    def before_step(self):
        if self.iter % 3 == 0:
            raise CancelStepException


def test_a_step_cancelled_after_the_clipping_leaves_the_scaler_right():
    plain = tiny_learner(cbs=[GradientClip(0.2), SkipSome()])
    scaled = use_scaler(tiny_learner(cbs=[GradientClip(0.2), SkipSome()]))
    plain.fit(2)
    scaled.fit(2)
    assert same_params(scaled.model, copied_params(plain.model))


def test_unscaling_twice_is_unscaling_once():
    class Look(Callback):
        run_valid = False

        def before_step(self):
            self.precision.unscale(self.opt)

    plain = tiny_learner(cbs=GradientClip(0.2))
    scaled = use_scaler(tiny_learner(cbs=[GradientClip(0.2), Look()]))
    plain.fit(1)
    scaled.fit(1)
    assert same_params(scaled.model, copied_params(plain.model))


def test_an_overflow_under_a_scaler_skips_the_update_and_lowers_the_scale():
    watch = Watch()
    learn = use_scaler(tiny_learner(cbs=[GradientClip(1.0), TerminateOnNaNCallback(), watch]))
    spoil_gradient(learn, batch=3)
    learn.fit(1)
    assert len(learn.recorder.losses) == 8
    assert all(map(torch.equal, watch.params[3], watch.params[4]))
    assert not all(map(torch.equal, watch.params[4], watch.params[5]))
    assert learn.precision.scaler.get_scale() == 512.0


# The end at numbers that are none


def spoil_gradient(learn, batch, value=math.inf):
    """Adds `value` to one number of one gradient in training batch `batch`."""

    def spoil(grad):
        if learn.iter == batch:
            grad = grad.clone()
            grad.view(-1)[0] = value
        return grad

    learn.model[2].weight.register_hook(spoil)


class NaNLoss(CrossEntropyLossFlat):
    """NaN at one training batch."""

    def __init__(self, batch, value=math.nan):
        super().__init__()
        self.batch, self.value, self.learn = batch, value, None

    def __call__(self, pred, target):
        loss = super().__call__(pred, target)
        spoilt = self.learn.training and self.learn.epoch == 1 and self.learn.iter == self.batch
        return loss * self.value if spoilt else loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_fit_at_the_last_good_update(value):
    watch = Watch()
    loss_func = NaNLoss(batch=5, value=value)
    learn = tiny_learner(loss_func=loss_func, cbs=[TerminateOnNaNCallback(), watch])
    loss_func.learn = learn
    with pytest.warns(RuntimeWarning, match=r"the loss became (nan|inf) at epoch 1, batch 5"):
        learn.fit(3)
    assert len(watch.params) == 1 + 8 + 5
    assert same_params(learn.model, watch.params[-1])
    assert len(learn.recorder.losses) == 8 + 5
    assert all(map(math.isfinite, learn.recorder.losses))
    learn.fit(1)  # and what was left in the gradients does not count
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_no_number_under_a_finite_loss_ends_it_too(value):
    watch = Watch()
    learn = tiny_learner(cbs=[TerminateOnNaNCallback(), GradientClip(0.1), watch])
    spoil_gradient(learn, 4, value)
    with pytest.warns(RuntimeWarning, match=r"a gradient became .* batch 4.*gradient of 2\.weight"):
        learn.fit(2)
    assert len(watch.params) == 1 + 4
    assert same_params(learn.model, watch.params[-1])


def test_great_but_finite_gradients_train_on():
    learn = tiny_learner(lr=0.0, cbs=TerminateOnNaNCallback())
    spoil_gradient(learn, 4, 1e30)  # whose square is not a float32
    learn.fit(1)
    assert len(learn.recorder.losses) == 8


def test_a_spoilt_validation_is_told_and_does_not_end_training():
    loss_func = CrossEntropyLossFlat()
    learn = tiny_learner(cbs=TerminateOnNaNCallback())
    learn.loss_func = lambda p, y: loss_func(p, y) * (1 if learn.training else math.nan)
    with pytest.warns(RuntimeWarning, match=r"valid_loss is nan after epoch [01]\. "):
        learn.fit(2)
    assert len(learn.recorder.values) == 2


def test_a_rate_sweep_ends_by_its_own_rule():
    learn = tiny_learner(cbs=TerminateOnNaNCallback())
    learn.lr_find(num_it=40, end_lr=1e30, stop_div=False, show_plot=False)


# Mixed precision


class DtypesSeen(nn.Module):
    """Notes the dtype that its layer computes in."""

    def __init__(self):
        super().__init__()
        self.layer, self.dtypes = nn.Linear(8, 4), []

    def forward(self, x):
        out = self.layer(x)
        self.dtypes.append(out.dtype)
        return out


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
@pytest.mark.filterwarnings("ignore:fp16 was asked for")
def test_each_fit_is_mixed_and_the_rest_is_as_before(mode):
    learn = tiny_learner(model=DtypesSeen(), cbs=MixedPrecision(mode))
    preds = []
    learn.add_cb(Callback(after_pred=lambda cb: preds.append(cb.pred.dtype)))
    before = learn.precision
    for _ in range(2):
        learn.fit(1)
        assert set(learn.model.dtypes) == {torch.bfloat16}  # which fp16 is on a CPU
        assert set(preds) == {torch.float32}
        assert learn.precision is before
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    learn.model.dtypes.clear()
    learn.validate()
    assert set(learn.model.dtypes) == {torch.float32}


@pytest.mark.parametrize("error", [CancelFitException, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["before_fit", "after_pred", "before_step", "after_fit"])
def test_precision_is_put_back_however_the_fit_ends(error, moment):
    learn = tiny_learner(cbs=MixedPrecision("bf16"))
    before, seen = learn.precision, []

    def fail(cb):
        seen.append(cb.precision.name)
        raise error

    learn.add_cb(type("Late", (Callback,), {"order": 90})(**{moment: fail}))
    with suppress(error, CancelFitException):
        learn.fit(1)
    assert seen == ["bf16"]
    assert learn.precision is before


def test_it_wins_over_the_learners_own_precision_for_the_fit():
    learn = tiny_learner(model=DtypesSeen(), cbs=MixedPrecision("bf16"), precision="fp32")
    learn.lr_find(num_it=20, show_plot=False)
    assert set(learn.model.dtypes) == {torch.bfloat16}
    assert learn.precision.name == "fp32"


def test_fp16_on_a_cpu_says_so():
    with pytest.warns(UserWarning, match="computes in bf16 instead"):
        tiny_learner(cbs=MixedPrecision()).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_learner(cbs=MixedPrecision("bf16")).fit(1)


def test_an_unknown_mode_is_refused_when_made():
    with pytest.raises(UsageError, match="did you mean bf16"):
        MixedPrecision("b16")
