"""Batch norms whose parameters are frozen keep their statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.callbacks import BnFreeze


def model(**norm_kwargs):
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.BatchNorm1d(16, **norm_kwargs),
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(16)),
        nn.Linear(16, 4),
    )


def statistics(norm):
    return [t.clone() for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]


def moved(norm, before):
    return not all(map(torch.equal, statistics(norm), before))


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_norms_keep_their_statistics(freeze):
    learn = tiny_learner(model=model(), cbs=BnFreeze() if freeze else None)
    frozen, trained = learn.model[1], learn.model[2][1]
    frozen.requires_grad_(False)
    before = statistics(frozen), statistics(trained)
    learn.fit(2)
    assert moved(frozen, before[0]) is not freeze
    assert moved(trained, before[1])


def test_a_frozen_norm_normalises_by_its_running_statistics():
    learn = tiny_learner(model=model(), cbs=BnFreeze(), lr=0.0)
    learn.model[1].requires_grad_(False)
    learn.model[1].running_mean.fill_(3.0)
    learn.model[1].running_var.fill_(4.0)
    seen = []
    learn.model[1].register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    learn.fit(1)
    for x, out in seen:
        torch.testing.assert_close(out, (x - 3.0) / (4.0 + 1e-5) ** 0.5)


def test_a_norm_with_one_trained_parameter_or_with_none_trains():
    for norm_kwargs, freeze in [({}, "weight"), ({"affine": False}, None)]:
        learn = tiny_learner(model=model(**norm_kwargs), cbs=BnFreeze())
        if freeze:
            learn.model[1].get_parameter(freeze).requires_grad_(False)
        before = statistics(learn.model[1])
        learn.fit(1)
        assert moved(learn.model[1], before)


def test_it_goes_with_frozen_groups_where_norms_are_frozen_too():
    def splitter(m):
        return [list(m[:3].parameters()), list(m[3:].parameters())]

    for train_bn in (False, True):
        learn = tiny_learner(model=model(), splitter=splitter, train_bn=train_bn, cbs=BnFreeze())
        learn.freeze()
        before = statistics(learn.model[1])
        learn.fit(1)
        assert moved(learn.model[1], before) is train_bn
        learn.unfreeze()
        learn.fit(1)
        assert moved(learn.model[1], before)


def test_modes_are_those_of_each_pass():
    learn = tiny_learner(model=model(), cbs=BnFreeze())
    learn.model[1].requires_grad_(False)
    learn.fit(1)
    assert not any(m.training for m in learn.model.modules())
    learn.remove_cb(BnFreeze)
    before = statistics(learn.model[1])
    learn.fit(1)
    assert moved(learn.model[1], before)
