"""Parameter rules, groups with chains of their own, and what is printed of both."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from treadle.data import DataLoaders
from treadle.errors import ChainError, UsageError
from treadle.learner import Learner
from treadle.optim import (
    SGD,
    Adam,
    Lookahead,
    Optimizer,
    Rule,
    adamw_steppers,
    average_grad,
    momentum_step,
    param_rules,
    sgd_step,
    weight_decay,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 6)


MOMENTUM = [average_grad, momentum_step]


def names(groups: Any) -> list[list[str]]:
    return [group["param_names"] for group in groups]


def give_grads(opt: torch.optim.Optimizer) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)


class TestMatching:
    @pytest.mark.parametrize(
        ("rule", "matched"),
        [
            (Rule(nn.LayerNorm, wd=0), ["body.1.weight", "body.1.bias"]),
            (Rule((nn.LayerNorm, nn.Embedding), wd=0), ["embed.weight", "body.1.weight"]),
            (Rule(name="head.*", wd=0), ["head.weight", "head.bias"]),
            (Rule(name="*.?.bias", wd=0), ["body.0.bias", "body.1.bias", "body.2.bias"]),
            (Rule(nn.Linear, ndim=1, wd=0), ["body.0.bias", "body.2.bias", "head.bias"]),
            (Rule(nn.Linear, name="body*", ndim=(2, 3), wd=0), ["body.0.weight", "body.2.weight"]),
        ],
    )
    def test_all_conditions_hold(self, rule: Rule, matched: list[str]) -> None:
        groups = param_rules(Net(), rule)
        hit = [g for g in groups if "wd" in g]
        assert len(hit) == 1
        assert set(matched) <= set(hit[0]["param_names"])
        assert sorted(n for g in groups for n in g["param_names"]) == sorted(
            n for n, _ in Net().named_parameters()
        )

    def test_a_later_rule_goes_over_an_earlier_one(self) -> None:
        groups = param_rules(
            Net(),
            Rule(name="*", lr=1.0, wd=0.1),
            Rule(name="*.bias", lr=2.0),
            Rule(nn.LayerNorm, wd=0),
        )
        found = {n: (g["lr"], g["wd"]) for g in groups for n in g["param_names"]}
        assert found["head.weight"] == (1.0, 0.1)
        assert found["head.bias"] == (2.0, 0.1)
        assert found["body.1.weight"] == (1.0, 0)
        assert found["body.1.bias"] == (2.0, 0)
        assert len(groups) == 4

    def test_a_tied_parameter_is_found_at_each_of_its_places(self) -> None:
        net = Net()
        net.head.weight = net.embed.weight
        for rule in (Rule(nn.Embedding, wd=0), Rule(name="head.weight", wd=0)):
            hit = next(g for g in param_rules(net, rule) if "wd" in g)
            assert hit["param_names"] == ["embed.weight"]

    def test_frozen_parameters_stay_out(self) -> None:
        net = Net()
        net.embed.requires_grad_(False)
        groups = param_rules(net, Rule(name="*bias", wd=0))
        assert not any("embed.weight" in found for found in names(groups))
        with pytest.raises(UsageError, match=r"Rule\(Embedding\) matches no parameter"):
            param_rules(net, Rule(nn.Embedding, wd=0))

    @pytest.mark.parametrize(
        ("rule", "sentence"),
        [
            (Rule(nn.Conv2d, wd=0), r"Rule\(Conv2d\) matches no .* belong to Embedding, LayerNorm"),
            (Rule(name="haed.weight", wd=0), r"Rule\(haed.weight\).*did you mean head.weight\?"),
            (Rule(nn.Linear, ndim=3, wd=0), r"Rule\(Linear, ndim=3\) matches no parameter"),
        ],
    )
    def test_a_rule_that_matches_nothing_is_named(self, rule: Rule, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            param_rules(Net(), Rule(name="*", lr=0.1), rule)

    def test_rules_that_cannot_be_meant(self) -> None:
        with pytest.raises(UsageError, match="no condition"):
            Rule(wd=0)
        with pytest.raises(UsageError, match=r"Rule\(\*bias\) has no effect"):
            Rule(name="*bias")
        with pytest.raises(ChainError, match=r"group 0 was given do_dw.*did you mean do_wd"):
            SGD(param_rules(Net(), Rule(name="*", do_dw=False)), lr=0.1)
        with pytest.raises(UsageError, match=r"shape \(1,\) that is no parameter"):
            param_rules(Net(), splitter=lambda _: [nn.Parameter(torch.ones(1))])


PATTERNS = ["*", "*bias", "*weight", "body.*", "*.0.*", "head.*"]
RULES = st.lists(
    st.builds(
        Rule,
        st.sampled_from([None, nn.Linear, (nn.LayerNorm, nn.Embedding)]),
        name=st.sampled_from(PATTERNS),
        ndim=st.sampled_from([None, 1, (1, 2)]),
        lr=st.sampled_from([0.1, 0.2]),
    ),
    max_size=4,
)


@given(rules=RULES)
@settings(max_examples=50, deadline=None)
def test_every_parameter_is_in_one_group_with_what_the_last_rule_gave(rules: list[Rule]) -> None:
    net = Net()
    places = {n: (net.get_submodule(n.rpartition(".")[0]), n) for n, _ in net.named_parameters()}
    hits = {n: [r for r in rules if r.matches(p, [places[n]])] for n, p in net.named_parameters()}
    if not all(any(rule in found for found in hits.values()) for rule in rules):
        with pytest.raises(UsageError, match="matches no parameter"):
            param_rules(net, *rules)
        return
    groups = param_rules(net, *rules)
    lrs = {n: group.get("lr") for group in groups for n in group["param_names"]}
    assert sum(len(group["params"]) for group in groups) == len(lrs)
    assert lrs == {n: found[-1].gives["lr"] if found else None for n, found in hits.items()}


class TestLayerGroups:
    """Rules cut the splitter's lists further; freezing and slices still count those lists."""

    def split(self, net: nn.Module) -> list[list[nn.Parameter]]:
        return [list(child.parameters()) for child in net.children()]

    def opt(self, net: nn.Module) -> Optimizer:
        groups = param_rules(net, Rule(name="*bias", do_wd=False), splitter=self.split)
        return SGD(groups, lr=slice(0.01, 1.0), wd=0.1)

    def test_slices_and_lists(self) -> None:
        opt = self.opt(Net())
        assert names(opt.param_groups) == [
            ["embed.weight"],
            ["body.0.weight", "body.1.weight", "body.2.weight"],
            ["body.0.bias", "body.1.bias", "body.2.bias"],
            ["head.weight"],
            ["head.bias"],
        ]
        assert [h["lr"] for h in opt.hypers] == pytest.approx([0.01, 0.1, 0.1, 1.0, 1.0])
        opt.set_hyper("lr", [1, 2, 3])
        assert [h["lr"] for h in opt.hypers] == [1, 2, 2, 3, 3]
        opt.set_hyper("lr", [1, 2, 3, 4, 5])
        assert [h["lr"] for h in opt.hypers] == [1, 2, 3, 4, 5]
        with pytest.raises(UsageError, match="has 4 values for 3 groups"):
            opt.set_hyper("lr", [1, 2, 3, 4])

    def test_freezing(self) -> None:
        net = Net()
        opt = self.opt(net)
        opt.freeze()
        assert [n for n, p in net.named_parameters() if p.requires_grad] == [
            "head.weight",
            "head.bias",
        ]
        assert opt.frozen_idx == 2
        opt.freeze_to(1)
        assert [p.requires_grad for p in net.embed.parameters()] == [False]
        assert all(p.requires_grad for p in net.body.parameters())
        with pytest.raises(UsageError, match="only 3 groups"):
            opt.freeze_to(4)

    def test_spared_parameters_do_not_decay_whatever_wd_is_set(self) -> None:
        net = Net()
        opt = self.opt(net)
        opt.set_hypers(wd=0.5, lr=0.1)
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        give_grads(opt)
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
        for n, p in net.named_parameters():
            expected = before[n] if n.endswith("bias") else before[n] * (1 - 0.1 * 0.5)
            torch.testing.assert_close(p.detach(), expected)


