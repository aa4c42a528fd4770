"""Mixed batches: the same mixture for inputs and losses, by hand in float64."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from torch import nn

from helpers import copied_params, same_params, tiny_dls, tiny_learner
from treadle.callbacks import CutMix, MixUp
from treadle.data import DataLoaders
from treadle.errors import CallbackError, UsageError
from treadle.loop import Callback
from treadle.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy, MSELossFlat
from treadle.metrics import accuracy


class Watch(Callback):
    """What goes into the model and what comes out as the loss, batch by batch."""

    order = 50

    def before_fit(self):
        self.batches = []

    def after_batch(self):
        self.batches.append((self.training, self.xb, self.yb, self.pred, self.loss.item()))


def weights_of(mixed, x):
    """`lam` and the other sample of each, found from the mixed inputs alone: in 8 random features
    only one pair explains a mixture."""
    found = []
    for i in range(len(x)):
        away = x - x[i]  # mixed = x[i] + (1 - lam) * (x[other] - x[i])
        share = (away * (mixed[i] - x[i])).sum(1) / away.square().sum(1).clamp(min=1e-12)
        error = (x[i] + share[:, None] * away - mixed[i]).norm(dim=1)
        other = int(error.argmin())
        assert error[other] < 1e-5
        found.append((1 - share[other].item(), other))
    lam, others = zip(*found, strict=True)
    return torch.tensor(lam, dtype=torch.float64), torch.tensor(others)


def originals():
    return [(x.double(), y) for x, y in tiny_dls().train]


@given(alpha=st.floats(0.05, 20), seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_inputs_and_losses_are_mixed_alike(alpha, seed):
    torch.manual_seed(seed)
    watch = Watch()
    learn = tiny_learner(cbs=[MixUp(alpha), watch])
    with learn.no_logging():
        learn.fit(1)
    trained = [batch for batch in watch.batches if batch[0]]
    for (x, y), (_, (mixed,), (target,), pred, loss) in zip(originals(), trained, strict=True):
        lam, others = weights_of(mixed.double(), x)
        assert torch.equal(target, y)
        assert ((lam >= 0.5 - 1e-5) & (lam <= 1 + 1e-5)).all()
        log_probs = pred.double().log_softmax(1)
        rows = torch.arange(len(y))
        by_hand = -(lam * log_probs[rows, y] + (1 - lam) * log_probs[rows, y[others]]).mean()
        assert loss == pytest.approx(by_hand.item(), rel=1e-4)


def lams_of(alpha, n):
    torch.manual_seed(0)
    mix = MixUp(alpha)
    learn = tiny_learner(cbs=mix)
    mix.before_fit()
    learn.xb, learn.yb = (torch.randn(n, 8),), (torch.zeros(n, dtype=torch.int64),)
    mix.before_batch()
    return mix.lam.double()


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 5.0])
def test_the_shares_follow_the_beta_distribution(alpha):
    """The mean of max(b, 1 - b) is an incomplete beta function."""
    expected = 1 - betainc(alpha + 1, alpha, 0.5)
    lams = lams_of(alpha, 40_000)
    assert lams.mean().item() == pytest.approx(expected, abs=3e-3)
    assert lams.min() >= 0.5


@pytest.mark.parametrize("alpha", [1e-2, 1e3])
def test_extreme_alphas_give_numbers(alpha):
    lams = lams_of(alpha, 5_000)
    assert ((lams >= 0.5) & (lams <= 1)).all()
    assert lams.mean().item() == pytest.approx(1.0 if alpha < 1 else 0.5, abs=0.02)


def test_validation_and_metrics_see_no_mixture():
    watch = Watch()
    learn = tiny_learner(cbs=[MixUp(), watch], metrics=accuracy, lr=0.0)
    learn.fit(1)
    plain = tiny_learner(metrics=accuracy, lr=0.0)
    plain.fit(1)
    assert learn.recorder.values[0][1:] == plain.recorder.values[0][1:]
    validated = [batch[1][0] for batch in watch.batches if not batch[0]]
    assert all(map(torch.equal, validated, (x for x, _ in tiny_dls().valid)))
    assert learn.validate() == plain.validate()


LOSSES = [
    CrossEntropyLossFlat(),
    CrossEntropyLossFlat(reduction="sum"),
    LabelSmoothingCrossEntropy(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    F.cross_entropy,
    partial(F.cross_entropy, label_smoothing=0.1),
    partial(F.cross_entropy, reduction="sum"),
]


@pytest.mark.parametrize("loss_func", LOSSES)
def test_with_nothing_to_mix_the_loss_is_the_plain_one(loss_func):
    """A batch of one sample mixes with itself."""
    x, y = torch.randn(6, 8), torch.randint(4, (6,))
    dls = DataLoaders([(x[i : i + 1], y[i : i + 1]) for i in range(6)], device="cpu")
    plain, mixed = Watch(), Watch()
    tiny_learner(dls=dls, loss_func=loss_func, lr=0.01, cbs=plain).fit(1)
    tiny_learner(dls=dls, loss_func=loss_func, lr=0.01, cbs=[MixUp(), mixed]).fit(1)
    for one, other in zip(plain.batches, mixed.batches, strict=True):
        assert one[-1] == pytest.approx(other[-1], rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "batchmean"])
def test_the_mixed_losses_are_reduced_as_the_losses_are(reduction):
    """Where all samples are one, mixing changes nothing, whatever the batch."""
    x, y = torch.randn(1, 8).repeat(16, 1), torch.randn(1, 4).softmax(1).repeat(16, 1)
    dls = DataLoaders([(x, y)], device="cpu")
    loss = nn.KLDivLoss(reduction=reduction)

    class LogProbs(Callback):
        def after_pred(self):
            self.learn.pred = self.pred.log_softmax(1)

    plain, mixed = Watch(), Watch()
    tiny_learner(dls=dls, loss_func=loss, cbs=[LogProbs(), plain]).fit(1)
    tiny_learner(dls=dls, loss_func=loss, cbs=[LogProbs(), mixed, MixUp()]).fit(1)
    assert plain.batches[0][-1] == pytest.approx(mixed.batches[0][-1], rel=1e-5)


def test_the_gradient_of_a_squared_error_is_that_of_mixed_targets():
    grads = []
    grab = type("Grab", (Callback,), {"order": 50})(
        before_step=lambda cb: grads.append((cb.model[0].weight.grad.clone(), cb.xb[0].clone()))
    )
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    learn = tiny_learner(
        dls=DataLoaders([(x, y)], device="cpu"), loss_func=MSELossFlat(), cbs=[MixUp(), grab]
    )
    before = copied_params(learn.model)
    learn.fit(1)
    (grad, mixed) = grads[0]
    lam, others = weights_of(mixed.double(), x.double())
    target = lam[:, None] * y + (1 - lam[:, None]) * y[others]
    learn.model.load_state_dict(dict(zip(learn.model.state_dict(), before, strict=True)))
    learn.model.zero_grad()
    F.mse_loss(learn.model(mixed), target.float()).backward()
    torch.testing.assert_close(grad, learn.model[0].weight.grad, rtol=1e-4, atol=1e-6)


def test_losses_of_many_numbers_a_sample_are_weighed_by_sample():
    """Every pixel of a sample has its sample's weight; the loss has flattened them."""
    x, y = torch.randn(8, 3, 5, 5), torch.randint(4, (8, 5, 5))
    watch, mix = Watch(), MixUp()
    learn = tiny_learner(
        dls=DataLoaders([(x, y)], device="cpu"),
        model=nn.Conv2d(3, 4, 1),
        loss_func=CrossEntropyLossFlat(axis=1),
        cbs=[mix, watch],
    )
    learn.fit(1)
    _, (mixed,), _, pred, loss = watch.batches[0]
    lam, others = weights_of(mixed.flatten(1).double(), x.flatten(1).double())
    own = F.cross_entropy(pred, y, reduction="none")
    other = F.cross_entropy(pred, y[others], reduction="none")
    lam = lam.view(-1, 1, 1)
    assert loss == pytest.approx((lam * own + (1 - lam) * other).mean().item(), rel=1e-4)


