"""A number that is none, in six places, under three policies, at the first, a middle and the last
batch: what is said, and that what is left is what it should be, bit for bit."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from resume_cases import digest
from torch import nn

from treadle.callbacks import (
    EarlyStoppingCallback,
    EMACallback,
    Every,
    GradientAccumulation,
    NonFiniteError,
    NonFiniteWarning,
    ProgressCallback,
    ReduceLROnPlateau,
    RollBack,
    SaveModelCallback,
    SkipNonFinite,
    TerminateOnNaNCallback,
)
from treadle.data import DataLoader, DataLoaders
from treadle.errors import CallbackError, TreadleError, UsageError
from treadle.learner import Learner
from treadle.loop import Callback, CancelBatchException
from treadle.optim import SGD, Adam, Lookahead, RAdam

BATCHES = 8
PLACES = ["input", "label", "loss", "gradient", "weight"]
MOMENTS = [(0, 0), (0, 4), (1, BATCHES - 1)]  # epoch and batch


class Early(Callback):
    """Comes before all others."""

    order = -1000
    run_valid = False


class Noise(Early):
    """Draws from all generators, as users' callbacks do."""

    def before_batch(self):
        scale = random.random() + float(np.random.rand()) + float(torch.rand(()))
        self.learn.xb = tuple(x * (1 + 0.01 * scale) for x in self.xb)

    order = 1


class Spoil(Early):
    """Spoils one number, in one place, at some batches of training."""

    state_names = ()

    def __init__(self, place, *moments, value=math.nan):
        self.place, self.moments, self.value = place, moments, value

    def now(self, place):
        return self.place == place and (self.epoch, self.iter) in self.moments and self.training

    def before_fit(self):
        def spoil_gradient(grad):
            return torch.full_like(grad, self.value) if self.now("gradient") else grad

        hook = self.model[0].weight.register_hook(spoil_gradient)
        self.scope.callback(hook.remove)

    def before_batch(self):
        if self.now("input"):
            self.learn.xb = (_with(self.x, self.value),)
        if self.now("label"):
            self.learn.yb = (_with(self.y, self.value),)
        if self.now("weight"):
            with torch.no_grad():
                self.model[4].bias[0] = self.value

    def after_loss(self):
        if self.now("loss"):
            self.learn.loss = self.loss * self.value


def _with(t, value):
    t = t.clone()
    t[5, 0] = value
    return t


class NeverSeen(Early):
    """The oracle of what is left out: the batch is cancelled before anything looks at it."""

    def __init__(self, *moments):
        self.moments = moments

    def before_batch(self):
        if (self.epoch, self.iter) in self.moments:
            raise CancelBatchException


def learner(*cbs, opt_func=Adam, dropout=0.3, metrics=(), path=".", dls=None):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
    )
    dls = dls or loaders()
    learn = Learner(
        dls, model, F.mse_loss, opt_func, lr=0.01, cbs=list(cbs), metrics=metrics, path=path
    )
    learn.remove_cb(ProgressCallback)
    return learn


def loaders():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(16 * (BATCHES + 2), 8, generator=draw)
    batches = list(zip(x.split(16), x[:, :1].split(16), strict=True))
    return DataLoaders(batches[:BATCHES], batches[BATCHES:], device="cpu")


def state(learn, with_random=True):
    """All that training has made of it."""
    parts = {
        "weights": dict(learn.model.state_dict()),
        "optimizer": copy.deepcopy(learn.opt.state_dict()["state"]),
        "average": learn.ema.state_dict() if hasattr(learn, "ema") else None,
    }
    if with_random:
        parts["random"] = [random.random(), float(np.random.rand()), torch.rand(3)]
        parts["losses"] = [learn.recorder.raw_losses, learn.recorder.lrs]
        parts["clock"] = [learn.updates, learn.planned_updates]
    return {name: digest(part) for name, part in parts.items()}


def fitted(*cbs, **settings):
    learn = learner(*cbs, **settings)
    learn.fit(1)
    return state(learn)


def said_of(place):
    """What the sentence says beside the moment."""
    return {
        "input": r"the loss became nan .*an input is not finite, in sample 5 of the batch",
        "label": r"the loss became nan .*a target is not finite, in sample 5 of the batch",
        "loss": r"the loss became nan .*the loss as \[Spoil\] left it is not finite",
        "gradient": r"a gradient became nan .*; the gradient of 0\.weight is not finite",
        "weight": r"the loss became nan .*the module 4 \(Linear\).*; 4\.bias is not finite",
    }[place]


