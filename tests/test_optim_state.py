"""Saving and loading, and Lookahead, whose slow weights are state like any other."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from treadle.errors import UsageError
from treadle.optim import SGD, Adam, Lamb, Larc, Lookahead, Optimizer, RMSProp, ranger, sgd_step

Recipe = Callable[..., Optimizer]
RECIPES: list[Recipe] = [
    lambda ps: SGD(ps, lr=0.1, mom=0.9),
    lambda ps: RMSProp(ps, lr=0.01, mom=0.9),
    lambda ps: Adam(ps, lr=0.01),
    lambda ps: Larc(ps, lr=0.1),
    lambda ps: Lamb(ps, lr=0.1),
    lambda ps: ranger(ps, lr=0.1, k=3),
]
IDS = ["sgd", "rmsprop", "adam", "larc", "lamb", "ranger"]


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)


def run(opt: torch.optim.Optimizer, steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
        opt.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
class TestRoundTrip:
    def test_resumed_is_the_run_that_never_stopped(self, recipe: Recipe) -> None:
        whole = net()
        opt = recipe(whole.parameters())
        run(opt, 4, seed=1)
        weights, saved = copy.deepcopy(whole.state_dict()), through_a_file(opt.state_dict())
        run(opt, 5, seed=2)

        resumed = net()
        resumed.load_state_dict(weights)
        again = recipe(resumed.parameters())
        again.load_state_dict(saved)
        assert same(again.state_dict(), saved)
        run(again, 5, seed=2)
        assert same(dict(resumed.state_dict()), dict(whole.state_dict()))
        assert same(again.state_dict(), opt.state_dict())

    def test_a_state_dict_is_a_snapshot(self, recipe: Recipe) -> None:
        opt = recipe(net().parameters())
        run(opt, 3, seed=1)
        saved = opt.state_dict()
        kept = copy.deepcopy(saved)
        run(opt, 1, seed=2)
        assert same(saved, kept)
        opt.load_state_dict(saved)
        run(opt, 4, seed=3)
        assert same(saved, kept)

    def test_a_deep_copy_goes_its_own_way(self, recipe: Recipe) -> None:
        model = net()
        opt = recipe(model.parameters())
        run(opt, 2, seed=1)
        model2, opt2 = copy.deepcopy((model, opt))
        assert opt2.param_lists[0][0] is model2[0].weight
        run(opt, 2, seed=2)
        assert not same(opt2.state_dict(), opt.state_dict())
        run(opt2, 2, seed=2)
        assert same(opt2.state_dict(), opt.state_dict())
        assert same(dict(model2.state_dict()), dict(model.state_dict()))

    def test_clear_state_makes_the_next_step_the_first(self, recipe: Recipe) -> None:
        a, b = net(), net()
        opt = recipe(a.parameters())
        run(opt, 3, seed=1)
        opt.clear_state()
        a.load_state_dict(b.state_dict())
        run(opt, 4, seed=2)
        run(recipe(b.parameters()), 4, seed=2)
        assert same(dict(a.state_dict()), dict(b.state_dict()))


def test_stats_keep_their_dtype() -> None:
    def f(p: Any, lr: float, precise: Any = None, count: int = 0) -> dict[str, Any]:
        if precise is None:
            precise = torch.zeros(p.shape, dtype=torch.float64)
        return {"precise": precise + 1e-9, "count": count + 1, "mask": p.data > 0}

    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = Optimizer([p], f, lr=0.1)
    run(opt, 2, seed=0)
    other = Optimizer([p], f, lr=0.1)
    other.load_state_dict(through_a_file(opt.state_dict()))
    stats = other.state[p]
    assert stats["precise"].dtype == torch.float64
    assert stats["precise"][0].item() == 2e-9
    assert stats["mask"].dtype == torch.bool
    assert type(stats["count"]) is int
    assert stats["precise"] is not opt.state[p]["precise"]


def test_what_is_saved_is_plain() -> None:
    opt = SGD([[p] for p in net().parameters()], lr=0.1, mom=0.9)
    opt.set_hyper("lr", torch.linspace(0, 1, 4).numpy())
    run(opt, 1, seed=0)
    assert same(through_a_file(opt.state_dict()), opt.state_dict())


class TestNames:
    def test_state_goes_by_name_not_by_place(self) -> None:
        named = list(net().named_parameters())
        opt = Adam(named, lr=0.1)
        run(opt, 2, seed=0)
        turned = Adam(list(reversed(named)), lr=0.1)
        turned.load_state_dict(opt.state_dict())
        for _, p in named:
            assert same(turned.state[p], opt.state[p])
        assert turned.param_groups[0]["param_names"] == [name for name, _ in reversed(named)]

    def test_a_name_that_is_missing_or_not_expected(self) -> None:
        saved = Adam(nn.Linear(2, 2).named_parameters(), lr=0.1).state_dict()
        p = nn.Parameter(torch.ones(2))
        with pytest.raises(UsageError, match="missing: scale; not expected: weight"):
            Adam([("scale", p), ("bias", nn.Parameter(p))], lr=0.1).load_state_dict(saved)

    def test_without_names_on_one_side_it_goes_by_place(self) -> None:
        model = net()
        opt = Adam(model.parameters(), lr=0.1)
        run(opt, 1, seed=0)
        named = Adam(model.named_parameters(), lr=0.1)
        named.load_state_dict(opt.state_dict())
        assert same(named.state_dict()["state"], opt.state_dict()["state"])
        assert "param_names" in named.param_groups[0]


class TestMismatch:
    @pytest.mark.parametrize(
        ("other", "sentence"),
        [
            (lambda ps: Adam([ps[:1], ps[1:]], lr=0.1), "has 2 groups and this one has 1"),
            (lambda ps: Adam(ps[:3], lr=0.1), "has 3 parameters and this one has 4"),
            (lambda ps: SGD(ps, lr=0.1), "has no mom, sqr_mom, eps: it was saved by another"),
            (lambda ps: torch.optim.Adam(ps, lr=0.1), "has no mom, sqr_mom, wd"),
        ],
    )
    def test_it_says_what_differs_and_changes_nothing(
        self, other: Callable[..., torch.optim.Optimizer], sentence: str
    ) -> None:
        ps = list(net().parameters())
        opt = Adam(ps, lr=0.1)
        run(opt, 1, seed=0)
        before = opt.state_dict()
        with pytest.raises(UsageError, match=sentence):
            opt.load_state_dict(other(ps).state_dict())
        assert same(opt.state_dict(), before)

    def test_stats_of_another_chain(self) -> None:
        ps = list(net().parameters())
        opt = Adam(ps, lr=0.1)
        run(opt, 1, seed=0)
        with pytest.raises(UsageError, match="grad_avg, sqr_avg, step, which no stepper"):
            SGD(ps, lr=0.1).load_state_dict(opt.state_dict())

    def test_no_state_dict_at_all(self) -> None:
        with pytest.raises(UsageError, match=r"it has weight, bias"):
            SGD(net().parameters(), lr=0.1).load_state_dict(nn.Linear(1, 1).state_dict())


class TestLookahead:
    def test_it_takes_over_a_run_in_progress(self) -> None:
        a, b = net(), net()
        plain = Adam(b.parameters(), lr=0.1)
        opt = Adam([list(a[0].parameters()), list(a[1].parameters())], lr=0.1)
        run(plain, 3, seed=0)
        run(opt, 3, seed=0)
        opt.set_flags(opt.param_lists[0], force_train=True)
        ahead = Lookahead(opt, k=100)
        ahead.freeze()
        assert all(p.requires_grad for p in a.parameters())
        run(plain, 3, seed=1)
        run(ahead, 3, seed=1)
        assert same(dict(a.state_dict()), dict(b.state_dict()))
        assert ahead.hypers[0] == {**opt.hypers[0], "k": 100, "alpha": 0.5}

    def test_each_parameter_looks_ahead_from_where_it_starts(self) -> None:
        p, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        opt = Lookahead(SGD([p, late], lr=1.0), k=2, alpha=0.5)
        for i in range(4):
            p.grad = torch.ones(1)
            late.grad = torch.ones(1) if i > 0 else None
            opt.step()
        assert (p.item(), late.item()) == (-2.0, -2.0)

    def test_alpha_can_be_scheduled(self) -> None:
        opt = Lookahead(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), k=1)
        opt.set_hyper("alpha", 0.25)
        opt.param_lists[0][0].grad = torch.ones(1)
        opt.step()
        assert opt.param_lists[0][0].item() == -0.25

    def test_repr_is_that_of_the_chain(self) -> None:
        text = repr(Lookahead(SGD([nn.Parameter(torch.zeros(1))], lr=1.0)))
        assert text.startswith(
            "Lookahead: slow_weights -> weight_decay -> sgd_step -> lookahead_step\n"
        )

    def test_errors(self) -> None:
        p = nn.Parameter(torch.zeros(1))
        with pytest.raises(UsageError, match="a SGD was given"):
            Lookahead(torch.optim.SGD([p], lr=0.1))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="at least one step"):
            Lookahead(SGD([p], lr=0.1), k=0)
        with pytest.raises(UsageError, match="hyper-parameter alpha"):
            Lookahead(Lookahead(SGD([p], lr=0.1)))


def test_user_hooks_see_plain_stats() -> None:
    seen: list[Any] = []
    p = nn.Parameter(torch.ones(2))
    opt = SGD([p], lr=0.1, mom=0.9)
    run(opt, 1, seed=0)
    opt.register_load_state_dict_pre_hook(
        lambda opt, state: seen.append(type(state["state"][0]["grad_avg"]))
    )
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(type(opt.state[p]["grad_avg"])))
    opt.load_state_dict(opt.state_dict())
    assert seen == [torch.Tensor, torch.Tensor]
    opt.load_state_dict(opt.state_dict())
    assert len(seen) == 4


def test_a_parameter_without_state_is_not_saved() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    opt = Optimizer([a, b], sgd_step, lr=0.1)
    run(opt, 1, seed=0)
    opt.all_params()
    assert opt.state_dict()["state"] == {}
