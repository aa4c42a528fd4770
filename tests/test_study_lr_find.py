"""The rate finder: leaves everything as it was, however it ends, and reads the curve as it says."""

from __future__ import annotations

import copy
import math
import random
import re
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
    CancelBatchException,
    DataLoader,
    DataLoaders,
    EMACallback,
    GradientAccumulation,
    MixedPrecision,
    ParamScheduler,
    SchedLin,
    UsageError,
    minimum,
    ranger,
    slide,
    steep,
    valley,
)
from treadle.study import LRFinder, Sweep
from treadle.study.curve import read_curve
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
        "precision": (learn.precision.name, learn.precision.state_dict()),
        "window": learn.window,
        "loaders": [dl.state_dict() for dl in learn.dls if hasattr(dl, "state_dict")],
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


def tensor_data(n=64):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, x[:, :4].argmax(1))


def shuffled_dls(n=64, bs=16):
    train = DataLoader(tensor_data(n), bs=bs, shuffle=True, device="cpu", num_workers=0)
    return DataLoaders(train, DataLoader(tensor_data(n), bs=bs, device="cpu", num_workers=0))


def test_the_loaders_epoch_is_put_back():
    learn = tiny_learner(dls=shuffled_dls())
    learn.fit(1)
    before = everything(learn)
    learn.lr_find(num_it=20, sweeps=3, show_plot=False)
    assert_same(before, everything(learn))
    assert learn.dls.train.epoch == 1


def test_a_generator_of_the_loaders_own_is_put_back():
    own = torch.Generator().manual_seed(5)
    loader = torch.utils.data.DataLoader(tensor_data(), 16, shuffle=True, generator=own)
    learn = tiny_learner(dls=DataLoaders(loader, loader, device="cpu"))
    before = own.get_state()
    learn.lr_find(num_it=20, sweeps=2, show_plot=False)
    assert torch.equal(before, own.get_state())


def by_layer(model):
    return [list(model.layers[0].parameters()), list(model.layers[1:].parameters())]


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"precision": "bf16"},
        {"cbs": MixedPrecision("bf16")},
        {"cbs": EMACallback(0.8)},
        {"cbs": GradientAccumulation(40)},
        {"cbs": ParamScheduler({"mom": SchedLin(0.9, 0.5)}), "opt_func": partial(SGD, mom=0.9)},
        {"splitter": by_layer, "lr": slice(1e-4, 1e-2), "opt_func": Adam},
        {"opt_func": torch.optim.AdamW},
    ],
    ids=lambda kwargs: "-".join(kwargs),
)
def test_nothing_is_different_after_a_sweep_with(kwargs, sweeps):
    learn = noisy_learner(dls=shuffled_dls(), **kwargs)
    learn.fit(1)
    before = everything(learn)
    ema = copy.deepcopy(learn.ema.state_dict()) if hasattr(learn, "ema") else None
    learn.lr_find(num_it=30, sweeps=sweeps, show_plot=False)
    assert_same(before, everything(learn))
    if ema is not None:
        assert_same(ema, learn.ema.state_dict())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_different_after_an_error_in_the_model(error):
    """In the second sweep, when order and random numbers are not those of the learner."""

    class Fails(Noisy):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            if type(self).calls == 33:
                raise error
            return super().forward(x)

    learn = tiny_learner(dls=shuffled_dls())
    learn.model = Fails()
    before = everything(learn)
    with pytest.raises(error):
        learn.lr_find(num_it=25, sweeps=2, stop_div=False, show_plot=False)
    assert_same(before, everything(learn))


# What a sweep does


def test_a_point_is_an_update_with_the_loss_of_its_window():
    """Gathering four batches of 16 is sweeping over batches of 64."""
    together = tiny_learner(dls=shuffled_dls(128, 64))
    apart = tiny_learner(dls=shuffled_dls(128, 16), cbs=GradientAccumulation(64))
    together.dls.train.seed = apart.dls.train.seed = 3
    one, other = (
        learn.lr_find(1e-3, num_it=30, show_plot=False, stop_div=False).sweeps[0]
        for learn in (together, apart)
    )
    assert len(one.lrs) == len(other.lrs) == 30
    assert one.lrs == other.lrs == pytest.approx(np.geomspace(1e-3, 10, 30))
    assert one.raw_losses == pytest.approx(other.raw_losses, rel=1e-4)


