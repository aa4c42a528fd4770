"""The average of the weights: against float64 by hand and torch's own, and in the model when it
should be, however a validation or a fit ends."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import tiny_dls, tiny_learner
from treadle.callbacks import EMACallback, SaveModelCallback
from treadle.callbacks.accumulation import GradientAccumulation
from treadle.data import DataLoaders
from treadle.errors import CallbackError, UsageError
from treadle.loop import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from treadle.losses import CrossEntropyLossFlat
from treadle.optim import Adam, ScheduleFreeAdamW


def norm_learner(**kwargs):
    """The tiny learner with a batch norm in it, whose running statistics are averaged too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return tiny_learner(model=model, **kwargs)


def copied(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


class Weights(Callback):
    """The weights that trained, after each batch, and those that were validated, a copy a pass."""

    order = 50

    def before_fit(self):
        self.trained, self.updates_of, self.validated = [copied(self.model)], [0], []

    def after_batch(self):
        if self.training:
            self.trained.append(copied(self.model))
            self.updates_of.append(self.learn.updates)

    def before_validate(self):
        self.validated.append(copied(self.model))


def by_hand(watch, decay, warmup):
    """The average in float64, over the batches whose update was applied."""
    first, *rest = watch.trained
    average, n = {k: t.double() for k, t in first.items()}, 0
    for weights, (before, after) in zip(rest, pairwise(watch.updates_of), strict=True):
        if after > before:
            n += 1
            d = min(decay, (1 + n) / (10 + n)) if warmup else decay
            average = {k: d * average[k] + (1 - d) * t.double() for k, t in weights.items()}
    return average


def assert_average(model, average):
    for name, t in model.state_dict().items():
        if t.is_floating_point():
            torch.testing.assert_close(t.double(), average[name], rtol=1e-5, atol=1e-6)


# The average


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_is_that_of_the_formula(decay, warmup):
    watch = Weights()
    learn = norm_learner(cbs=[EMACallback(decay, warmup), watch])
    learn.fit(3)
    assert learn.ema.n == 24
    assert_average(learn.model, by_hand(watch, decay, warmup))


def test_the_average_is_that_of_torch():
    theirs = []

    class Torchs(Callback):
        order = 50
        run_valid = False

        def before_fit(self):
            self.swa = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
            )
            self.swa.update_parameters(self.model)  # the first time it copies
            theirs.append(self.swa.module)

        def after_batch(self):
            self.swa.update_parameters(self.model)

    learn = norm_learner(cbs=[EMACallback(0.9, warmup=False), Torchs()])
    learn.fit(2)
    for name, t in learn.model.named_parameters():
        torch.testing.assert_close(t, theirs[0].get_parameter(name), rtol=1e-6, atol=1e-7)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(
            learn.model.get_buffer(name), theirs[0].get_buffer(name), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("moment", "cancel"),
    [
        ("before_step", CancelStepException),
        ("after_loss", CancelBatchException),
    ],
)
def test_only_applied_updates_count(moment, cancel):
    class SkipSome(Callback):
        order = 30
        run_valid = False

        def skip(self):
            if self.iter % 3 == 0:
                raise cancel

    setattr(SkipSome, moment, SkipSome.skip)
    SkipSome._heard = frozenset({moment})
    watch = Weights()
    learn = norm_learner(cbs=[EMACallback(0.8, warmup=False), SkipSome(), watch])
    learn.fit(2)
    applied = learn.updates
    assert learn.ema.n == applied
    assert_average(learn.model, by_hand(watch, 0.8, warmup=False))


def test_gathered_gradients_make_one_update_also_the_last_ones():
    """Windows of 48 samples in batches of 16: three, three and two batches, the last of which is
    cancelled in the second epoch, so that its window is stepped with after the batches."""

    class CancelLast(Callback):
        run_valid = False

        def before_batch(self):
            if self.epoch == 1 and self.iter == 7:
                raise CancelBatchException

    class Steps(Callback):
        """The weights after each step."""

        order = 50

        def before_fit(self):
            self.trained, self.updates_of = [copied(self.model)], [0]

        def after_step(self):
            self.trained.append(copied(self.model))
            self.updates_of.append(self.learn.updates)

    steps = Steps()
    learn = tiny_learner(cbs=[EMACallback(0.8), GradientAccumulation(48), CancelLast(), steps])
    learn.fit(2)
    assert steps.updates_of == [0, 1, 2, 3, 4, 5, 6]
    assert learn.ema.n == 6
    assert_average(learn.model, by_hand(steps, 0.8, warmup=True))


def test_an_update_that_the_scaler_skipped_does_not_count():
    learn = tiny_learner(cbs=EMACallback(0.8))
    learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def spoil(grad):
        return grad * math.inf if learn.iter == 3 else grad

    learn.model[2].weight.register_hook(spoil)
    learn.fit(1)
    assert learn.ema.n == 7


