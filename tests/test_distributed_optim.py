"""Optimizers on parameters of which each process has a part: the same numbers as in one process."""

from __future__ import annotations

import copy
import functools
import os
import warnings

import pytest
import torch
import torch.distributed.checkpoint.state_dict as dcp_state
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ranks import on_ranks
from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    SOAP,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Adan,
    Lamb,
    Larc,
    Lion,
    Muon,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    Rule,
    ScheduleFreeAdamW,
    param_rules,
    ranger,
)
from treadle.optim.engine.bucket import Launch
from treadle.optim.engine.spread import Spread
from treadle.shards import cut, is_sharded, local, whole
from treadle.world import world

SHAPES = (5, 3), (7,), (1,), (2, 2, 3)
"""Over two processes the third has an empty part, over three the fourth as well."""


class Net(nn.Module):
    """Parameters of uneven shapes under a convex loss."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in zip("abcd", SHAPES, strict=True):
            value = torch.randn(shape, generator=draw).to(dtype)
            setattr(self, name, nn.Parameter(value))

    def forward(self, x):
        return sum(F.softplus(p * x + i).sum() for i, p in enumerate(self.parameters()))


def gradients(step, dtype=torch.float32):
    draw = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES]


def sharded(model):
    """`model`, each parameter spread over all processes."""
    mesh = init_device_mesh("cpu", (world().size,))
    return fully_shard(model, mesh=mesh)


def give(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = cut(g, p).clone() if is_sharded(p) else g.clone()


def stepped(opt, model, first=0, steps=10):
    for step in range(first, first + steps):
        give(model.parameters(), gradients(step, model.a.dtype))
        opt.step()
        opt.zero_grad()
    return opt


def values(model):
    return [whole(p).detach().clone() for p in model.parameters()]


def plain_state(opt):
    """The state_dict with all tensors whole, as numbers for another process."""
    saved = opt.state_dict()
    state = {
        i: {k: whole(v) if isinstance(v, torch.Tensor) else v for k, v in stats.items()}
        for i, stats in saved["state"].items()
    }
    return {**saved, "state": state}


def differ(ours, theirs):
    """The largest difference, relative to the largest number of each tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


ELEMENTWISE = {
    "SGD": lambda p: SGD(p, 0.1),
    "SGD, momentum, L2": lambda p: SGD(p, 0.1, mom=0.9, wd=0.1, decouple_wd=False),
    "SGD, Nesterov": lambda p: SGD(p, 0.1, mom=0.9, nesterov=True),
    "RMSProp": lambda p: RMSProp(p, 0.01, mom=0.9),
    "Adagrad": lambda p: Adagrad(p, 0.1),
    "Adadelta": lambda p: Adadelta(p, 1.0),
    "Adam": lambda p: Adam(p, 0.01),
    "AdamW": lambda p: AdamW(p),
    "RAdam": lambda p: RAdam(p, 0.01, wd=0.1),
    "QHAdam": lambda p: QHAdam(p, 0.01),
    "ranger": lambda p: ranger(p, 0.01, k=3),
    "Lion": lambda p: Lion(p, 0.01),
    "Adan": lambda p: Adan(p, 0.01, wd=0.1),
    "NAdam": lambda p: NAdam(p, 0.01),
    "ScheduleFreeAdamW": lambda p: ScheduleFreeAdamW(p, 0.01, wd=0.1),
}
WITH_NORMS = {
    "Larc": lambda p: Larc(p, 0.1),
    "Larc, no momentum": lambda p: Larc(p, 0.1, mom=0, clip=False),
    "Lamb": lambda p: Lamb(p, 0.01, wd=0.1),
}
ON_MATRICES = {
    "Muon": lambda p: Muon(p, 0.01),
    "SOAP": lambda p: SOAP(p, 0.01, every=3),
}
GUARDED = {
    "Adam, guarded": lambda p: Adam(p, 0.01).guard(max_norm=0.5, skip_nonfinite=True),
    "Lamb, guarded": lambda p: Lamb(p, 0.01).guard(max_norm=0.5, skip_nonfinite=True),
    "Muon, guarded": lambda p: Muon(p, 0.01).guard(max_norm=0.5, skip_nonfinite=True),
}
ALL = {**ELEMENTWISE, **WITH_NORMS, **ON_MATRICES, **GUARDED}


