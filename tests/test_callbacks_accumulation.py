"""Gathered gradients are those of the large batch, for any split."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from helpers import copied_params, tiny_learner
from treadle.all import (
    SGD,
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelStepException,
    CancelTrainException,
    DataLoader,
    DataLoaders,
    GradientAccumulation,
    GradientClip,
    UsageError,
)
from treadle.losses import CrossEntropyLossFlat

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def samples(n):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def learner_of(sizes, **kwargs):
    x, y = samples(sum(sizes))
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    defaults = {"opt_func": MOMENTUM, "lr": 0.5, "loss_func": cross_entropy}
    dls = DataLoaders(batches, device="cpu")
    return tiny_learner(**{"dls": dls, "model": model(), **defaults, **kwargs})


class CancelSome(Callback):
    """Cancels the batches `at`, counted over the fit, before their backward pass."""

    run_valid = False

    def __init__(self, at, where="after_loss", error=CancelBatchException):
        self.at, self.error, self.seen = at, error, -1
        setattr(self, where, self.cancel)

    def before_batch(self):
        self.seen += 1

    def cancel(self):
        if self.seen in self.at:
            raise self.error


def windows(sizes, n_acc, cancelled=()):
    """Which batches each step of an epoch takes together."""
    found, window = [], []
    for i in range(len(sizes)):
        if i not in cancelled:
            window.append(i)
        full = sum(sizes[j] for j in window) >= n_acc
        if window and (full or i == len(sizes) - 1):
            found.append(window)
            window = []
    return found


def by_hand(sizes, steps, clip=None, lr=0.5):
    """Losses and parameters of large batches, the samples of a window each, with torch alone."""
    xs, ys = (t.split(list(sizes)) for t in samples(sum(sizes)))
    net, losses = model(), []
    opt = MOMENTUM(net.parameters(), lr=lr)
    for window in steps:
        x, y = (torch.cat([t[i] for i in window]) for t in (xs, ys))
        loss = cross_entropy(net(x), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses, list(net.parameters())


def assert_like(learn, losses, params):
    assert learn.recorder.raw_losses == pytest.approx(losses)  # the recorder keeps float32
    for p, expected in zip(learn.model.parameters(), params, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12)


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    n_acc=st.integers(1, 25),
    clip=st.sampled_from([None, 0.1]),
    scaled=st.booleans(),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_any_split_equals_the_large_batch(sizes, n_acc, clip, scaled, data):
    """Two epochs, with momentum, clipping, a loss scaler, and batches that are left out."""
    n = len(sizes)
    cancelled = data.draw(st.sets(st.integers(0, 2 * n - 1), max_size=n))
    how = data.draw(st.sampled_from([CancelBatchException, CancelBackwardException]))
    where = "after_loss" if how is CancelBatchException else "before_backward"
    learn = learner_of(sizes, cbs=[CancelSome(cancelled, where, how), GradientAccumulation(n_acc)])
    if clip:
        learn.add_cb(GradientClip(clip))
    if scaled:
        learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with learn.no_logging():
        learn.fit(2)
    steps = [
        window
        for epoch in range(2)
        for window in windows(sizes, n_acc, {i - epoch * n for i in cancelled})
    ]
    assert_like(learn, *by_hand(sizes, steps, clip))
    assert learn.updates == len(learn.recorder.lrs) == len(steps)


def test_a_learner_of_small_batches_is_the_learner_of_large_ones():
    """The same run, schedule and all, with batches of 4 and of 16, the last one ragged."""
    runs = []
    for bs, cbs in ((16, ()), (4, [GradientAccumulation(16)])):
        x, y = samples(58)
        data = torch.utils.data.TensorDataset(x, y)
        train = DataLoader(data, bs=bs, device="cpu", num_workers=0)
        learn = tiny_learner(
            dls=DataLoaders(train), model=model(), opt_func=partial(SGD, mom=0.9), cbs=list(cbs)
        )
        with learn.no_logging():
            learn.fit_one_cycle(3, 0.5)
        runs.append(learn)
    large, small = runs
    assert small.planned_updates == large.planned_updates == small.updates == 12
    assert small.recorder.lrs == large.recorder.lrs
    assert small.recorder.iters == large.recorder.iters == [4, 8, 12]
    assert small.recorder.losses == pytest.approx(large.recorder.losses)
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("named", [True, False])
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_plan_is_what_comes_true(named, bs, n, n_acc, n_epoch):
    """Whether the loader says its batch size or the first batch does."""
    sizes = [bs] * (n // bs) + [n % bs] * (n % bs > 0)
    learn = learner_of(sizes, cbs=GradientAccumulation(n_acc))
    if named:
        learn.dls = DataLoaders(
            torch.utils.data.DataLoader(list(zip(*samples(n), strict=True)), bs), device="cpu"
        )
    progress = []
    watch = Callback(before_batch=lambda cb: progress.append(cb.pct_train))
    with learn.no_logging():
        learn.fit(n_epoch, cbs=watch)
    assert learn.updates == learn.planned_updates == n_epoch * len(windows(sizes, n_acc))
    assert progress[0] == 0
    assert learn.pct_train == 1


def test_an_epoch_smaller_than_the_window_still_steps():
    learn = learner_of([3, 2], cbs=GradientAccumulation(1000))
    learn.fit(2)
    assert_like(learn, *by_hand([3, 2], [[0, 1], [0, 1]]))


def test_events_come_once_a_window_with_the_averaged_gradient():
    sizes, seen = [3, 3, 3, 1], []
    learn = learner_of(sizes, cbs=GradientAccumulation(6))
    x, y = samples(10)
    expected = torch.autograd.grad(cross_entropy(learn.model(x[:6]), y[:6]), learn.model[0].weight)

    def look(cb):
        seen.append((cb.iter, cb.model[0].weight.grad.clone()))

    order = []
    watch = Callback(
        after_step=lambda cb: order.append("step"), after_batch=lambda cb: order.append("batch")
    )
    learn.fit(1, cbs=[Callback(before_step=look), watch])
    assert order == ["batch", "step", "batch", "batch", "step", "batch"]
    assert [i for i, _ in seen] == [1, 3]
    torch.testing.assert_close(seen[0][1], expected[0])


@pytest.mark.parametrize("where", ["after_backward", "before_step"])
def test_a_batch_cancelled_after_its_backward_pass_takes_the_window_along(where):
    sizes = [2] * 6
    learn = learner_of(sizes, cbs=[CancelSome({1}, where), GradientAccumulation(4)])
    learn.fit(1)
    assert_like(learn, *by_hand(sizes, [[2, 3], [4, 5]]))


def test_a_cancelled_step_drops_its_window():
    sizes = [2] * 6
    learn = learner_of(
        sizes, cbs=[CancelSome({3}, "before_step", CancelStepException), GradientAccumulation(4)]
    )
    learn.fit(1)
    _, params = by_hand(sizes, [[0, 1], [4, 5]])
    for p, expected in zip(learn.model.parameters(), params, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12)
    assert learn.updates == 2


def test_a_cancelled_pass_drops_what_it_has_gathered():
    sizes = [2] * 5
    cancel = CancelSome({2}, "after_loss", CancelTrainException)
    learn = learner_of(sizes, cbs=[cancel, GradientAccumulation(4)])
    learn.fit(2)
    assert_like(learn, *by_hand(sizes, [[0, 1], [0, 1], [2, 3], [4]]))


def test_a_loader_that_ends_early_steps_with_what_there_is():
    class Short(list):
        def __iter__(self):
            return iter(self[:3])

    sizes = [2] * 5
    learn = learner_of(sizes, cbs=GradientAccumulation(4))
    learn.dls = DataLoaders(Short(learn.dls.train), device="cpu")
    learn.fit(1)
    assert_like(learn, *by_hand(sizes, [[0, 1], [2]]))


def test_the_recorder_has_the_mean_loss_of_the_window():
    sizes = [4, 1]
    learn = learner_of(sizes, cbs=GradientAccumulation(5))
    x, y = samples(5)
    expected = cross_entropy(learn.model(x), y).item()
    learn.fit(1, 0.0)
    assert learn.recorder.raw_losses == [pytest.approx(expected)]
    assert learn.recorder.values[0][0] == pytest.approx(expected)


def test_a_penalty_on_the_loss_is_weighed_too():
    """What a callback adds to the loss counts once, not once a batch."""

    class Penalty(Callback):
        def after_loss(self):
            self.learn.loss_grad += self.model[0].weight.square().sum()

    results = []
    for sizes in ([6], [1, 3, 2]):
        learn = learner_of(sizes, cbs=[Penalty, GradientAccumulation(6)])
        learn.fit(1)
        results.append(copied_params(learn.model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_next_fit_is_without_it():
    learn = learner_of([2, 2])
    learn.fit(1, cbs=GradientAccumulation(4))
    assert learn.updates == 1
    assert learn.window is None
    learn.fit(1)
    assert learn.updates == 2


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UsageError, match=r"n_acc=0\): give 1 sample or more"):
        GradientAccumulation(0)
    learn = learner_of([2], loss_func=CrossEntropyLossFlat(reduction="sum"))
    with pytest.raises(UsageError, match='take reduction="mean"'):
        learn.fit(1, cbs=GradientAccumulation(4))


def test_the_rate_finder_runs_beside_it():
    learn = learner_of([2] * 20, cbs=GradientAccumulation(4))
    suggested = learn.lr_find(num_it=40, show_plot=False)
    assert math.isfinite(suggested.valley)
    assert learn.window is None