def test_groups_keep_the_shape_of_their_rates():
    rates = []
    learn = noisy_learner(splitter=by_layer, lr=slice(1e-4, 1e-2))
    learn.add_cb(Callback(before_step=lambda cb: rates.append([h["lr"] for h in cb.opt.hypers])))
    learn.lr_find(1e-6, 1e-1, num_it=20, show_plot=False)
    assert rates == [pytest.approx([lr / 100, lr]) for lr in np.geomspace(1e-6, 1e-1, 20)]
    rates.clear()
    learn.lr_find(slice(1e-7, 2e-7), 1e-1, num_it=20, show_plot=False)
    assert rates == [pytest.approx([lr / 2, lr]) for lr in np.geomspace(2e-7, 1e-1, 20)]


def test_a_last_group_without_a_rate_is_a_sentence():
    learn = noisy_learner(splitter=by_layer, lr=[1e-3, 0.0])
    with pytest.raises(UsageError, match="must be above 0"):
        learn.lr_find(show_plot=False)


def test_the_first_sweep_sees_the_next_order_and_the_others_see_their_own():
    learn = tiny_learner(dls=shuffled_dls(160))
    alone = learn.lr_find(show_plot=False).sweeps
    three = learn.lr_find(sweeps=3, show_plot=False).sweeps
    assert three[0] == alone[0]
    assert len({tuple(sweep.raw_losses) for sweep in three}) == 3
    assert three == learn.lr_find(sweeps=3, show_plot=False).sweeps


def test_the_smoothed_loss_ends_a_sweep_and_not_one_bad_batch():
    learn = tiny_learner()
    plain = learn.loss_func
    calls = []

    def spiked(pred, y):
        calls.append(1)
        return plain(pred, y) * (30 if len(calls) == 60 else 1)

    learn.loss_func = spiked
    (sweep,) = learn.lr_find(1e-7, 1e-2, show_plot=False).sweeps
    assert len(sweep.lrs) == 100
    assert max(sweep.raw_losses) > 10 * min(sweep.raw_losses)
    (sweep,) = learn.lr_find(1e-3, 1e6, show_plot=False).sweeps
    assert len(sweep.lrs) < 100
    assert sweep.losses[-1] > 4 * min(sweep.losses) >= sweep.losses[-2]


def test_the_smoothed_loss_is_the_average_without_the_bias_of_its_start():
    (sweep,) = tiny_learner().lr_find(num_it=30, show_plot=False).sweeps
    weights = [0.98 ** (29 - i) for i in range(30)]
    expected = np.average(sweep.raw_losses, weights=weights)
    assert sweep.losses[-1] == pytest.approx(expected, rel=1e-6)


def test_a_sweep_without_updates_ends():
    learn = tiny_learner()
    learn.add_cb(Callback(before_batch=skip))
    found = learn.lr_find(show_plot=False)
    assert found.valley is None


def skip(cb):
    raise CancelBatchException


# What is read from it


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


# Suggestions of fastai 2.8 (valley, slide, minimum, steep) on curves that are easily drawn again
X = np.linspace(-7, 1, 100)[10:-5]
FALL = 2.3 - 1.8 / (1 + np.exp(-3 * (X + 2.5))) + np.exp(3 * (X - 0.2))
ORACLE = {
    "clean": (FALL, [1.7073526e-4, 9.1116276e-4, 9.5454846e-3, 2.7825594e-3]),
    "wavy": (FALL + 0.05 * np.sin(9 * X), [3.3516027e-3, 1.5922828e-3, 1.3848864e-2, 3.3516027e-3]),
    "flat": (2 + 0.01 * np.cos(31 * X), [0.5094138, 0.2420128, 0.3274549, 1.3530478e-6]),
    "steep end": (
        5 - 0.3 * (X + 7) + np.exp(5 * (X + 1)),
        [9.7700996e-5, 9.1116276e-4, 2.5950242e-3, 6.4280731e-7],
    ),
}


