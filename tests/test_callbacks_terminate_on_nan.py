"""Where a number that is none came from: real nets that fail in known places."""

from __future__ import annotations

import math
import random
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from helpers import copied_params, same_params, tiny_dls, tiny_learner
from treadle.callbacks import (
    GradientAccumulation,
    GradientClip,
    NonFiniteWarning,
    TerminateOnNaNCallback,
)
from treadle.data import DataLoader, DataLoaders
from treadle.learner import Learner
from treadle.loop import Callback, CancelFitException
from treadle.losses import CrossEntropyLossFlat
from treadle.optim import SGD


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


def end_of(learn, epochs=1):
    """Fit, and what was found; the weights are those of the last good update."""
    stop = TerminateOnNaNCallback()
    seen, hooks = [], count_hooks(learn.model)
    keep = Callback(before_batch=lambda cb: seen.append(copied_params(cb.model)))
    with pytest.warns(NonFiniteWarning) as warned:
        learn.fit(epochs, cbs=[stop, keep])
    assert len(warned) == 1
    for p, before in zip(learn.model.parameters(), seen[-1], strict=True):
        assert torch.equal(p.nan_to_num(), before.nan_to_num())
    assert str(stop.found) in str(warned[0].message)
    assert count_hooks(learn.model) == hooks
    return stop.found


def count_hooks(model):
    on_params = sum(len(p._backward_hooks or ()) for p in model.parameters())
    return on_params + sum(len(m._forward_hooks | m._forward_pre_hooks) for m in model.modules())


def net_learner(model, dls=None, **kwargs):
    return tiny_learner(model=model, **({"dls": dls} if dls else {}), **kwargs)


class Log(nn.Module):
    def forward(self, x):
        return x.log()


def all_positive_but(batch, samples):
    """`tiny_dls` with positive features, but for some samples of one training batch."""
    dls = tiny_dls()
    dls.loaders = [[(x.abs() + 0.1, y) for x, y in loader] for loader in dls.loaders]
    x, _ = dls.train[batch]
    for i in samples:
        x[i, 2] = -1.0
    return dls


# The forward pass


