"""Callbacks that look at gradients and weights, in several processes: all see and do the same."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard  # noqa: F401 - imported before the forks
from torch.utils.data import TensorDataset

from ranks import on_ranks
from treadle.callbacks import (
    EMACallback,
    GradientAccumulation,
    GradientClip,
    GradientLog,
    NonFiniteWarning,
    RollBack,
    SkipNonFinite,
    TerminateOnNaNCallback,
)
from treadle.callbacks.forensic import NonFiniteError
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.optim import Adam
from treadle.shards import is_sharded, local, whole
from treadle.world import world

SAMPLES, BATCH = 28, 4


def learner(parallel=None, bad=(), wide=5, **options):
    """A learner on numbers, of which the samples `bad` are infinite."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 6, generator=draw)
    y = (x[:, :1] > 0).float()
    x[list(bad)] = math.inf
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, wide), nn.Tanh(), nn.Linear(wide, 1))
    dls = DataLoaders.from_dsets(
        *(TensorDataset(x, y), TensorDataset(torch.randn(8, 6, generator=draw), y[:8])),
        **{"global_bs": BATCH, "shuffle": False, "num_workers": 0, "device": "cpu"},
    )
    made = Learner(dls, model, nn.MSELoss(), Adam, lr=0.05, parallel=parallel, **options)
    made.remove_cbs([cb for cb in made.cbs if type(cb).__name__ == "ProgressCallback"])
    return made


def weights(learn):
    return [whole(p).detach().clone() for p in learn.model.parameters()]


def differ(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


class Spoils(Callback):
    """Makes one entry of a gradient, of one rank's part or share, a NaN, in the third batch."""

    order = -10  # before those that watch

    def __init__(self, rank):
        self.rank = rank

    def after_backward(self):
        if self.iter == 2 and world().rank == self.rank and not getattr(self, "done", False):
            self.done = True
            local(self.model[0].weight.grad)[0, 0] = math.nan


CALM = {
    "clip": lambda: [GradientClip(0.05)],
    "clip, greatest": lambda: [GradientClip(0.01, norm_type=math.inf)],
    "average": lambda: [EMACallback(0.9)],
    "watched": lambda: [RollBack(every=2)],
    "log": lambda: [GradientLog()],
}


def _calm(parallel):
    found = {}
    for name, make in CALM.items():
        learn = learner(parallel)
        cbs = make()
        state = {}
        keep = Callback(after_batch=lambda cb, s=state, c=cbs[0]: s.update(c.state_dict()))
        learn.fit(2, cbs=[*cbs, keep])
        norms = cbs[0].norms if name == "log" else None
        raw = {k: whole(t) for k, t in cbs[0].raw.items()} if name == "average" else None
        spread = all(map(is_sharded, state["average"].values())) if name == "average" else None
        found[name] = weights(learn), norms, raw, spread
    return found


@functools.cache
def calm_alone():
    return _calm(None)


@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_what_they_do_is_what_they_do_in_one_process(ranks, parallel):
    expected = calm_alone()
    for found in on_ranks(ranks, _calm, parallel):
        for name, (params, norms, raw, _) in expected.items():
            theirs = found[name]
            assert differ(theirs[0], params) < 2e-5, name
            if norms is not None:
                torch.testing.assert_close(theirs[1], norms, rtol=1e-4, atol=1e-6)
            if raw is not None:
                assert differ(theirs[2].values(), raw.values()) < 2e-5
                assert theirs[3] == (parallel == "fsdp")


def _with_bad(parallel, kind, bad, spoiler, n_acc=None):
    """What comes of a fit with samples or a gradient that are no numbers."""
    learn = learner(parallel, bad)
    watch = kind()
    cbs = [watch] if spoiler is None else [watch, Spoils(spoiler)]
    cbs += [GradientAccumulation(n_acc)] if n_acc else []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", NonFiniteWarning)
        learn.fit(2, cbs=cbs)
    found = watch.found
    many = getattr(watch, "skipped", getattr(watch, "rolled_back", []))
    steps = learn.updates
    return weights(learn), str(found), len(many), steps, len(told), found.indices, found.parameters


CASES = [
    (TerminateOnNaNCallback, (9,), None),  # the second half of the third batch is rank 1's
    (SkipNonFinite, (11,), None),
    (RollBack, (10,), None),
    (SkipNonFinite, (13,), None, 8),  # the second batch of a window
]


def _all_bad(parallel, ranks):
    found = [_with_bad(parallel, *case) for case in CASES]
    if ranks > 1:  # a gradient that only one of them has seen
        found += [_with_bad(parallel, SkipNonFinite, (), 1)]
    return found


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_they_decide_alike_and_say_whose_sample_it_was(parallel):
    expected = _all_bad(None, 1)
    (main, other) = on_ranks(2, _all_bad, parallel, 2)
    for mine, theirs, alone in zip(main, other, expected, strict=False):
        assert differ(mine[0], alone[0]) < 2e-5
        assert differ(theirs[0], mine[0]) == 0
        assert mine[1] == theirs[1]
        assert mine[2:4] == theirs[2:4] == alone[2:4]
        assert mine[5] == alone[5]
        assert mine[4] == alone[4] and theirs[4] == 0  # the main one tells it
    spoilt = main[len(expected)]
    assert spoilt[2] == 1 and "gradient became nan at epoch 0, batch 2" in spoilt[1]
    assert other[len(expected)][1:4] == spoilt[1:4]


def _raised(parallel):
    learn = learner(parallel, (9,))
    with pytest.raises(NonFiniteError, match="item 9 of the data"):
        learn.fit(1, cbs=TerminateOnNaNCallback(error=True))
    learn = learner(parallel)
    learn.create_opt()
    with torch.no_grad():
        if world().rank == 1:
            local(learn.model[0].weight)[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"0\.weight is not finite"):
        learn.fit(1, cbs=RollBack())
    learn = learner(parallel, (9,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteWarning)
        with pytest.raises(NonFiniteWarning, match="item 9 of the data"):
            learn.fit(1, cbs=TerminateOnNaNCallback())
    return True


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_one_raises_all_raise(parallel):
    assert on_ranks(2, _raised, parallel) == [True, True]