@pytest.mark.parametrize("name", ORACLE)
def test_the_rules_say_what_fastai_says(name):
    losses, expected = ORACLE[name]
    found = [func(10**X, losses) for func in (valley, slide, minimum, steep)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_slide_on_a_short_curve_is_its_first_rate():
    assert slide([1e-3, 1e-2], [2.0, 1.0]) == 1e-3


def test_the_chapters_calls():
    learn = tiny_learner(dls=shuffled_dls(640))
    lr_min, lr_steep = learn.lr_find(suggest_funcs=(minimum, steep))
    assert 1e-7 < lr_min < 10
    assert 1e-7 < lr_steep < 10
    found = learn.lr_find(suggest_funcs=(valley, slide, minimum, steep))
    assert found._fields == ("valley", "slide", "minimum", "steep")
    assert (found.minimum, found.steep) == (lr_min, lr_steep)
    assert learn.lr_find(suggest_funcs=partial(slide, thresh=0.1))._fields == ("slide",)
    assert learn.lr_find(suggest_funcs=None) == ()
    text = repr(learn.lr_find())
    assert text.startswith("SuggestedLRs(valley=")
    assert " to " in text


def sweep_of(raw, low=1e-7, high=10.0, num_it=100):
    """A sweep with these losses, smoothed as the finder does."""
    average, losses = 0.0, []
    for i, loss in enumerate(raw):
        average = 0.98 * average + 0.02 * loss
        losses.append(average / (1 - 0.98 ** (i + 1)))
    return Sweep(list(np.geomspace(low, high, num_it))[: len(raw)], losses, list(raw))


def valley_curve(noise=0.01, seed=0, scale=1.0):
    """Flat at 2, down to 1 between 1e-4 and 1e-2, up to 9 from 1 to 10."""
    logs = np.linspace(-7, 1, 100)
    raw = np.interp(logs, [-7, -4, -2, 0, 1], [2, 2, 1, 1, 9])
    raw = raw + noise * np.random.default_rng(seed).standard_normal(100)
    return sweep_of(scale * raw)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("sweeps", [1, 2, 3, 5])
def test_the_range_goes_from_half_the_fall_to_half_of_it_lost(sweeps, scale):
    found = read_curve([valley_curve(seed=seed, scale=scale) for seed in range(sweeps)], 100)
    assert found.low == pytest.approx(1e-3, rel=0.3)
    assert found.high == pytest.approx(10 ** (0.5 / 8), rel=0.3)
    assert "serve" in found.why


def test_one_sweep_that_goes_astray_is_outvoted():
    lost = sweep_of([2.0] * 30 + [50.0] * 5)
    found = read_curve([valley_curve(seed=0), lost, valley_curve(seed=1)], 100)
    assert found.low == pytest.approx(1e-3, rel=0.3)


def test_the_range_is_at_least_a_decade():
    raw = np.interp(np.linspace(-7, 1, 100), [-7, -1.6, -1.4, -0.9, -0.7], [2, 2, 1, 1, 50])
    found = read_curve([sweep_of(raw)], 100)
    assert found.high == pytest.approx(0.08, rel=0.4)
    assert found.high / found.low == pytest.approx(10)


def test_a_curve_that_falls_to_the_end_says_so():
    raw = np.interp(np.linspace(-7, 1, 100), [-7, -2, 1], [2, 2, 1])
    found = read_curve([sweep_of(raw)], 100)
    assert found.high == pytest.approx(10)
    assert "not risen again" in found.why


def test_a_noisy_curve_that_diverges_late_gives_the_decade_below():
    g = np.random.default_rng(0)
    rise = np.interp(np.linspace(-7, 1, 100), [-7, -1, 0, 1], [0, 0, 10, 90])
    found = read_curve([sweep_of(4 + 0.3 * g.standard_normal(100) + rise)], 100)
    assert 0.05 < found.high < 0.5
    assert found.high / found.low == pytest.approx(10)
    assert "had not clearly fallen" in found.why


def flat(noise):
    return 2 + noise * np.random.default_rng(0).standard_normal(100)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (flat(0.0), "stayed flat"),
        (flat(0.1), "stayed flat"),
        (flat(5.0), "stayed flat"),
        (np.geomspace(2, 4e5, 40), "diverged from the start"),
        (np.geomspace(2, 20, 12), r"diverged from the start: the sweep ended after 12 of 100"),
        ([math.nan], "not finite before the first update"),
        ([], "no update"),
    ],
)
@pytest.mark.parametrize("sweeps", [1, 3])
def test_a_curve_that_supports_nothing_is_a_sentence(raw, why, sweeps):
    found = read_curve([sweep_of(raw)] * sweeps, 100)
    assert (found.low, found.high) == (None, None)
    assert re.search(why, found.why)