def test_a_log_of_a_negative_number():
    model = nn.Sequential(Log(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    found = end_of(net_learner(model, all_positive_but(batch=5, samples=[3, 7])))
    assert (found.what, found.epoch, found.batch) == ("the loss", 0, 5)
    assert math.isnan(found.value)
    assert (found.module, found.samples, found.parameters) == ("0", [3, 7], [])
    assert re.search(
        r"the loss became nan at epoch 0, batch 5: it began in the output of the module 0 \(Log\), "
        r"its input from -1 to [\d.]+, in samples 3, 7 of the batch\.",
        str(found),
    )


def test_a_layer_that_explodes():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    learn = net_learner(model)

    def explode(cb):
        if (cb.epoch, cb.iter) == (1, 2):
            with torch.no_grad():
                cb.model[1].weight.fill_(3e38)

    late = Callback(after_batch=explode)
    late.run_valid = False
    learn.add_cb(late)
    found = end_of(learn, epochs=3)
    assert (found.epoch, found.batch, found.module) == (1, 3, "1")
    assert found.parameters == []
    assert "its parameters from" in str(found)
    assert "to 3e+38" in str(found)
    assert len(found.samples) > 8


def test_a_parameter_that_is_no_number_itself():
    learn = tiny_learner()

    def spoil(cb):
        if cb.iter == 3:
            with torch.no_grad():
                cb.model[2].bias[1] = math.nan

    found = end_of(learn_with(learn, before_batch=spoil))
    assert (found.module, found.parameters) == ("2", ["2.bias"])
    assert "in all 16 samples of the batch; 2.bias is not finite" in str(found)


def learn_with(learn, **functions):
    """With functions that come before all other callbacks."""
    cb = Callback(**functions)
    cb.order = -math.inf
    return learn.add_cb(cb)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_named_before_training(value):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].bias[1] = value
        model[1].running_mean[0] = math.nan
    model.register_buffer("mask", torch.full((2,), -math.inf))  # which is as it should be
    stop, batches = TerminateOnNaNCallback(), []
    learn = net_learner(model, cbs=[stop, Callback(before_batch=batches.append)])
    said = f"a weight is {value} before the first batch; 2.bias .and 1 more. is not finite. No bat"
    with pytest.warns(NonFiniteWarning, match=said):
        learn.fit(1)
    assert stop.found.parameters == ["2.bias", "1.running_mean"]
    assert not batches


class Outer(nn.Module):
    """Computes something outside its parts."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x)).sub(100).log()


def test_code_outside_the_parts_is_told_from_them():
    found = end_of(net_learner(nn.Sequential(Outer())))
    assert found.module == "0"
    assert "the module 0 (Outer) itself, outside its parts" in str(found)
    found = end_of(net_learner(Outer()))
    assert found.module == ""
    assert "the output of the model (Outer) itself, outside its parts" in str(found)


def test_infinities_that_heal_are_not_to_blame():
    """An attention mask is -inf by design; the log of a negative behind it is not."""

    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(x < 0, -math.inf)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask, self.softmax = Masked(), nn.Softmax(dim=-1)

        def forward(self, x):
            return self.softmax(self.mask(torch.cat([x, x.abs()], 1)))

    model = nn.Sequential(Attention(), nn.Linear(16, 16), Log(), nn.Linear(16, 4))
    found = end_of(net_learner(model))
    assert found.module == "2"


def test_a_layer_in_place_does_not_hide_its_input():
    class InPlaceLog(nn.Module):
        def forward(self, x):
            return x.log_()

    model = nn.Sequential(nn.Linear(8, 16), InPlaceLog(), nn.ReLU(inplace=True), nn.Linear(16, 4))
    assert end_of(net_learner(model)).module == "1"


# The input, the target and the loss


def image_loaders(bad=None):
    """Treadle's own loaders, in another order each epoch; sample `bad` has an infinite pixel."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=generator), torch.randint(4, (50,), generator=generator)
    if bad is not None:
        x[bad, 5] = math.inf
    dataset = TensorDataset(x, y)
    train = DataLoader(dataset, bs=8, shuffle=True, seed=1, device="cpu", num_workers=0)
    return DataLoaders(train, train.over(TensorDataset(x[:8], y[:8])))


@pytest.mark.parametrize("bad", [0, 31, 49])
def test_an_infinite_sample_is_named_by_its_index(bad):
    dls = image_loaders(bad)
    dls.train.load_state_dict({**dls.train.state_dict(), "epoch": 3})
    order = dls.train.sampler.order(dls.train.seed, 3, len(dls.train.dataset)).tolist()
    found = end_of(net_learner(nn.Linear(8, 4), dls))
    place = order.index(bad)
    assert (found.batch, found.samples, found.indices) == (place // 8, [place % 8], [bad])
    assert found.module is None
    assert (
        f"an input is not finite, in sample {place % 8} of the batch (item {bad} of the data)"
        in (str(found))
    )


def test_the_file_behind_a_sample_is_named():
    dls = image_loaders(bad=12)
    dls.train.dataset.items = [f"images/{i}.jpg" for i in range(50)]
    found = end_of(net_learner(nn.Linear(8, 4), dls))
    assert found.items == ["images/12.jpg"]
    assert "(item 12 of the data: images/12.jpg)" in str(found)


def test_a_target_that_is_no_number():
    dls = tiny_dls()
    dls.loaders = [[(x, x.sum(1)) for x, _ in loader] for loader in dls.loaders]
    dls.train[2][1][[4, 6]] = math.nan
    found = end_of(net_learner(nn.Linear(8, 1), dls, loss_func=lambda p, y: F.mse_loss(p[:, 0], y)))
    assert (found.batch, found.samples, found.module) == (2, [4, 6], None)
    assert "a target is not finite, in samples 4, 6 of the batch" in str(found)


def test_a_loss_function_that_fails_on_one_sample():
    def loss(pred, targ):
        return -pred.sigmoid()[:, 0].sub((targ == 9).float() * 2).log().mean()

    dls = tiny_dls()
    dls.train[3][1][11] = 9
    found = end_of(tiny_learner(dls=dls, loss_func=loss))
    assert (found.batch, found.samples, found.module) == (3, [11], None)
    assert "it began in the loss function, the prediction from" in str(found)


class Spoil(Callback):
    """Spoils what a training batch computes, at one event of one batch."""

    def __init__(self, **events):
        super().__init__(**events)
        self.run_valid = False


def test_callbacks_that_spoil_prediction_or_loss_are_named():
    def pred(cb):
        cb.learn.pred = cb.pred * math.nan

    def loss(cb):
        cb.learn.loss = cb.loss * math.inf

    found = end_of(tiny_learner(cbs=Spoil(after_pred=pred)))
    assert "the prediction as [Spoil] left it is not finite" in str(found)
    found = end_of(tiny_learner(cbs=Spoil(after_loss=loss)))
    assert "the loss as [Spoil] left it is not finite" in str(found)


# The backward pass


class Root(nn.Module):
    """sqrt, whose derivative at 0 is infinite."""

    def forward(self, x):
        return x.sqrt()


def zero_learner(model, sample=5, batch=4):
    """All features are positive, but for one sample of one batch, which is all zeros."""
    dls = all_positive_but(batch=0, samples=[])
    dls.train[batch][0][sample] = 0.0
    return net_learner(model, dls)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.scale


def test_the_gradient_of_a_root_at_zero():
    model = nn.Sequential(Scale(), Root(), nn.Linear(8, 4))
    found = end_of(zero_learner(model))
    assert (found.what, found.batch, found.samples) == ("a gradient", 4, [5])
    assert (found.module, found.parameters) == ("1", ["0.scale"])
    assert re.search(
        r"a gradient became (nan|inf) at epoch 0, batch 4: it began in the gradient that comes out "
        r"of the module 1 \(Root\), its input from 0 to [\d.]+, in sample 5 of the batch; the "
        r"gradient of 0\.scale is not finite\.",
        str(found),
    )


class Nested(nn.Module):
    """The root is taken by this module itself, between its parts."""

    def __init__(self):
        super().__init__()
        self.before = nn.Sequential(Scale(), nn.Identity())
        self.after = nn.Linear(8, 4)

    def forward(self, x):
        return self.after(self.before(x).sqrt())


def test_a_gradient_of_code_between_the_parts():
    found = end_of(zero_learner(nn.Sequential(Nested(), nn.Identity())))
    assert (found.module, found.samples) == ("0", [5])
    assert "the module 0 (Nested) itself, outside its parts" in str(found)


class RootOfParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x * self.scale.sqrt()


def test_the_gradient_of_a_parameter_alone():
    model = nn.Sequential(nn.Linear(8, 8), RootOfParameter(), nn.Linear(8, 4))
    found = end_of(net_learner(model))
    assert (found.module, found.parameters, found.samples) == ("1", ["1.scale"], [])
    assert "the gradient of 1.scale is not finite" in str(found)


def test_a_gradient_that_the_loss_gives():
    def loss(pred, targ):
        return (pred - pred.detach()).abs().sqrt().mean()  # 0, and so steep that it is infinite

    found = end_of(tiny_learner(loss_func=loss))
    assert found.module is None
    assert len(found.parameters) == 4
    assert "the gradient that the loss function gives the prediction" in str(found)
    assert "the gradient of 0.weight (and 3 more) is not finite" in str(found)


@pytest.mark.parametrize("batch", [4, 5, 6])
def test_of_a_window_of_batches_the_right_one_is_named(batch):
    learn = zero_learner(nn.Sequential(Scale(), Root(), nn.Linear(8, 4)), batch=batch)
    learn.add_cb(GradientAccumulation(n_acc=48))
    found = end_of(learn)
    assert (found.batch, found.module, found.samples) == (batch, "1", [5])
    assert learn.updates == batch // 3


# What the replay leaves behind


class Draws(Callback):
    """Draws random numbers before the batch and after the loss, as MixUp does."""

    run_valid = False

    def before_batch(self):
        torch.rand(3)

    def after_loss(self):
        self.learn.loss_grad = self.loss_grad * torch.rand(())


def test_the_replay_draws_the_same_dropout_and_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.1), Log(), nn.Linear(8, 4))
    masks, grads, later = [], [], []
    model[1].register_forward_hook(lambda m, args, out: masks.append(out == 0))
    model[3].weight.register_hook(lambda grad: grads.append(grad.clone()))
    learn = net_learner(model, cbs=[Draws(), Callback(before_step=later.append)])
    buffers = [b.clone() for b in model.buffers()]
    assert end_of(learn).module == "2"
    assert len(masks) == len(grads) == 2
    assert torch.equal(*masks)
    assert torch.equal(grads[0].nan_to_num(), grads[1].nan_to_num())
    assert torch.equal(model[3].weight.grad.nan_to_num(), grads[0].nan_to_num())
    assert all(map(torch.equal, buffers, model.buffers()))
    assert not later  # it ended before those that look at gradients