def test_half_precision_is_averaged_in_float32():
    """A step of 1e-3 of the difference is below what bfloat16 can add to 1."""
    model = nn.Linear(8, 4).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    y = torch.zeros(64, 4, dtype=torch.bfloat16)
    dls = DataLoaders([(x, y)] * 100, device="cpu")
    learn = tiny_learner(dls=dls, model=model, loss_func=nn.MSELoss(), lr=0.0)

    class Jump(Callback):
        run_valid = False

        def after_step(self):
            with torch.no_grad():
                self.model.weight.fill_(2.0)

    learn.add_cbs([EMACallback(0.999, warmup=False), Jump()])
    learn.fit(1)
    expected = 1 + (1 - 0.999**100)
    assert learn.model.weight.dtype == torch.bfloat16
    assert abs(learn.model.weight.float().mean().item() - expected) < 0.01
    assert torch.equal(learn.ema.raw["weight"], torch.full_like(model.weight, 2.0))


def test_what_cannot_be_averaged_is_that_of_training():
    learn = norm_learner(cbs=EMACallback(0.5))
    learn.fit(2)
    assert learn.model[1].num_batches_tracked.item() == 16


# What the model holds


def test_training_is_that_without_an_average_and_validation_that_of_the_average():
    plain, with_ema = Weights(), Weights()
    norm_learner(cbs=plain, opt_func=Adam, lr=0.01).fit(3)
    learn = norm_learner(cbs=[EMACallback(0.8), with_ema], opt_func=Adam, lr=0.01)
    learn.fit(3)
    assert len(plain.trained) == len(with_ema.trained)
    assert all(map(equal, plain.trained, with_ema.trained))
    assert not equal(plain.validated[0], with_ema.validated[0])
    assert equal(learn.ema.raw, plain.trained[-1])
    assert equal(copied(learn.model), with_ema.validated[-1])
    assert_average(learn.model, by_hand(with_ema, 0.8, warmup=True))


def test_the_table_shows_the_loss_of_the_average():
    learn = norm_learner(cbs=EMACallback(0.8))
    learn.fit(2)
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    learn.model.eval()
    loss = CrossEntropyLossFlat()(learn.model(x), y).item()
    assert learn.recorder.values[-1][1] == pytest.approx(loss, rel=1e-5)
    assert learn.validate()[0] == pytest.approx(loss, rel=1e-5)
    learn.model.load_state_dict(learn.ema.raw)
    assert learn.validate()[0] != pytest.approx(loss, rel=1e-3)


def test_without_validation_an_epoch_ends_on_the_average_too():
    saved = []
    learn = norm_learner(dls=DataLoaders(tiny_dls().train, device="cpu"), cbs=EMACallback(0.8))
    learn.add_cb(Callback(after_epoch=lambda cb: saved.append(copied(cb.model))))
    learn.fit(2)
    assert equal(saved[-1], copied(learn.model))
    assert not equal(saved[-1], learn.ema.raw)


ENDS = [
    CancelBatchException,
    CancelTrainException,
    CancelValidException,
    CancelEpochException,
    CancelFitException,
    KeyboardInterrupt,
    RuntimeError,
]


class FailOnce(Callback):
    """Raises `error` at the event `moment` of epoch 1, in a validation or not."""

    order = 40

    def __init__(self, moment, error, training):
        setattr(self, moment, lambda: self._fail(error, training))
        self.done = False

    def _fail(self, error, training):
        if self.epoch == 1 and self.learn.training == training and not self.done:
            self.done = True
            raise error


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize(
    ("moment", "training"),
    [
        ("before_validate", False),
        ("after_pred", False),
        ("after_batch", False),
        ("after_validate", False),
        ("after_epoch", False),
        ("before_epoch", False),
        ("after_pred", True),
        ("before_step", True),
        ("after_train", True),
    ],
)
def test_however_a_pass_ends_training_goes_on_from_the_trained_weights(moment, training, error):
    fails, watch = FailOnce(moment, error, training), Weights()
    learn = norm_learner(cbs=[EMACallback(0.8), fails, watch])
    with suppress(error):
        learn.fit(3)
    assert fails.done
    # The same fit without an average, that ends the same way
    fails, plain = FailOnce(moment, error, training), Weights()
    without = norm_learner(cbs=[fails, plain])
    with suppress(error):
        without.fit(3)
    assert len(watch.trained) == len(plain.trained)
    assert all(map(equal, watch.trained, plain.trained))
    assert equal(learn.ema.raw, copied(without.model))
    assert not equal(copied(learn.model), learn.ema.raw)