def test_noise_alone_is_seldom_taken_for_a_curve():
    g = np.random.default_rng(1)
    found = [read_curve([sweep_of(g.standard_normal(100))], 100).low for _ in range(200)]
    assert sum(low is not None for low in found) <= 8


def frozen_learner():
    """No rate changes its loss."""
    learn = tiny_learner()
    learn.loss_func = lambda pred, y: (0 * pred).mean() + 1.5
    return learn


def test_without_support_every_suggestion_is_none(capsys):
    found = frozen_learner().lr_find(suggest_funcs=(valley, slide), sweeps=3)
    assert (found.valley, found.slide) == tuple(found) == (None, None)
    assert (found.low, found.high) == (None, None)
    assert "stayed flat" in found.why
    assert repr(found) == f"SuggestedLRs(valley=None, slide=None): {found.why}"
    said = capsys.readouterr()
    assert said.out == ""
    assert found.why in said.err


def test_it_raises_if_asked_to():
    learn = frozen_learner()
    before = everything(learn)
    with pytest.raises(UsageError, match=r"suggests no rate\. The loss stayed flat"):
        learn.lr_find(strict=True, show_plot=False)
    assert_same(before, everything(learn))


def test_too_few_updates_are_a_sentence():
    found = tiny_learner().lr_find(num_it=8, show_plot=False)
    assert found.valley is None
    assert "8 updates are too few" in found.why
    nothing = tiny_learner()
    nothing.loss_func = lambda pred, y: pred.mean() * math.nan
    assert "not finite before the first update" in nothing.lr_find().why


@pytest.mark.parametrize(
    "arguments",
    [{"start_lr": 0.0}, {"start_lr": 1.0, "end_lr": 0.1}, {"sweeps": 0}, {"start_lr": -1}],
)
def test_what_cannot_be_meant_is_a_sentence(arguments):
    with pytest.raises(UsageError, match="lr_find got"):
        tiny_learner().lr_find(**arguments)


def test_what_suggestions_are_read_from():
    lrs, losses = usable(sweep_of([2.0] * 50 + [math.nan]), 100)
    assert len(lrs) == len(losses) == 50 - 10 - 5
    assert lrs[0] == pytest.approx(np.geomspace(1e-7, 10, 100)[10])


def test_of_several_sweeps_each_suggestion_is_the_median():
    learn = tiny_learner(dls=shuffled_dls(640))
    found = learn.lr_find(sweeps=3, show_plot=False)
    each = sorted(valley(*usable(sweep, 100)) for sweep in found.sweeps)
    assert found.valley == pytest.approx(each[1])


def test_the_figure_shows_sweeps_suggestions_and_range():
    from treadle.study.find_plots import plot_sweeps

    found = tiny_learner(dls=shuffled_dls(640)).lr_find(sweeps=3, show_plot=False)
    axes = plot_sweeps(found, 100).axes[0]
    assert len(axes.lines) == 3 + 1
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"valley: {found.valley:.2e}", f"{found.low:.2g} to {found.high:.2g}"]
    nothing = frozen_learner().lr_find(show_plot=False)
    assert plot_sweeps(nothing, 100).axes[0].get_title() == nothing.why


def test_the_callback_alone_keeps_what_it_saw():
    learn, finder = tiny_learner(), LRFinder(1e-4, 1e-2, num_it=12)
    learn.fit(5, cbs=finder)
    assert finder.lrs == pytest.approx(np.geomspace(1e-4, 1e-2, 12))
    assert len(finder.losses) == len(finder.raw_losses) == 12


def test_a_diverging_sweep_stops_early():
    learn = tiny_learner()
    batches = []
    learn.add_cb(Callback(after_batch=lambda cb: batches.append(cb.iter)))
    learn.lr_find(start_lr=1e-3, end_lr=1e6, num_it=100, show_plot=False)
    assert 15 < len(batches) < 100