def test_the_generators_go_on_as_if_nothing_had_been_replayed():
    def draw(module, args, output):
        random.random(), np.random.rand()

    def end(with_callback):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model = nn.Sequential(nn.Dropout(0.1), Log(), nn.Linear(8, 4))
        model[0].register_forward_hook(draw)
        learn = net_learner(model)
        if with_callback:
            with pytest.warns(NonFiniteWarning):
                learn.fit(1, cbs=TerminateOnNaNCallback())
        else:
            learn.fit(1, cbs=Callback(before_step=stop_fit))
        return torch.rand(4).tolist(), random.random(), np.random.rand()

    assert end(True) == end(False)


def stop_fit(cb):
    raise CancelFitException


def test_statistics_of_batch_norm_are_not_spoilt():
    """Or the model would answer NaN for good, with weights that are fine."""
    dls = tiny_dls()
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    model.register_buffer("large", torch.zeros(2**16))

    def count(module, args, output):
        model.large.add_(module.training)

    model[2].register_forward_hook(count)
    dls.train[5][0][9, 1] = math.inf
    learn = net_learner(model, dls)
    found = end_of(learn)
    assert (found.batch, found.samples) == (5, [9])
    assert model[1].num_batches_tracked == 5
    assert (model.large == 5).all()
    assert all(b.isfinite().all() for b in model.buffers())
    assert math.isfinite(learn.validate()[0])