# Raise


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_raise(place, moment):
    learn = learner(TerminateOnNaNCallback(error=True), Spoil(place, moment))
    learn.add_cb(Moments())
    when = f"epoch {moment[0]}, batch {moment[1]}"
    with pytest.raises(NonFiniteError, match=said_of(place)) as raised:
        learn.fit_one_cycle(2)
    assert when in str(raised.value)
    assert isinstance(raised.value, TreadleError | FloatingPointError)
    found = raised.value.found
    assert (found.epoch, found.batch) == moment
    if place == "weight":
        with torch.no_grad():
            learn.model[4].bias.zero_()
    else:
        assert state(learn, with_random=False) == learn.moments.at[learn.updates]
    learn.remove_cbs([Spoil, Moments])
    learn.fit(1)  # and nothing of it is left
    assert math.isfinite(learn.validate()[0])


# Skip


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES[:-1])
def test_skip_is_as_if_the_batch_had_never_been_there(place, moment):
    def trained(*cbs):
        learn = learner(EMACallback(0.9), Noise(), *cbs)
        learn.fit_one_cycle(2)
        return {**state(learn), "values": learn.recorder.values}

    skip = SkipNonFinite()
    with pytest.warns(NonFiniteWarning, match=said_of(place)) as warned:
        found = trained(Spoil(place, moment), skip)
    assert len(warned) == len(skip.skipped) == 1
    assert "The batch is left out, number 1 in this fit." in str(warned[0].message)
    assert (skip.skipped[0].epoch, skip.skipped[0].batch) == moment
    assert found == trained(NeverSeen(moment))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("place", PLACES[:-1])
def test_skip_of_infinities(place, value):
    with pytest.warns(NonFiniteWarning):
        found = fitted(Spoil(place, (0, 3), value=value), SkipNonFinite())
    assert found == fitted(NeverSeen((0, 3)))


@pytest.mark.parametrize("place", ["input", "gradient"])
@pytest.mark.parametrize("moments", [[(0, 0)], [(0, 1), (0, 2)], [(0, 4)], [(0, 7), (1, 1)]])
def test_skip_leaves_what_is_gathered_for_a_step(place, moments):
    """At the first, a middle and the last batch of a window, and of an epoch."""

    def trained(*cbs):
        learn = learner(GradientAccumulation(48), EMACallback(0.9), *cbs)
        learn.fit_one_cycle(2)
        return state(learn)

    with pytest.warns(NonFiniteWarning):
        found = trained(Spoil(place, *moments), SkipNonFinite())
    assert found == trained(NeverSeen(*moments))


@pytest.mark.parametrize("opt_func", [SGD, lambda p, **kw: Lookahead(RAdam(p, **kw), k=3)])
def test_skip_is_as_a_loader_without_the_batch(opt_func):
    dls = loaders()
    del dls.loaders[0][4]
    theirs = fitted(opt_func=opt_func, dls=dls)
    with pytest.warns(NonFiniteWarning):
        mine = fitted(Spoil("label", (0, 4)), SkipNonFinite(), opt_func=opt_func)
    assert mine.pop("clock") != theirs.pop("clock")  # one update less was planned there
    assert mine == theirs