class TestOwnChains:
    def opt(self, net: Net, **hypers: Any) -> Optimizer:
        rules = Rule(nn.Embedding, cbs=sgd_step), Rule(nn.Linear, ndim=2, cbs=MOMENTUM, mom=0.5)
        groups = param_rules(net, *rules)
        return Optimizer(groups, [weight_decay, sgd_step], lr=0.1, **{"wd": 0.0, **hypers})

    def test_each_group_is_stepped_by_its_own(self) -> None:
        net, alone = Net(), Net()
        opt = self.opt(net, wd=0.2)
        matrices = [m.weight for m in alone.modules() if isinstance(m, nn.Linear)]
        vectors = [p for p in alone.parameters() if p.ndim == 1]
        apart = [
            SGD([alone.embed.weight], lr=0.1),
            SGD(matrices, lr=0.1, mom=0.5),
            SGD(vectors, lr=0.1, wd=0.2),
        ]
        for _ in range(3):
            give_grads(opt)
            opt.step()
            for o in apart:
                give_grads(o)
                o.step()
        for p, q in zip(net.parameters(), alone.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_a_hyper_goes_to_the_chains_that_name_it(self) -> None:
        opt = self.opt(Net())
        assert [set(h) for h in opt.hypers] == [{"lr"}, {"lr", "mom"}, {"lr", "wd"}]
        assert {"lr", "mom", "wd", "do_wd"} <= opt.hyper_names
        opt.set_hypers(wd=0.3, mom=0.9, lr=0.2)
        assert [dict(h) for h in opt.hypers] == [
            {"lr": 0.2},
            {"lr": 0.2, "mom": 0.9},
            {"lr": 0.2, "wd": 0.3},
        ]
        assert "wd" not in opt.param_groups[0]  # also not among torch's defaults
        with pytest.raises(ChainError, match=r"group 0 was given wd, but .*\(sgd_step\)"):
            Optimizer(param_rules(Net(), Rule(nn.Embedding, cbs=sgd_step, wd=0.1)), adamw_steppers)
        with pytest.raises(ChainError, match=r"Optimizer was given momm.*did you mean mom\?"):
            self.opt(Net(), momm=0.9)

    def test_it_is_saved_loaded_and_copied(self) -> None:
        net = Net()
        opt = self.opt(net)
        give_grads(opt)
        opt.step()
        saved = opt.state_dict()
        assert not any("cbs" in group for group in saved["param_groups"])
        net2, opt2 = copy.deepcopy((net, opt))
        net3 = Net()
        net3.load_state_dict(net.state_dict())
        opt3 = self.opt(net3)
        opt3.load_state_dict(saved)
        for o in (opt, opt2, opt3):
            give_grads(o)
            o.step()
        for other in (net2, net3):
            assert all(map(torch.equal, net.parameters(), other.parameters()))

    def test_lookahead_goes_around_every_chain(self) -> None:
        plain, ahead = Net(), Net()
        opts = [self.opt(plain), Lookahead(self.opt(ahead), k=2, alpha=1.0)]
        for _ in range(2):
            for opt in opts:
                give_grads(opt)
                opt.step()
        assert all(map(torch.equal, plain.parameters(), ahead.parameters()))
        chains = opts[1].chains
        assert [len(chain) for chain in chains] == [3, 4, 4]

    def test_a_group_added_later_brings_its_chain(self) -> None:
        p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        opt = Optimizer([p], sgd_step, lr=1.0)
        opt.add_param_group({"params": [q], "cbs": MOMENTUM, "mom": 0.5})
        for _ in range(2):
            give_grads(opt)
            opt.step()
        assert (p[0].item(), q[0].item()) == (-1.0, -1.5)


class TestLrMult:
    def test_it_is_a_ratio_that_outlives_every_schedule(self) -> None:
        p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        opt = SGD([{"params": [p]}, {"params": [q], "lr_mult": 0.5}], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            opt, 1.0, total_steps=9, cycle_momentum=False
        )
        for _ in range(8):
            give_grads(opt)
            opt.step()
            schedule.step()
        opt.set_hyper("lr", 2.0)
        give_grads(opt)
        opt.step()
        assert q.item() == pytest.approx(p.item() / 2, rel=1e-6)
        assert dict(opt.hypers[1]) == {"lr_mult": 0.5, "lr": 2.0, "wd": 0.0}

    def test_all_steppers_see_it_however_they_read_lr(self) -> None:
        def by_kwargs(p: Any, **kwargs: Any) -> None:
            p.data.sub_(kwargs["lr"])

        def by_default(p: Any, lr: float = 1.0) -> None:
            p.data.sub_(lr)

        p = nn.Parameter(torch.zeros(1))
        opt = Optimizer([p], [by_kwargs, partial(by_default)], lr=1.0, lr_mult=0.25)
        give_grads(opt)
        opt.step()
        assert p.item() == -0.5
        assert opt.hyper_names >= {"lr", "lr_mult"}
        opt.set_hyper("lr_mult", 1.0)
        opt.step()
        assert p.item() == -2.5

    def test_a_chain_without_lr_has_no_ratio_of_it(self) -> None:
        def halve(p: Any) -> None:
            p.data.mul_(0.5)

        with pytest.raises(ChainError, match="lr_mult"):
            Optimizer([nn.Parameter(torch.ones(1))], halve, lr_mult=0.5)

    def test_it_is_not_applied_twice(self) -> None:
        p = nn.Parameter(torch.zeros(1))
        opt = Lookahead(
            SGD([p], lr=1.0) if False else Optimizer([p], sgd_step, lr=1.0, lr_mult=0.5)
        )
        give_grads(opt)
        opt.step()
        assert p.item() == -0.5


def test_a_learner_takes_rules_as_its_splitter() -> None:
    def splitter(model: nn.Module) -> Any:
        return param_rules(model, Rule(nn.Linear, name="0.*", lr_mult=0.0))

    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    batches = [(x, x.sum(1, keepdim=True))]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    before = copy.deepcopy(model)
    dls = DataLoaders(batches, batches, device="cpu")
    learn = Learner(dls, model, nn.functional.mse_loss, opt_func=Adam, splitter=splitter)
    with learn.no_logging():
        learn.fit_one_cycle(2, 0.1)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[1].weight, before[1].weight)


