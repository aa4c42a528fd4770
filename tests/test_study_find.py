"""`find`: any hyper-parameter by short trainings, and the learner as it was."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from helpers import tiny_learner
from test_study_lr_find import assert_same, everything, noisy_learner
from treadle.all import SGD, Adam, Callback, DataLoader, DataLoaders, UsageError, nn
from treadle.study import find
from treadle.study.find import VALUES, Found, read_trials


def shuffled_learner(**kwargs):
    x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x[:, :4].argmax(1))
    train = DataLoader(data, bs=16, shuffle=True, seed=0, device="cpu", num_workers=0)
    return tiny_learner(dls=DataLoaders(train, train), **kwargs)


@pytest.mark.parametrize("name", ["mom", "wd", "lr"])
def test_nothing_is_different_afterwards(name):
    learn = noisy_learner(opt_func=partial(SGD, mom=0.9))
    learn.fit(1, 1e-2)
    before = everything(learn)
    learn.find(name, num_it=10, sweeps=2, show_plot=False)
    assert_same(before, everything(learn))


def test_nothing_is_different_after_an_interrupt():
    def stop(cb):
        if cb.updates == 7 and cb.opt.hypers[0]["mom"] == 0.9:
            raise KeyboardInterrupt

    learn = noisy_learner(opt_func=partial(SGD, mom=0.5), cbs=Callback(after_step=stop))
    before = everything(learn)
    with pytest.raises(KeyboardInterrupt):
        learn.find("mom", num_it=20, show_plot=False)
    assert_same(before, everything(learn))


def test_a_trial_is_the_fit_with_that_value():
    """Its losses are those that a fit of the same updates records."""
    learn = tiny_learner(opt_func=partial(SGD, mom=0.9))
    found = learn.find("mom", [0.5, 0.9], num_it=16, show_plot=False)
    for value, loss in zip(found.values, found.losses, strict=True):
        other = tiny_learner(opt_func=partial(SGD, mom=value))
        other.fit(2)
        assert loss == pytest.approx(np.mean(other.recorder.raw_losses[-4:]), rel=1e-6)


def test_the_rate_at_which_a_quadratic_falls_fastest():
    """For 0.5 w² the step at rate 1 lands in the minimum; at 2 and above it does not fall."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(3.0)
    batches = [(torch.ones(4, 1), torch.zeros(4, 1))] * 8
    learn = tiny_learner(
        dls=DataLoaders(batches, batches, device="cpu"),
        model=model,
        loss_func=lambda p, y: 0.5 * (p - y).square().mean(),
    )
    found = learn.find("lr", [0.001, 0.01, 1.0, 2.5], num_it=16, show_plot=False)
    assert found.value == found.low == found.high == 1.0


def test_weight_decay_is_the_most_that_does_no_harm():
    learn = shuffled_learner(lr=0.3)
    found = learn.find("wd", num_it=60, sweeps=2, show_plot=False)
    assert found.value == found.high < 1
    assert found.losses[-1] > found.losses[0]
    assert "do as well" in found.why
    assert repr(found) == f"Found(wd={found.value:g}): {found.why}"


def test_several_groups_keep_the_shape_of_their_rates():
    rates = []
    learn = tiny_learner(
        lr=slice(1e-3, 1e-1), splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())]
    )
    learn.add_cb(Callback(before_step=lambda cb: rates.append([h["lr"] for h in cb.opt.hypers])))
    learn.find("lr", [0.1, 1.0], num_it=8, show_plot=False)
    assert {tuple(np.round(pair, 9)) for pair in rates} == {(0.001, 0.1), (0.01, 1.0)}
    rates.clear()
    learn.find("wd", [0.0, 0.1], num_it=8, lr=slice(0.2, 0.4), show_plot=False)
    assert {tuple(pair) for pair in rates} == {(0.2, 0.4)}


def trials(*ends, noise=0.0, start=2.0, num_it=20):
    """Losses (values, 2, num_it): each falls from `start` in a straight line to its end."""
    g = np.random.default_rng(0)
    tail = num_it // 4
    runs = np.stack(
        [[*np.linspace(start, min(end, 9), num_it - tail), *[end] * tail] for end in ends]
    )
    runs = np.repeat(runs[:, None], 2, 1)
    return runs + noise * g.standard_normal(runs.shape)


def test_the_range_is_of_those_that_do_as_well():
    values = [0.0, 0.5, 0.8, 0.9, 0.99]
    found = read_trials("mom", values, trials(1.5, 1.001, 1.0, 1.002, 1.9), 20)
    assert (found.value, found.low, found.high) == (0.8, 0.5, 0.9)
    found = read_trials("wd", values, trials(1.5, 1.001, 1.0, 1.002, 1.9), 20)
    assert (found.value, found.low, found.high) == (0.9, 0.5, 0.9)
    assert found.losses == pytest.approx([1.5, 1.001, 1.0, 1.002, 1.9])


def test_noise_widens_the_range():
    ends = [1.5, 1.06, 1.0, 1.9]
    quiet = read_trials("mom", [0.0, 0.5, 0.8, 0.9], trials(*ends), 20)
    noisy = read_trials("mom", [0.0, 0.5, 0.8, 0.9], trials(*ends, noise=0.3), 20)
    assert (quiet.low, quiet.high) == (0.8, 0.8)
    assert noisy.low <= 0.5


def test_the_last_of_the_values_is_said_to_be_the_last():
    assert "No value beyond 0.9" in read_trials("mom", [0.5, 0.9], trials(1.5, 1.0), 20).why
    assert "beyond" not in read_trials("mom", [0.0, 0.9], trials(1.0, 1.5), 20).why


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (trials(math.inf, math.inf), "diverged with every value"),
        (trials(2.5, 2.1), "With no value did the loss fall"),
        (trials(1.0, 1.001), "do equally well"),
    ],
)
def test_where_nothing_can_be_suggested_it_says_why(runs, why):
    found = read_trials("mom", [0.5, 0.9], runs, 20)
    assert isinstance(found, Found)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert why in found.why


def test_a_value_that_diverges_is_not_suggested(capsys):
    learn = tiny_learner()
    found = learn.find("lr", [0.1, 1e20], num_it=16, show_plot=False)
    assert found.value == 0.1
    assert found.losses[1] == math.inf
    none = learn.find("wd", lr=1e20, num_it=16, show_plot=False)
    assert none.value is None
    assert none.why in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"find suggests no wd\. The loss diverged"):
        learn.find("wd", lr=1e20, num_it=16, show_plot=False, strict=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("eps",), "no values of its own for 'eps'"),
        (("mum", [0.1, 0.2]), "no hyper-parameter mum|has a hyper-parameter mum"),
        (("wd", [0.1]), "two or more"),
        (("wd", [0.1, math.nan]), "two or more"),
        (("wd", None, 4), "8 or more"),
        (("wd", None, 16, 0), "1 or more sweeps"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(arguments, sentence):
    learn = tiny_learner()
    before = everything(learn)
    with pytest.raises(UsageError, match=sentence):
        find(learn, *arguments, show_plot=False)
    assert_same(before, everything(learn))


def test_the_figure_shows_every_value():
    from treadle.study.find_plots import plot_trials

    learn = tiny_learner(opt_func=Adam)
    found = learn.find("mom", num_it=16)
    axes = plot_trials(found).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        f"{value:g}" for value in VALUES["mom"]
    ]
    assert axes.get_xlabel() == "mom"
    assert axes.get_title() == found.why