class TakesBoth(nn.Module):
    """Its one input is a tensor and a dict of another."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, both):
        a, named = both
        return self.layer(a) + self.layer(named["b"])


def test_several_inputs_are_mixed_alike():
    x, y = torch.randn(16, 8), torch.randint(4, (16,))
    watch = Watch()
    learn = tiny_learner(
        dls=DataLoaders([((x, {"b": 2 * x}), y)], device="cpu"),
        model=TakesBoth(),
        cbs=[MixUp(), watch],
    )
    learn.fit(1)
    a, named = watch.batches[0][1][0]
    assert not torch.equal(a, x)
    torch.testing.assert_close(named["b"], 2 * a)


def test_an_input_that_cannot_be_added_up_is_refused():
    x, y = torch.randint(9, (16, 8)), torch.randint(4, (16,))
    learn = tiny_learner(dls=DataLoaders([(x, y)], device="cpu"), cbs=MixUp())
    with pytest.raises(UsageError, match=r"got torch.int64; give floating-point"):
        learn.fit(1)


# What cannot be meant


def own_loss(pred, target):
    return (pred.log_softmax(1)[torch.arange(len(target)), target]).mean()


def test_a_loss_without_reduction_is_refused_before_training():
    learn = tiny_learner(loss_func=own_loss, cbs=MixUp())
    before = copied_params(learn.model)
    with pytest.raises(CallbackError, match=r"own_loss.*one for the batch.*or use CutMix"):
        learn.fit(1)
    assert same_params(learn.model, before)
    assert learn.loss_func is own_loss


def test_a_loss_that_reduces_all_the_same_is_refused():
    def loss(pred, target, reduction="mean"):
        return F.cross_entropy(pred, target)

    with pytest.raises(CallbackError, match=r"got the shape \(\) for 16 samples"):
        tiny_learner(loss_func=loss, cbs=MixUp()).fit(1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises(UsageError, match="give above 0"):
        MixUp(alpha)


def test_both_at_once_are_refused():
    with pytest.raises(CallbackError, match="use one of them"):
        tiny_learner(cbs=[CutMix(), MixUp()]).fit(1)


# Manners


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["before_batch", "after_pred", "after_loss", "after_batch"])
def test_an_interrupt_leaves_the_loss_as_it_was(moment, error):
    learn = tiny_learner(cbs=MixUp())
    loss_func = learn.loss_func

    def fail(cb):
        raise error

    with suppress(error):
        learn.fit(1, cbs=Callback(**{moment: fail}))
    assert learn.loss_func is loss_func
    assert loss_func.reduction == "mean"
    learn.validate()


def test_what_others_add_to_the_loss_stays():
    added = []

    class Add(Callback):
        run_valid = False

        def after_loss(self):
            before = self.loss_grad
            self.learn.loss_grad = before + 1
            added.append((before, self.learn))

    class Look(Callback):
        order = 50

        def before_backward(self):
            before, learn = added[-1]
            assert learn.loss_grad.item() == pytest.approx(before.item() + 1)

    tiny_learner(cbs=[Add(), MixUp(), Look()]).fit(1)
    assert len(added) == 8


def test_the_same_generator_gives_the_same_training():
    def trained(seed):
        torch.manual_seed(seed)
        learn = tiny_learner(cbs=MixUp())
        learn.fit(2)
        return learn.model

    assert same_params(trained(1), copied_params(trained(1)))
    assert not same_params(trained(1), copied_params(trained(2)))


def test_a_sweep_and_predictions_work_with_it():
    learn = tiny_learner(cbs=MixUp())
    learn.lr_find(num_it=20, show_plot=False)
    plain = tiny_learner()
    assert torch.equal(learn.get_preds()[0], plain.get_preds()[0])
