"""From torch's optimizers and back, and torch's own under this library's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from helpers import copied_params, same_params, tiny_learner
from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    OptimWrapper,
    RMSProp,
    Rule,
    from_torch,
    make_opt,
    param_rules,
    to_torch,
    wrap,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def run(opt: Any, steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    params = sorted((p for g in opt.param_groups for p in g["params"]), key=lambda p: p.numel())
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64)
        opt.step()


def assert_same(mine: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


THEIRS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "sgd l2": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
    "adam decoupled": partial(
        torch.optim.Adam, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "adamw lr tensor": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.125).double()),
}
NAMES = pytest.mark.parametrize("name", THEIRS)


@NAMES
@pytest.mark.parametrize("before", [0, 3])
def test_there_and_back_goes_on_where_it_stood(name: str, before: int) -> None:
    """torch for a while, then the chain, then torch: the way of torch all along."""
    whole, moved = net(), net()
    opt, other = THEIRS[name](whole.parameters()), THEIRS[name](moved.parameters())
    run(opt, before, seed=1)
    run(other, before, seed=1)
    chain = from_torch(other)
    assert isinstance(chain, Optimizer)
    run(opt, 4, seed=2)
    run(chain, 4, seed=2)
    assert_same(moved, whole)
    back = to_torch(chain)
    if name != "adam decoupled":  # which comes back under its other name, AdamW
        assert type(back) is type(opt)
    run(opt, 3, seed=3)
    run(back, 3, seed=3)
    assert_same(moved, whole)


def test_groups_names_and_schedules_come_along() -> None:
    model = net()
    groups = [
        {"params": list(model[0].named_parameters()), "lr": 0.1, "momentum": 0.9},
        {"params": list(model[1].named_parameters()), "lr": 0.2, "momentum": 0.0},
    ]
    opt = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda _: 1.0)
    chain = from_torch(opt)
    assert [dict(h) for h in chain.hypers] == [
        {"lr": 0.1, "wd": 0.5, "mom": 0.9},
        {"lr": 0.2, "wd": 0.5},
    ]
    assert [g["param_names"] for g in chain.param_groups] == [["weight", "bias"]] * 2
    assert [g["initial_lr"] for g in chain.param_groups] == [0.1, 0.2]
    back = to_torch(chain)
    for mine, theirs in zip(back.param_groups, opt.param_groups, strict=True):
        for key in ("lr", "momentum", "weight_decay", "nesterov", "initial_lr", "param_names"):
            assert mine[key] == theirs[key]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(torch.optim.Adagrad, lr=0.1), "was given a Adagrad; it reads torch's AdamW"),
        (partial(torch.optim.Adam, lr=0.1, amsgrad=True), "amsgrad=True, which no stepper"),
        (partial(torch.optim.AdamW, lr=0.1, maximize=True), "maximize=True"),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.1), "dampening=0.1"),
        (partial(SGD, lr=0.1), "was given a Optimizer"),
    ],
)
def test_what_has_no_counterpart_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        from_torch(make(net().parameters()))


class TestToTorch:
    def test_flags_and_ratios_become_groups(self) -> None:
        model, plain = net(), net()
        opt = AdamW([list(m.named_parameters()) for m in model], lr=0.1, weight_decay=0.2)
        opt.param_groups[0]["lr"] = 0.05
        opt.set_flags([m.bias for m in model], do_wd=False)
        opt.set_flags([m.bias for m in model], force_train=True)
        theirs = to_torch(opt)
        assert [(g["param_names"], g["lr"], g["weight_decay"]) for g in theirs.param_groups] == [
            (["weight"], 0.05, 0.2),
            (["bias"], 0.05, 0.0),
            (["weight"], 0.1, 0.2),
            (["bias"], 0.1, 0.0),
        ]
        groups = [
            {"params": m.parameters(), "lr_mult": r} for m, r in zip(plain, (0.5, 1), strict=True)
        ]
        mine = AdamW(groups, lr=0.1, weight_decay=0.2)
        mine.set_flags([m.bias for m in plain], do_wd=False)
        run(theirs, 3, seed=0)
        run(mine, 3, seed=0)
        assert_same(model, plain)
        assert [g["lr"] for g in to_torch(mine).param_groups] == [0.05, 0.05, 0.1, 0.1]

    @pytest.mark.parametrize(
        "make",
        [
            partial(RMSProp, lr=0.1),
            partial(SGD, lr=0.1, wd=0.1),  # decoupled, which torch's SGD is not
            lambda ps: Optimizer(ps, lambda p, lr: None, lr=0.1),
        ],
    )
    def test_a_chain_that_torch_has_not(self, make: Any) -> None:
        with pytest.raises(UsageError, match="not that of torch's AdamW, Adam or SGD"):
            to_torch(make(net().parameters()))

    def test_a_hyper_that_torch_has_not(self) -> None:
        opt = SGD(net().parameters(), lr=0.1, mom=0.9)
        opt.set_hyper("dampening", True)
        with pytest.raises(UsageError, match="dampening=True"):
            to_torch(opt)


class TestOptimWrapper:
    @pytest.mark.parametrize(
        ("make", "hypers"),
        [
            (torch.optim.SGD, {"lr": 0.1, "wd": 0}),
            (partial(torch.optim.SGD, momentum=0.9), {"lr": 0.1, "mom": 0.9, "wd": 0}),
            (
                partial(torch.optim.AdamW, betas=(0.8, 0.99)),
                {"lr": 0.1, "mom": 0.8, "sqr_mom": 0.99, "wd": 0.01, "eps": 1e-8},
            ),
            (torch.optim.RMSprop, {"lr": 0.1, "sqr_mom": 0.99, "wd": 0, "eps": 1e-8}),
            (torch.optim.Adafactor, {"lr": 0.1, "wd": 0.0}),
            (torch.optim.ASGD, {"lr": 0.1, "wd": 0}),
        ],
    )
    def test_the_names_are_ours(self, make: Any, hypers: dict[str, float]) -> None:
        opt = OptimWrapper(net().parameters(), make, lr=0.1)
        assert opt.hypers == [hypers]
        assert opt.hyper_names == {*hypers, "do_wd"}

    def test_what_is_set_is_torchs(self) -> None:
        opt = OptimWrapper([list(m.parameters()) for m in net()], torch.optim.AdamW, lr=0.1)
        opt.set_hypers(lr=slice(0.01, 0.1), mom=[0.7, 0.8], sqr_mom=0.95, wd=0.5, eps=1e-6)
        first, last = opt.opt.param_groups
        assert (first["lr"], last["lr"]) == (0.01, 0.1)
        assert (first["betas"], last["betas"]) == ((0.7, 0.95), (0.8, 0.95))
        assert first["weight_decay"] == 0.5
        assert opt.hypers[1]["mom"] == 0.8
        with pytest.raises(UsageError, match=r"did you mean sqr_mom\?"):
            opt.set_hyper("sqr_mon", 0.9)
        with pytest.raises(KeyError):
            OptimWrapper(net().parameters(), torch.optim.SGD, lr=0.1).hypers[0]["mom"]

    def test_an_lr_that_is_a_tensor_stays_that_tensor(self) -> None:
        rate = torch.tensor(0.1)
        opt = wrap(torch.optim.AdamW(net().parameters(), lr=rate))
        opt.set_hyper("lr", 0.5)
        assert opt.hypers[0]["lr"] == 0.5
        assert opt.param_groups[0]["lr"] is rate

    def test_a_slice_at_the_start(self) -> None:
        opt = OptimWrapper(
            [list(m.parameters()) for m in net()], torch.optim.SGD, lr=slice(0.01, 0.1)
        )
        assert [h["lr"] for h in opt.hypers] == [0.01, 0.1]

    def test_freezing(self) -> None:
        model = net()
        opt = OptimWrapper([list(m.parameters()) for m in model], torch.optim.SGD, lr=0.1)
        opt.set_flags([model[0].bias], force_train=True)
        before = [p.detach().clone() for p in model.parameters()]
        opt.freeze()
        assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
        model(torch.ones(5, 3).double()).sum().backward()
        opt.step()
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert moved == [False, True, True, True]
        opt.unfreeze()
        assert all(p.requires_grad for p in model.parameters())

    def test_do_wd_makes_groups_whose_decay_stays_zero(self) -> None:
        model, plain = net(), net()
        groups = [list(m.named_parameters()) for m in model]
        opt = OptimWrapper(groups, torch.optim.AdamW, lr=0.1)
        mine = AdamW([list(m.parameters()) for m in plain], lr=0.1)
        for o, m in ((opt, model), (mine, plain)):
            o.set_flags([layer.bias for layer in m], do_wd=False)
            o.set_hypers(wd=0.5, lr=slice(0.01, 0.1))
            o.freeze()
            o.unfreeze()
        run(opt, 3, seed=0)
        run(mine, 3, seed=0)
        assert_same(model, plain)
        assert [h.get("wd") for h in opt.hypers] == [0.5, None, 0.5, None]
        assert [g["param_names"] for g in opt.param_groups] == [["weight"], ["bias"]] * 2
        assert [g["lr"] for g in opt.param_groups] == [0.01, 0.01, 0.1, 0.1]
        again = OptimWrapper([list(m.named_parameters()) for m in net()], torch.optim.AdamW, lr=1.0)
        again.set_flags([p for ps in again.param_lists for p in ps if p.ndim == 1], do_wd=False)
        again.load_state_dict(opt.state_dict())
        assert again.hypers == opt.hypers

    def test_flags_that_torch_cannot_keep_are_refused(self) -> None:
        opt = OptimWrapper(net().parameters(), torch.optim.AdamW, lr=0.1)
        params = opt.param_lists[0]
        with pytest.raises(UsageError, match="AdamW takes no flag lr, for in torch"):
            opt.set_flags(params, lr=0.5)
        with pytest.raises(UsageError, match="not in this optimizer"):
            opt.set_flags(torch.ones(2), do_wd=False)
        opt.set_flags(params[0], do_wd=True)
        assert len(opt.param_groups) == 1
        opt.set_flags(params[0], do_wd=False)
        with pytest.raises(UsageError, match="it stays so"):
            opt.set_flags(params[0], do_wd=True)

    def test_the_scaler_steps_the_fused_one_unscaled(self) -> None:
        p, q = (nn.Parameter(torch.ones(3)) for _ in "pq")
        scaled = OptimWrapper([p], torch.optim.AdamW, lr=0.1, fused=True)
        plain = torch.optim.AdamW([q], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, float("inf"), 2.0):
            scaler.scale((p * factor).sum()).backward()
            scaler.step(scaled)
            scaler.update()
            scaled.zero_grad()
            if factor < 3:
                (q * factor).sum().backward()
                plain.step()
                plain.zero_grad()
        assert torch.equal(p, q)

    def test_errors(self) -> None:
        w = nn.Parameter(torch.ones(1))
        for wrong in (Adam([w], lr=0.1), nn.Linear(1, 1), None):
            with pytest.raises(UsageError, match="needs a torch optimizer"):
                OptimWrapper(opt=wrong)
        for name in ("cbs", "lr_mult", "mom"):  # torch's SGD without momentum has no mom to set
            with pytest.raises(UsageError, match=f"was given {name}, which SGD does not have"):
                OptimWrapper([{"params": [w], name: 0.5}], torch.optim.SGD, lr=0.1)

    def test_rules_are_translated(self) -> None:
        groups = param_rules(
            net(), Rule(ndim=1, do_wd=False), Rule(name="1.weight", wd=0.5, lr=0.2)
        )
        opt = OptimWrapper(groups, torch.optim.AdamW, lr=0.1)
        found = {g["param_names"][0]: (g["weight_decay"], g["lr"]) for g in opt.param_groups}
        assert found == {"0.weight": (0.01, 0.1), "0.bias": (0.0, 0.1), "1.weight": (0.5, 0.2)}
        opt.set_hyper("wd", 0.3)
        assert [g["weight_decay"] for g in opt.param_groups] == [0.3, 0.0, 0.3]

    def test_the_rest_of_the_face(self) -> None:
        model = net()
        opt = OptimWrapper(model.parameters(), torch.optim.Adam, lr=0.1)

        def closure() -> torch.Tensor:
            opt.zero_grad()
            loss = model(torch.ones(2, 3).double()).sum()
            loss.backward()
            return loss

        assert opt.step(closure).item() != 0
        assert len(opt.state) == 4
        opt.clear_state()
        assert not opt.state
        opt.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        assert len(opt.hypers) == 2
        assert repr(opt).startswith("OptimWrapper of Adam (")


class TestWrap:
    def test_it_wraps_once(self) -> None:
        params = list(net().parameters())
        mine, theirs = Adam(params, lr=0.1), torch.optim.Adam(params, lr=0.1)
        assert wrap(mine) is mine
        wrapped = wrap(theirs)
        assert isinstance(wrapped, OptimWrapper)
        assert wrapped.opt is theirs
        assert wrap(wrapped) is wrapped
        with pytest.raises(UsageError, match="a NoneType was given"):
            wrap(None)

    @pytest.mark.parametrize(
        "opt_func",
        [
            torch.optim.AdamW,
            partial(torch.optim.AdamW, betas=(0.9, 0.99)),
            partial(OptimWrapper, opt=torch.optim.AdamW),
            Adam,
            partial(partial(Adam, mom=0.8), wd=0.0),
        ],
    )
    def test_make_opt_gives_all_of_them_groups(self, opt_func: Any) -> None:
        opt = make_opt(opt_func, [list(m.parameters()) for m in net()], lr=slice(0.01, 0.1))
        assert [h["lr"] for h in opt.hypers] == [0.01, 0.1]
        assert isinstance(opt, Optimizer | OptimWrapper)

    def test_a_function_gets_what_it_was_given(self) -> None:
        params = list(net().parameters())

        def opt_func(ps: Any, lr: float) -> torch.optim.Optimizer:
            assert ps is params
            return torch.optim.SGD(ps, lr=lr)

        assert isinstance(make_opt(opt_func, params, lr=0.1), OptimWrapper)


class TestInALearner:
    """The verbs of a learner on torch's own optimizers."""

    def test_fit_one_cycle_equals_ours(self) -> None:
        hypers = {"sqr_mom": 0.999, "eps": 1e-8}
        mine = tiny_learner(opt_func=partial(Adam, **hypers), lr=0.01)
        theirs = tiny_learner(opt_func=partial(make_opt, torch.optim.AdamW), lr=0.01)
        for learn in (mine, theirs):
            with learn.no_logging():
                learn.fit_one_cycle(2, 0.01, wd=0.1)
        for p, q in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        spared = [g for g in theirs.opt.param_groups if g.get("do_wd") is False]
        assert [p.ndim for g in spared for p in g["params"]] == [1, 1]

    def test_freezing_and_finding(self) -> None:
        def splitter(model: nn.Module) -> list[list[nn.Parameter]]:
            return [list(model[0].parameters()), list(model[2].parameters())]

        learn = tiny_learner(opt_func=partial(make_opt, torch.optim.SGD), splitter=splitter)
        before = copied_params(learn.model)
        with learn.no_logging():
            learn.freeze()
            learn.fit(1)
        moved = [
            not torch.equal(p, b) for p, b in zip(learn.model.parameters(), before, strict=True)
        ]
        assert moved == [False, False, True, True]
        before = copied_params(learn.model)
        with learn.no_logging():
            learn.lr_find(show_plot=False, num_it=50)
        assert same_params(learn.model, before)
        with learn.no_logging():
            learn.fine_tune(1)
        assert not same_params(learn.model, before)