class Carries(nn.Module):
    """A layer with a hidden state that goes on from batch to batch, as language models have."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.hidden = None

    def forward(self, x):
        x = x if self.hidden is None else x + 0.1 * self.hidden
        self.hidden = x.detach()
        return x


def test_skip_puts_a_hidden_state_back():
    def trained(*cbs):
        learn = learner(*cbs)
        learn.model.insert(2, Carries())
        learn.fit(1)
        return state(learn)

    with pytest.warns(NonFiniteWarning) as warned:
        found = trained(Spoil("input", (0, 3)), SkipNonFinite())
    assert len(warned) == 1
    assert found == trained(NeverSeen((0, 3)))


def test_skip_ends_after_so_many_in_a_row():
    row = [(0, i) for i in (0, 1, 3, 4, 5)]
    skip = SkipNonFinite(most_in_a_row=2)
    learn = learner(Spoil("input", *row), skip)
    with (
        pytest.warns(NonFiniteWarning) as warned,
        pytest.raises(NonFiniteError, match=r"batch 5: .*That is 3 batches in a row"),
    ):
        learn.fit(1)
    assert len(warned) == 4
    assert len(skip.skipped) == 5
    assert len(learn.recorder.losses) == 1
    assert all(t.isfinite().all() for t in learn.model.state_dict().values())
    with pytest.raises(UsageError, match="give 0 or more"):
        SkipNonFinite(-1)


@pytest.mark.parametrize("moment", MOMENTS)
def test_skip_does_not_go_on_with_weights_that_are_gone(moment):
    learn = learner(Spoil("weight", moment), SkipNonFinite())
    said = f"epoch {moment[0]}, batch {moment[1]}: .*4.bias is not finite. To leave batches out "
    with pytest.raises(NonFiniteError, match=said):
        learn.fit(2)


def test_skip_says_which_samples():
    data = torch.utils.data.TensorDataset(torch.randn(48, 8), torch.randn(48, 1))
    data.tensors[0][17, 2] = math.nan
    train = DataLoader(data, bs=8, shuffle=True, seed=1, device="cpu", num_workers=0)
    skip = SkipNonFinite()
    valid = train.over(torch.utils.data.TensorDataset(*(t[:8] for t in data.tensors)))
    learn = learner(skip, dls=DataLoaders(train, valid))
    with pytest.warns(NonFiniteWarning, match="item 17 of the data"):
        learn.fit(2)
    assert [found.indices for found in skip.skipped] == [[17], [17]]


def test_a_resumed_fit_knows_what_was_left_out(tmp_path):
    """And ends with the same bits."""

    def stop(cb):
        if (cb.epoch, cb.iter) == (1, 4):
            raise ConnectionAbortedError

    def make(*cbs):
        return learner(Spoil("input", (0, 6), (1, 6)), SkipNonFinite(), *cbs, path=tmp_path)

    def found_of(learn):
        return {**state(learn), "found": [str(found) for found in learn.skip_non_finite.skipped]}

    with pytest.warns(NonFiniteWarning):
        whole = make()
        whole.fit(2)
        expected = found_of(whole)
        with pytest.raises(ConnectionAbortedError):
            make(Early(after_batch=stop)).fit(2, checkpoint=Every(updates=3))
        learn = make()
        learn.resume()
    assert len(learn.skip_non_finite.skipped) == 2
    assert found_of(learn) == expected


# Roll back


class Moments(Callback):
    """What there is after each update, and when a batch was cancelled."""

    order = 1000
    run_valid = False

    def before_fit(self):
        self.at, self.landed = {}, []

    def before_train(self):
        self.at.setdefault(self.learn.updates, state(self.learn, with_random=False))

    def after_batch(self):
        if self.loss is None:
            self.landed.append(state(self.learn, with_random=False))
        else:
            self.at.setdefault(self.learn.updates, state(self.learn, with_random=False))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_roll_back_lands_on_the_last_good_state(place, moment):
    back, moments = RollBack(every=3), Moments()
    learn = learner(Spoil(place, moment), back, moments, EMACallback(0.9))
    with pytest.warns(NonFiniteWarning, match=said_of(place)) as warned:
        learn.fit_one_cycle(2)
    done = moment[0] * BATCHES + moment[1]
    # A weight was spoilt before the batch began: at update 15 there was nothing good to keep.
    good = max(done - (place == "weight"), 0) // 3 * 3
    assert f"What was trained is again as it was after update {good}." in str(warned[0])
    assert [(found.epoch, found.batch) for found in back.rolled_back] == [moment]
    assert moments.landed == [moments.at[good]]
    assert len(learn.recorder.losses) == learn.updates == 2 * BATCHES - 1
    assert all(t.isfinite().all() for t in learn.model.state_dict().values())
    assert "good" not in vars(back)


def test_what_was_kept_serves_twice():
    """Training on does not change the copy, whoever the optimizer is."""
    for opt_func in (Adam, torch.optim.AdamW, lambda p, **kw: Lookahead(RAdam(p, **kw), k=3)):
        moments = Moments()
        spoil = Spoil("gradient", (0, 2), (0, 5))
        learn = learner(spoil, RollBack(every=100), moments, opt_func=opt_func)
        with pytest.warns(NonFiniteWarning):
            learn.fit(1)
        assert moments.landed == [moments.at[0]] * 2


@pytest.mark.parametrize("place", PLACES[:-1])
def test_roll_back_of_no_update_is_as_if_the_batch_had_not_been_there(place):
    """Training goes on with the next data, at the same schedule."""

    def trained(*cbs):
        learn = learner(*cbs, EMACallback(0.9), dropout=0.0)
        learn.fit_one_cycle(2)
        return state(learn)

    with pytest.warns(NonFiniteWarning):
        found = trained(Spoil(place, (1, 3)), RollBack(every=1))
    assert found == trained(NeverSeen((1, 3)))


def test_roll_back_with_gradients_gathered():
    moments = Moments()
    learn = learner(
        Spoil("input", (0, 4)), RollBack(every=1), moments, GradientAccumulation(48), dropout=0.0
    )
    with pytest.warns(NonFiniteWarning):
        learn.fit(1)
    assert moments.landed == [moments.at[1]]
    assert learn.updates == 2  # batches 0 to 2, and 5 to 7


def test_roll_back_ends_after_so_many_times():
    back, moments = RollBack(every=2, most=1), Moments()
    learn = learner(Spoil("weight", (0, 3), (0, 6)), back, moments)
    with (
        pytest.warns(NonFiniteWarning),
        pytest.raises(NonFiniteError, match=r"after update 4\. It happened 2 times in"),
    ):
        learn.fit(1)
    assert state(learn, with_random=False) == moments.at[4]


@pytest.mark.parametrize("schedule", [False, True])
def test_roll_back_lowers_the_rate(schedule):
    def rates(*cbs):
        learn = learner(*cbs)
        learn.fit_one_cycle(1) if schedule else learn.fit(1)
        return learn.recorder.lrs

    left_out = [(0, 2), (0, 5)]
    plain = rates(NeverSeen(*left_out))
    with pytest.warns(NonFiniteWarning):
        lowered = rates(Spoil("loss", *left_out), RollBack(lr_factor=0.5))
    assert lowered == pytest.approx(
        [lr * f for lr, f in zip(plain, [1, 1, 0.5, 0.5, 0.25, 0.25], strict=True)]
    )


def test_what_is_out_of_range():
    for wrong in ({"every": 0}, {"most": -1}, {"lr_factor": 0.0}, {"lr_factor": 1.5}):
        with pytest.raises(UsageError, match="give every of 1 or more"):
            RollBack(**wrong)


# Metrics, weights before training, and all of them


class Odd:
    """A metric that is NaN in the second epoch and would be the best there otherwise."""

    __name__ = "odd"

    def __init__(self):
        self.calls = 0

    def __call__(self, pred, targ):
        self.calls += 1
        return torch.tensor([3.0, math.nan, 4.0, 2.0][(self.calls - 1) // 2])


@pytest.mark.parametrize("watch", [TerminateOnNaNCallback, SkipNonFinite, RollBack])
def test_a_metric_is_named_and_never_the_best(watch, tmp_path):
    keep = SaveModelCallback("odd", comp=lambda new, best: not new <= best)  # a NaN would be
    stop, slow = EarlyStoppingCallback("odd", patience=2), ReduceLROnPlateau("odd", patience=1)
    weights = []
    learn = learner(watch(), keep, stop, slow, metrics=Odd(), path=tmp_path)
    learn.add_cb(Callback(after_epoch=lambda cb: weights.append(digest(cb.model.state_dict()))))
    with pytest.warns(NonFiniteWarning, match="odd is nan after epoch 1. It does not count"):
        learn.fit(4)
    assert (keep.best, stop.best, slow.best) == (4.0, 4.0, 4.0)
    assert stop.wait == 1
    assert digest(learn.model.state_dict()) == weights[2]
    assert learn.recorder.lrs[2 * BATCHES] == pytest.approx(0.001)  # the NaN was no progress


def test_a_metric_as_an_error(tmp_path):
    keep = SaveModelCallback("odd", comp=lambda new, best: not new <= best)
    learn = learner(TerminateOnNaNCallback(error=True), keep, metrics=Odd(), path=tmp_path)
    with pytest.raises(NonFiniteError, match="odd is nan after epoch 1"):
        learn.fit(4)
    assert keep.best == 3.0


@pytest.mark.parametrize("watch", [SkipNonFinite(), RollBack(), TerminateOnNaNCallback(error=True)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_are_named_before_training(watch, value):
    learn = learner(watch)
    with torch.no_grad():
        learn.model[4].weight[0, 3] = value
    with pytest.raises(NonFiniteError, match=f"a weight is {value} before .*; 4.weight is not fin"):
        learn.fit(1)
    assert not learn.recorder.losses


def test_one_at_a_time():
    learn = learner(SkipNonFinite(), RollBack())
    with pytest.raises(CallbackError, match="SkipNonFinite and RollBack watch the same"):
        learn.fit(1)


@pytest.mark.parametrize("watch", [SkipNonFinite, RollBack])
def test_a_good_fit_is_the_same_with_and_without(watch):
    assert fitted(watch(), Noise()) == fitted(Noise())


def test_a_rate_sweep_goes_without():
    learn = learner(RollBack())
    learn.lr_find(num_it=20, end_lr=1e30, stop_div=False, show_plot=False)