def _all_recipes():
    found = {}
    for name, make in ALL.items():
        model = sharded(Net())
        opt = stepped(make(model.named_parameters()), model)
        plan = opt._engine._plan
        launches = [launch for bucket in plan.buckets for launch in bucket.launches.values()]
        found[name] = {
            "params": values(model),
            "state": plain_state(opt)["state"],
            "spread": [type(bucket) is Spread for bucket in plan.buckets],
            "fused": [type(launch) is Launch for launch in launches],
            "loose": sum(len(params) for _, _, params in plan.loose),
            "kinds": {
                k: is_sharded(v) if isinstance(v, torch.Tensor) else None
                for k, v in opt.state[model.a].items()
            },
        }
    return found


@functools.cache
def alone():
    """What one process comes to, by recipe: parameters and state."""
    found = {}
    for name, make in ALL.items():
        model = Net()
        opt = stepped(make(model.named_parameters()), model)
        found[name] = values(model), opt.state_dict()["state"]
    return found


@functools.cache
def recipes_on(ranks):
    alone()  # whose compiled loops the forks inherit
    return on_ranks(ranks, _all_recipes)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", ALL)
def test_ten_steps_are_those_of_one_process(name, ranks):
    params, state = alone()[name]
    # Entry by entry there is nothing to round otherwise; norms are added up in another order.
    most = 0.0 if name in ELEMENTWISE or name in ON_MATRICES else 1e-6
    for found in recipes_on(ranks):
        assert differ(found[name]["params"], params) <= most
        assert found[name]["state"].keys() == state.keys()
        for i, stats in state.items():
            theirs = found[name]["state"][i]
            assert list(theirs) == list(stats)
            for k, v in stats.items():
                torch.testing.assert_close(theirs[k], v, rtol=2 * most, atol=most)


@pytest.mark.skipif(
    os.environ.get("TREADLE_ENGINE") == "reference", reason="the reference engine takes all whole"
)
@pytest.mark.parametrize("name", ALL)
def test_which_engine_runs_them(name):
    needs_all = 2 if "Muon" in name or name == "SOAP" else 0  # the matrices
    for found in recipes_on(2):
        assert all(found[name]["spread"])
        assert found[name]["loose"] == needs_all
        if name in ELEMENTWISE and found[name]["fused"][0]:  # there is a compiler
            assert all(found[name]["fused"])


def test_full_stats_are_spread_and_others_plain():
    for found in recipes_on(2):
        assert found["AdamW"]["kinds"] == {"grad_avg": True, "sqr_avg": True, "step": None}
        assert found["Larc"]["kinds"] == {"grad_avg": True, "local_lr": False}
        soap = found["SOAP"]["kinds"]
        assert soap["grad_avg"] and soap["sqr_avg"] and not soap["left"] and not soap["right"]


# ---- other chains


def total(p, lr, **kwargs):
    """Each reduction that programs know, over the whole parameter."""
    x = p.data
    sums = x.sum() + x.mean() + x.amax() + x.amin() + x.norm(1) + x.norm() + x.norm(float("inf"))
    p.data.sub_(lr * sums * p.grad.data)


def by_size(p, lr, **kwargs):
    p.data.sub_(p.grad.data * (lr / p.numel() + 0.01 * p.shape[0]))


def sorting(p, lr, seen=None, **kwargs):
    ranks = p.data.flatten().sort().values.reshape(p.shape)
    p.data.sub_(lr * ranks * p.grad.data)
    return {"seen": ranks, "most": ranks.max()}


CHAINS = {
    "reductions": lambda p: Optimizer(p, total, lr=0.01),
    "by size": lambda p: Optimizer(p, by_size, lr=0.1),
    "looks at values": lambda p: Optimizer(p, sorting, lr=0.1),
    "looks at values, guarded": lambda p: Optimizer(p, sorting, lr=0.1).guard(max_norm=1.0),
}


def _other_chains():
    found = {}
    for name, make in CHAINS.items():
        model = sharded(Net(torch.float64))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they are stepped one by one
            opt = stepped(make(model.named_parameters()), model)
        found[name] = values(model), plain_state(opt)["state"]
    return found


