"""Schedules: any hyper-parameter, any group, by applied updates; and drawn before training."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import tiny_learner
from treadle.all import (
    SGD,
    Adam,
    Callback,
    CancelBatchException,
    CancelStepException,
    Optimizer,
    ParamScheduler,
    SchedCos,
    SchedLin,
    SchedNo,
    UsageError,
    combined_cos,
)
from treadle.callbacks.accumulation import GradientAccumulation


def two_groups(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


@given(st.sets(st.integers(0, 15)), st.sampled_from([CancelStepException, CancelBatchException]))
@settings(max_examples=25, deadline=None)
def test_the_schedule_moves_with_applied_updates_alone(skipped, error):
    """Whichever steps are left out, a batch sees schedule(applied updates / planned updates)."""
    batch, seen = iter(range(16)), []

    def skip(cb):
        seen.append((cb.updates, cb.opt.hypers[-1]["lr"]))
        if next(batch) in skipped:
            raise error

    learn, sched = tiny_learner(), SchedCos(1.0, 0.1)
    with learn.no_logging():
        learn.fit(2, cbs=[ParamScheduler({"lr": sched}), Callback(before_step=skip)])
    applied = [sum(j not in skipped for j in range(i)) for i in range(16)]
    assert seen == [(n, sched(n / 16)) for n in applied]


@pytest.mark.parametrize("opt_func", [partial(Adam, wd=0.1), torch.optim.AdamW])
def test_any_hyper_parameter_of_any_group(opt_func):
    learn = tiny_learner(opt_func=opt_func, splitter=two_groups)
    scheds = {
        "lr": [SchedLin(0.0, 1.0), SchedLin(0.0, 2.0)],
        "mom": SchedLin(0.9, 0.1),
        "sqr_mom": SchedLin(0.99, 0.9),
        "wd": [SchedNo(0.5, 0.5), SchedNo(0.25, 0.25)],
        "eps": SchedLin(1e-8, 1e-4),
    }
    learn.wd_bn_bias = True
    learn.fit(1, cbs=ParamScheduler(scheds))
    for g, hypers in enumerate(learn.recorder.hypers):
        for name, sched in scheds.items():
            one = sched if callable(sched) else sched[g]
            assert hypers[name] == pytest.approx([one(i / 8) for i in range(8)])


def test_a_list_by_layers_where_biases_have_a_group_of_their_own():
    """torch has hyper-parameters by group, so what does not decay stands in groups apart."""
    learn = tiny_learner(opt_func=torch.optim.AdamW, splitter=two_groups)
    learn.fit(1, cbs=ParamScheduler({"lr": [SchedNo(0.1, 0.1), SchedNo(0.2, 0.2)]}))
    assert [hypers["lr"][0] for hypers in learn.recorder.hypers] == [0.1, 0.1, 0.2, 0.2]


def test_a_group_whose_rule_does_not_know_the_name_is_left_alone():
    def plain(p, lr, **kwargs):
        p.data.add_(p.grad, alpha=-lr)

    def with_pull(p, lr, pull, **kwargs):
        p.data.add_(p.grad, alpha=-lr).mul_(1 - pull)

    def opt_func(params, lr):
        rules = zip(params, [plain, with_pull], strict=True)
        groups = [{"params": group, "cbs": rule} for group, rule in rules]
        return Optimizer(groups, plain, lr=lr, pull=0.1)

    learn = tiny_learner(opt_func=opt_func, splitter=two_groups)
    learn.fit(1, cbs=ParamScheduler({"pull": SchedLin(0.0, 1.0)}))
    first, last = learn.recorder.hypers
    assert "pull" not in first
    assert last["pull"] == pytest.approx([i / 8 for i in range(8)])


def test_what_cannot_be_scheduled_is_said():
    learn = tiny_learner()
    with pytest.raises(UsageError, match="moves momm, which no stepper of this"):
        learn.fit(1, cbs=ParamScheduler({"momm": SchedNo(1, 1)}))
    with pytest.raises(UsageError, match="lr has 2 values for 1 group"):
        learn.fit(1, cbs=ParamScheduler({"lr": [SchedNo(1, 1)] * 2}))


# Drawn before training


def lines(figure):
    return {
        axes.get_ylabel(): [float(y) for y in axes.lines[0].get_ydata()] for axes in figure.axes
    }


def everything(learn):
    opt = None if learn.opt is None else copy.deepcopy(learn.opt.state_dict())
    return {
        "model": [p.detach().clone() for p in learn.model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in learn.model.parameters()],
        "trainable": [p.requires_grad for p in learn.model.parameters()],
        "opt": repr(opt),
        "frozen": repr(learn.opt),
        "random": torch.get_rng_state(),
        "cbs": list(learn.cbs),
        "place": (learn.epoch, learn.iter, learn.n_epoch, learn.updates, learn.planned_updates),
        "recorded": (list(learn.recorder.losses), len(learn.recorder.rows)),
        "dls": learn.dls,
    }


def assert_same(a, b):
    for name, value in a.items():
        if isinstance(value, (list, torch.Tensor)):
            for one, other in zip(value, b[name], strict=True):
                assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        else:
            assert value == b[name], name


@pytest.mark.parametrize("fitted", [False, True])
def test_the_plan_is_what_the_fit_does(fitted):
    learn = tiny_learner(opt_func=partial(SGD, mom=0.9))
    if fitted:
        learn.fit(1, 0.7)
        learn.model[0].weight.grad = torch.ones(16, 8)
    before = everything(learn)
    plans = [
        (learn.fit_one_cycle, (2, 0.1), {"pct_start": 0.5}),
        (learn.fit_flat_cos, (2, 0.1), {}),
        (learn.fit_sgdr, (2, 1, 0.1), {}),
        (learn.fit, (1, 0.3), {"cbs": ParamScheduler({"mom": SchedLin(0, 1)})}),
    ]
    drawn = [lines(learn.plot_plan(fit, *args, **kwargs)) for fit, args, kwargs in plans]
    assert_same(everything(learn), before)
    for (fit, args, kwargs), plan in zip(plans, drawn, strict=True):
        fit(*args, **kwargs)
        hps = learn.recorder.hps
        assert plan == {name: pytest.approx(hps[name]) for name in plan}
        assert plan.keys() == {n for n in hps if n == "lr" or len(set(hps[n])) > 1}


def test_several_fits_and_several_groups_are_one_plan(capsys):
    learn = tiny_learner(splitter=two_groups)
    plan = lines(learn.plot_plan(learn.fine_tune, 2, 0.01))
    assert learn.opt is None
    assert all(p.requires_grad for p in learn.model.parameters())
    assert capsys.readouterr().out == ""
    first, last = plan["lr (group 0)"], plan["lr (group 1)"]
    assert len(first) == len(last) == 8 + 16
    second = combined_cos(0.3, 0.005 / 5, 0.005, 0.005 / 1e5)
    assert last[8:] == pytest.approx([second(i / 16) for i in range(16)])
    assert first[8:] == pytest.approx([second(i / 16) / 100 for i in range(16)])


def test_a_fit_of_ones_own_and_a_scheduler_that_is_always_there():
    learn = tiny_learner(cbs=ParamScheduler({"wd": SchedLin(0.1, 0.0)}))

    def twice(epochs):
        learn.fit(epochs, 0.5)
        learn.fit(epochs, 0.25)

    plan = lines(learn.plot_plan(twice, 1))
    assert plan["lr"] == [0.5] * 8 + [0.25] * 8
    assert plan["wd"] == pytest.approx([0.1 * (1 - i / 8) for i in range(8)] * 2)


def test_a_plan_with_gathered_gradients_has_fewer_steps():
    x = torch.ones(10, 8)
    loader = torch.utils.data.DataLoader([(a, 0) for a in x], batch_size=2)
    learn = tiny_learner()
    learn.dls.loaders[0] = loader
    plan = lines(learn.plot_plan(learn.fit_one_cycle, 2, 0.1, cbs=GradientAccumulation(4)))
    assert len(plan["lr"]) == 2 * 3
    model = nn.Linear(8, 4)
    learn.model, learn.opt = model, None
    learn.fit_one_cycle(2, 0.1, cbs=GradientAccumulation(4))
    assert plan["lr"] == pytest.approx(learn.recorder.lrs)


def test_an_error_in_the_plan_leaves_the_learner_as_it_was():
    learn = tiny_learner()
    learn.fit(1, 0.5)
    before = everything(learn)
    with pytest.raises(UsageError, match="moms"):
        learn.plot_plan(learn.fit_one_cycle, 1, 0.1, moms=(0.9, 0.8, 0.9))
    assert_same(everything(learn), before)