def test_the_learner_goes_on_afterwards():
    dls = tiny_dls()
    dls.train[5][0][9, 1] = math.inf
    stop = TerminateOnNaNCallback()
    learn = net_learner(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), dls)
    before = list(learn.cbs)
    with pytest.warns(NonFiniteWarning):
        learn.fit(1, cbs=stop)
    assert learn.cbs == before
    assert all(cb.run for cb in learn.cbs)
    assert len(learn.recorder.losses) == 5
    dls.train[5][0][9, 1] = 0.0
    learn.fit(1, cbs=stop)
    assert stop.found is None
    assert len(learn.recorder.losses) == 8


def test_a_good_fit_is_the_same_with_and_without():
    def trained(cbs):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 4)
        )
        learn = net_learner(model, cbs=cbs)
        learn.fit(2)
        return model, torch.rand(2)

    (one, drawn), (other, drawn_too) = trained(None), trained(TerminateOnNaNCallback)
    assert same_params(one, copied_params(other))
    assert all(map(torch.equal, one.buffers(), other.buffers()))
    assert torch.equal(drawn, drawn_too)


def test_each_time_is_told_and_can_be_made_an_error():
    """Running a cell again gives the same sentence, which `warn` would keep to itself."""

    def fit():
        dls = tiny_dls()
        dls.train[5][0][9, 1] = math.inf
        learn = tiny_learner(dls=dls)
        learn.fit(1, cbs=TerminateOnNaNCallback())

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        fit()
        fit()
    assert len(seen) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteWarning)
        with pytest.raises(NonFiniteWarning, match=r"epoch 0, batch 5: an input is not finite"):
            fit()


def test_what_does_not_come_again_is_said():
    """A cause outside of torch's random numbers."""
    once = iter([math.nan])
    learn = tiny_learner(loss_func=lambda p, y: F.cross_entropy(p, y) * next(once, 1.0))
    found = end_of(learn)
    assert "it did not come again when the batch was run once more" in str(found)
    assert (found.module, found.samples) == (None, [])


def test_a_replay_that_fails_does_not_hide_what_was_seen():
    calls = []

    def loss(pred, targ):
        calls.append(1)
        if len(calls) > 1:
            raise MemoryError("no room")
        return pred.mean() * math.nan

    found = end_of(tiny_learner(loss_func=loss))
    assert "the loss became nan at epoch 0, batch 0" in str(found)
    assert "failed (MemoryError('no room'" in str(found)


def test_a_compiled_model_is_looked_into():
    model = nn.Sequential(Log(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model.compile(backend="eager")
    found = end_of(net_learner(model, all_positive_but(batch=2, samples=[1])))
    assert (found.batch, found.module, found.samples) == (2, "0", [1])


def test_in_mixed_precision_too():
    model = nn.Sequential(nn.Linear(8, 8), Log(), nn.Linear(8, 4))
    found = end_of(net_learner(model, precision="bf16"))
    assert found.module == "1"


def test_with_a_scaler_only_the_loss_is_looked_at():
    learn = zero_learner(nn.Sequential(Scale(), Root(), nn.Linear(8, 4)))
    learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    learn.add_cbs([TerminateOnNaNCallback(), GradientClip()])
    learn.fit(1)
    assert len(learn.recorder.losses) == 8
    learn = net_learner(nn.Sequential(Log(), nn.Linear(8, 4)), all_positive_but(2, [1]))
    learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert end_of(learn).module == "0"


def test_it_waits_once_a_batch(monkeypatch):
    reads = []
    for name in ("__bool__", "item", "__float__", "tolist"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, name=name, real=real: (reads.append(name), real(t))[1]
        )
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    learn = Learner(
        DataLoaders(tiny_dls().train, device="cpu"), model, CrossEntropyLossFlat(), opt_func=SGD
    )
    with learn.no_bar(), learn.no_logging():
        counts = []
        learn.add_cb(Callback(before_batch=lambda cb: counts.append(len(reads))))
        learn.fit(1, lr=0.1)
        plain = counts[-1] - counts[0]
        counts.clear()
        learn.fit(1, lr=0.1, cbs=TerminateOnNaNCallback())
        assert counts[-1] - counts[0] - plain == len(counts) - 1