def test_what_looks_beyond_an_entry_sees_the_whole_parameter():
    expected = {}
    for name, make in CHAINS.items():
        model = Net(torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt = stepped(make(model.named_parameters()), model)
        expected[name] = values(model), opt.state_dict()["state"]
    for found in on_ranks(3, _other_chains):
        for name, (params, state) in expected.items():
            assert differ(found[name][0], params) < 1e-12
            torch.testing.assert_close(found[name][1], state, rtol=1e-12, atol=1e-12)


def _odd_layouts():
    """A gradient that is spread otherwise, parameters that all have, a mesh of two axes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2))
    found = []
    for places in ((Replicate(), Shard(0)), (Shard(0), Shard(1)), (Replicate(), Replicate())):
        w = torch.arange(15.0).reshape(5, 3) / 10 - 0.7
        grads = [torch.full((5, 3), 0.1).cumsum(0) - step for step in range(3)]
        both = nn.Parameter(distribute_tensor(w, mesh, places)), nn.Parameter(w.clone())
        opts = [Lamb([p], lr=0.1).guard(max_norm=1.0) for p in both]
        for i, grad in enumerate(grads):
            here = (Shard(1), Replicate()) if i == 1 else places
            both[0].grad = distribute_tensor(grad, mesh, here)
            both[1].grad = grad.clone()
            for opt in opts:
                opt.step()
        found.append(differ([whole(both[0]).detach()], [both[1].detach()]))
    return found


def test_however_it_lies():
    for found in on_ranks(4, _odd_layouts):
        assert max(found) < 1e-6


# ---- the guard


def _guarded():
    model = sharded(Net())
    opt = Adam(model.parameters(), lr=0.1).guard(skip_nonfinite=True)
    stepped(opt, model, steps=2)
    before, steps = values(model), opt.state[model.a]["step"]
    give(model.parameters(), gradients(2))
    if world().rank == 1:  # in one part only
        local(model.a.grad)[0, 0] = float("nan")
    opt.step()
    opt.state_dict()
    left_out = all(map(torch.equal, values(model), before))
    counted = opt.skipped, opt.state[model.a]["step"] - steps
    muon = Muon(model.parameters(), lr=0.1).guard(skip_nonfinite=True)
    muon.step()  # its first, so that all of its state is new
    muon.state_dict()
    left_out &= all(map(torch.equal, values(model), before)) and muon.skipped == 1

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    opt = Adam(model.parameters(), lr=0.1)
    losses = []
    for overflows in (False, True):
        give(model.parameters(), gradients(3))
        scaler.scale(torch.ones(()))
        if overflows and world().rank == 1:
            local(model.a.grad)[0, 0] = float("inf")
        was = values(model)
        scaler.step(opt)
        scaler.update()
        losses.append(all(map(torch.equal, values(model), was)))
    return left_out, counted, losses, opt.skipped


def test_all_leave_out_a_step_that_one_part_spoils():
    for found in on_ranks(2, _guarded):
        assert found == (True, (1, 0), [False, True], 1)


def _rounded():
    torch.manual_seed(world().rank)  # as dropout would have it
    replicated = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    holder = nn.Module()
    holder.w = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    sharded(holder)
    for p in (replicated, holder.w):
        opt = SGD([p], lr=1.0).guard(rounding="stochastic")
        give([p], [torch.full((1000,), 0.001, dtype=torch.bfloat16)])
        opt.step()
    return replicated.detach(), local(holder.w).clone()


def test_stochastic_rounding_is_the_same_where_the_numbers_are():
    (first, upper), (second, lower) = on_ranks(2, _rounded)
    assert torch.equal(first, second)
    assert not torch.equal(upper, lower)
    for part in (upper, lower):  # the neighbour is 2^-8 below
        assert 0.1 < (part != 1).float().mean() < 0.45


# ---- the state


def _save_after_five():
    model = sharded(Net())
    opt = stepped(Adam(model.named_parameters(), 0.01), model, steps=5)
    single = Net()
    other = Adam(single.named_parameters(), 0.01)
    other.load_state_dict(opt.state_dict())  # spread into plain, in each process
    assert not any(is_sharded(x) for stats in other.state.values() for x in stats.values())
    with torch.no_grad():
        for p, value in zip(single.parameters(), values(model), strict=True):
            p.copy_(value)
    stepped(other, single, 5, 5)
    return values(model), plain_state(opt), values(single)


def _load_and_go_on(params, state):
    model = sharded(Net())
    with torch.no_grad():
        for p, value in zip(model.parameters(), params, strict=True):
            p.copy_(cut(value, p))
    opt = Adam(model.named_parameters(), 0.01)
    opt.load_state_dict(state)
    assert is_sharded(opt.state[model.a]["grad_avg"])
    stepped(opt, model, 5, 5)

    # PyTorch's own way, whole and in parts.
    results = [values(model)]
    for full in (True, False):
        options = dcp_state.StateDictOptions(full_state_dict=full)
        saved = dcp_state.get_optimizer_state_dict(model, opt, options=options)
        again = sharded(Net())
        fresh = Adam(again.named_parameters(), 0.01)
        if full and not saved:  # torch gives it to rank 0 alone
            continue
        dcp_state.set_optimizer_state_dict(again, fresh, saved, options=options)
        with torch.no_grad():
            for p, q in zip(again.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        results.append(values(stepped(fresh, again, 10, 2) and again))
    stepped(opt, model, 10, 2)
    return results, values(model), plain_state(opt)


def test_state_goes_from_two_processes_to_one_and_back():
    model = Net()
    opt = stepped(Adam(model.named_parameters(), 0.01), model, steps=5)
    at_five, state_at_five = values(model), opt.state_dict()
    stepped(opt, model, 5, 5)
    at_ten = values(model)

    for params, state, later in on_ranks(2, _save_after_five):
        assert differ(params, at_five) == 0
        assert differ(later, at_ten) == 0
        again = Net()
        with torch.no_grad():
            for p, value in zip(again.parameters(), params, strict=True):
                p.copy_(value)
        loaded = Adam(again.named_parameters(), 0.01)
        loaded.load_state_dict(state)
        stepped(loaded, again, 5, 5)
        assert differ(values(again), at_ten) == 0
    stepped(opt, model, 10, 2)
    for results, at_twelve, state in on_ranks(2, _load_and_go_on, at_five, state_at_five):
        assert differ(results[0], at_ten) == 0
        assert len(results) > 1
        for others in results[1:]:
            assert differ(others, at_twelve) == 0
        assert differ(at_twelve, values(model)) == 0
        torch.testing.assert_close(state["state"], opt.state_dict()["state"], rtol=0, atol=0)


def _as_any_optimizer():
    """What else can be done with an optimizer, on DTensors."""
    model = sharded(Net())
    rules = param_rules(model, Rule(ndim=2, wd=0.2), Rule(name="b", lr_mult=0.1))
    opt = stepped(Adam(rules, 0.01), model, steps=2)
    was = values(model)

    snapshot = copy.deepcopy(opt.state_dict())
    twin = copy.deepcopy(opt)
    theirs = [p for group in twin.param_groups for p in group["params"]]
    mine = [p for group in opt.param_groups for p in group["params"]]
    grads = dict(zip(model.parameters(), gradients(7), strict=True))
    for params, o in ((mine, opt), (theirs, twin)):
        give(params, [grads[p] for p in mine])
        o.step()
    same = all(torch.equal(whole(p), whole(q)) for p, q in zip(mine, theirs, strict=True))
    moved = values(model)
    with torch.no_grad():
        for p, value in zip(model.parameters(), was, strict=True):
            p.copy_(cut(value, p))
    opt.load_state_dict(snapshot)
    give(mine, [grads[p] for p in mine])
    opt.step()
    back = all(map(torch.equal, values(model), moved))

    opt = Adam([[model.a, model.b], [model.c, model.d]], 0.01)
    opt.set_flags(model.c, wd=0.0)
    opt.freeze()
    then = values(model)
    give(model.parameters(), gradients(8))
    opt.step()
    still = [torch.equal(x, y) for x, y in zip(values(model), then, strict=True)]
    opt.unfreeze()
    opt.clear_state()
    opt.step()
    cleared = opt.state[model.d]["step"]
    text = opt.explain(program=True)

    free = ScheduleFreeAdamW(model.parameters(), 0.01)
    stepped(free, model, steps=2)
    trained = values(model)
    free.eval()
    away = not torch.equal(values(model)[0], trained[0])
    free.train()
    returned = all(map(torch.equal, values(model), trained))
    return same, back, still, cleared, "sqr_avg ←" in text, away, returned


def test_an_optimizer_of_parts_is_like_any_other():
    for found in on_ranks(3, _as_any_optimizer):
        assert found == (True, True, [True, True, False, False], 1, True, True, True)


def _wrong_state():
    model = sharded(Net())
    opt = Adam(model.parameters(), 0.01)
    saved = plain_state(stepped(opt, model, steps=1))
    saved["state"][0]["grad_avg"] = torch.zeros(3, 5)
    with pytest.raises(UsageError, match="saved with shape"):
        opt.load_state_dict(saved)
    return True


def test_the_state_of_another_model_is_an_error():
    assert on_ranks(2, _wrong_state) == [True, True]


# ---- through a model's own backward pass


def _trained(make):
    model = sharded(Net())
    opt = make(model.parameters())
    for step in range(10):
        model(torch.tensor(0.1 * step)).backward()
        opt.step()
        opt.zero_grad()
    return values(model)


def test_with_gradients_as_fsdp_leaves_them():
    def make(params):
        return Adam(params, 0.01).guard(max_norm=1.0)

    model = Net()
    opt = make(model.parameters())
    for step in range(10):
        model(torch.tensor(0.1 * step)).backward()
        opt.step()
        opt.zero_grad()
    for found in on_ranks(3, _trained, make):
        assert differ(found, values(model)) < 1e-5