@pytest.mark.parametrize("error", [CancelFitException, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["before_fit", "before_epoch", "before_train"])
def test_a_fit_that_ends_before_it_trains_leaves_the_weights(moment, error):
    learn = norm_learner(cbs=EMACallback())
    before = copied(learn.model)

    def fail(cb):
        raise error

    with suppress(error):
        learn.fit(1, cbs=Callback(**{moment: fail}))
    assert equal(copied(learn.model), before)
    learn.fit(0)
    assert equal(copied(learn.model), before)


def test_the_next_fit_goes_on_from_the_average_with_a_new_one():
    learn, watch = norm_learner(cbs=EMACallback(0.8)), Weights()
    learn.fit(2)
    average = copied(learn.model)
    learn.fit(1, cbs=watch)
    assert equal(watch.trained[0], average)
    assert learn.ema.n == 8
    assert_average(learn.model, by_hand(watch, 0.8, warmup=True))


def test_the_trained_weights_can_be_put_back():
    learn = norm_learner(cbs=EMACallback(0.8))
    learn.fit(1)
    learn.model.load_state_dict(learn.ema.raw)
    plain = norm_learner()
    plain.fit(1)
    assert equal(copied(learn.model), copied(plain.model))


# What is saved


def test_the_best_average_is_saved_with_its_score_and_loaded(tmp_path):
    watch = Weights()
    keep = SaveModelCallback(fname="best")
    # After the first epoch the rate is far too high: the first average is the best.
    jump = Callback(after_epoch=lambda cb: cb.opt.set_hypers(lr=50.0))
    learn = norm_learner(path=tmp_path, cbs=[EMACallback(0.8), keep, watch, jump])
    learn.fit(3)
    losses = [row[1] for row in learn.recorder.values]
    assert losses[0] == min(losses)
    assert equal(copied(learn.model), watch.validated[0])
    with torch.no_grad():
        learn.model[0].weight.zero_()
    learn.load("best")
    assert equal(copied(learn.model), watch.validated[0])
    assert learn.validate()[0] == pytest.approx(losses[0], rel=1e-6)
    assert equal(learn.ema.raw, watch.trained[-1])


def test_what_is_saved_after_an_epoch_and_at_the_end_is_the_average(tmp_path):
    learn = norm_learner(path=tmp_path, cbs=EMACallback(0.8))
    watch = Weights()
    every, last = SaveModelCallback(every_epoch=True, fname="epoch"), SaveModelCallback(at_end=True)
    for keep in (every, last):
        learn.fit(2, cbs=[watch, keep])
        average = copied(learn.model)
        learn.model.load_state_dict(learn.ema.raw)
        learn.load("epoch_1" if keep is every else "model")
        assert equal(copied(learn.model), average)
        assert equal(average, watch.validated[-1])
    assert (tmp_path / "models" / "epoch_0.safetensors").is_file()


# Beside others


def test_a_rate_sweep_leaves_average_and_trained_weights():
    learn = norm_learner(cbs=EMACallback(0.8))
    learn.fit(1)
    average, raw = copied(learn.model), learn.ema.raw
    learn.lr_find(num_it=20, show_plot=False)
    assert equal(copied(learn.model), average)
    assert learn.ema.raw is raw


def test_predictions_after_an_epoch_are_those_of_the_average():
    preds = []
    learn = norm_learner(cbs=EMACallback(0.8))
    ask = Callback(after_epoch=lambda cb: preds.append(cb.learn.get_preds()[0]))
    learn.fit(2, cbs=ask)
    assert torch.equal(preds[-1], learn.get_preds()[0])
    learn.model.load_state_dict(learn.ema.raw)
    assert not torch.equal(preds[-1], learn.get_preds()[0])


def test_an_optimizer_with_an_average_of_its_own_is_refused():
    learn = tiny_learner(opt_func=ScheduleFreeAdamW, cbs=EMACallback())
    with pytest.raises(CallbackError, match="so does this optimizer"):
        learn.fit(1)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(decay):
    with pytest.raises(UsageError, match=r"give a number from 0 to below 1"):
        EMACallback(decay)


# A resume


class Capture(Callback):
    """The state of the average and of the model at an event of epoch 0."""

    order = 90
    run_valid = False

    def __init__(self, moment):
        setattr(self, moment, self._capture)
        self.taken = None

    def _capture(self):
        if self.epoch == 0:
            self.taken = self.ema.state_dict(), copied(self.model)


@pytest.mark.parametrize("moment", ["after_batch", "after_train", "after_validate", "after_epoch"])
def test_a_fit_goes_on_from_its_state(moment):
    capture = Capture(moment)
    whole = norm_learner(cbs=[EMACallback(0.8), capture])
    whole.fit(2)
    ema_state, weights = capture.taken
    assert ema_state["n"] == 8
    learn = norm_learner(cbs=EMACallback(0.8))
    learn.model.load_state_dict(weights)
    learn.ema.load_state_dict(ema_state)
    learn.fit(1)
    assert learn.ema.n == 16
    assert equal(learn.ema.raw, whole.ema.raw)
    assert equal(copied(learn.model), copied(whole.model))


def test_a_state_is_a_copy():
    learn = norm_learner(cbs=EMACallback(0.8))
    states = []
    learn.add_cb(Callback(after_batch=lambda cb: states.append(cb.ema.state_dict())))
    learn.fit(1)
    first, last = states[0]["average"]["0.weight"], states[7]["average"]["0.weight"]
    assert not torch.equal(first, last)


def test_the_state_of_another_model_is_refused():
    capture = Capture("after_batch")
    norm_learner(cbs=[EMACallback(), capture]).fit(1)
    learn = tiny_learner(cbs=EMACallback())
    with pytest.raises(UsageError, match=r"of another model: 1\.bias, 1\.running_mean"):
        learn.ema.load_state_dict(capture.taken[0])