class TestPrinting:
    def test_groups_of_rules(self) -> None:
        groups = param_rules(
            nn.Sequential(nn.Linear(2, 3), nn.Embedding(2, 2)),
            Rule(nn.Embedding, cbs=sgd_step, lr=1.0),
        )
        assert repr(groups).splitlines() == [
            "no rule: nothing of its own",
            "  0.weight (3, 2)",
            "  0.bias (3,)",
            "Rule(Embedding): lr=1.0, sgd_step",
            "  1.weight (2, 2)",
        ]

    def test_an_optimizer_of_several_chains(self) -> None:
        net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        rule = Rule(nn.Linear, ndim=2, cbs=MOMENTUM, mom=0.9)
        opt = SGD(
            param_rules(net, rule, splitter=lambda m: [list(c.parameters()) for c in m]), lr=0.1
        )
        opt.freeze()
        assert repr(opt).splitlines() == [
            "Optimizer: weight_decay -> sgd_step",
            "  group 0 (Rule(Linear, ndim=2)): 1 parameter (6 values), layer group 0, frozen,"
            " mom=0.9, lr=0.1",
            "    average_grad -> momentum_step",
            "  group 1 (no rule): 1 parameter (3 values), layer group 0, frozen, lr=0.1, wd=0.0",
            "  group 2 (Rule(Linear, ndim=2)): 1 parameter (6 values), layer group 1,"
            " mom=0.9, lr=0.1",
            "    average_grad -> momentum_step",
            "  group 3 (no rule): 1 parameter (2 values), layer group 1, lr=0.1, wd=0.0",
        ]
