"""Groups, hyper-parameters, flags and freezing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.optim import SGD, Adam, Optimizer, sgd_step


def three() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(n)) for n in (1, 2, 3)]


def one_each() -> list[list[nn.Parameter]]:
    return [[p] for p in three()]


def give_grads(opt: torch.optim.Optimizer) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                p.grad = torch.ones_like(p)


class TestParams:
    def test_tensors(self) -> None:
        assert [len(ps) for ps in SGD(iter(three()), lr=0.1).param_lists] == [3]

    def test_one_list_a_group_whatever_the_kind_of_list(self) -> None:
        a, b, c = three()
        opt = SGD([(a,), iter([b, c]), []], lr=0.1)
        assert [len(ps) for ps in opt.param_lists] == [1, 2, 0]

    def test_named(self) -> None:
        net = nn.Linear(2, 3)
        opt = SGD(net.named_parameters(), lr=0.1)
        assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
        assert opt.param_lists == [[net.weight, net.bias]]

    def test_named_in_groups(self) -> None:
        net = nn.Linear(2, 3)
        opt = SGD([[("w", net.weight)], [("b", net.bias)]], lr=0.1)
        assert [g["param_names"] for g in opt.param_groups] == [["w"], ["b"]]

    def test_dicts_override_and_are_not_changed(self) -> None:
        a, b, c = three()
        groups = [{"params": [a, b]}, {"params": c, "lr": 0.5, "name": "head"}]
        opt = SGD(groups, lr=0.1, wd=0.3)
        assert [dict(h) for h in opt.hypers] == [{"lr": 0.1, "wd": 0.3}, {"lr": 0.5, "wd": 0.3}]
        assert groups[0] == {"params": [a, b]}

    @pytest.mark.parametrize(
        ("params", "sentence"),
        [
            (lambda: torch.ones(2), "put a single tensor into a list"),
            (lambda: nn.Linear(2, 2), r"model\.parameters\(\)"),
            (lambda: 3, "but a int was given"),
            (lambda: [], "no parameter"),
            (lambda: [[], []], "no parameter"),
            (lambda: set(three()), "order changes"),
            (lambda: [three()[0], three()], "mixes lists and tensors"),
            (lambda: [("a", three()[0]), three()[0]], "mixes pairs and tensors"),
            (lambda: [[("a", three()[0])], three()], "name all or none"),
            (lambda: [3, 4], "this one has int"),
            (lambda: [{"lr": 0.1}], "no 'params'"),
            (lambda: [three()[0] * 2], "result of a computation"),
            (lambda: nn.LazyLinear(3).parameters(), "run one batch"),
        ],
    )
    def test_what_cannot_be_meant(self, params: Callable[[], Any], sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            SGD(params(), lr=0.1)

    def test_a_tied_parameter_given_twice(self) -> None:
        a, b, _ = three()
        with pytest.raises(UsageError, match="are one tensor"):
            SGD([a, b, a], lr=0.1)
        with pytest.raises(UsageError, match=r"parameter x in group 0 and parameter z in group 1"):
            SGD([[("x", a), ("y", b)], [("z", a)]], lr=0.1)
        opt = SGD([a], lr=0.1)
        with pytest.raises(UsageError, match="are one tensor"):
            opt.add_param_group({"params": [a]})


class TestHypers:
    def test_one_value_and_one_a_group(self) -> None:
        opt = SGD(one_each(), lr=0.1)
        opt.set_hyper("lr", 0.2)
        assert [h["lr"] for h in opt.hypers] == [0.2] * 3
        for values in ([1, 2, 3], (1, 2, 3), np.array([1, 2, 3])):
            opt.set_hyper("lr", 0)
            opt.set_hyper("lr", values)
            assert [g["lr"] for g in opt.param_groups] == [1, 2, 3]
        opt.set_hypers(lr=[0.5], wd=0.25)
        assert [dict(h) for h in opt.hypers] == [{"lr": 0.5, "wd": 0.25}] * 3

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]),
            (slice(1e-2), [1e-3, 1e-3, 1e-2]),
            (slice(0, 1), [0, 0.5, 1]),
            (slice(-1, 1), [-1, 0, 1]),
            (slice(0.9, 0.9), [0.9, 0.9, 0.9]),
        ],
    )
    def test_slices(self, value: slice, expected: list[float]) -> None:
        opt = SGD(one_each(), lr=0.1)
        opt.set_hyper("lr", value)
        assert [h["lr"] for h in opt.hypers] == pytest.approx(expected, rel=1e-15)
        # the ends are exact, also when the slice is given at the start
        built = SGD(one_each(), lr=value)
        assert built.hypers[2]["lr"] == expected[2]
        assert [h["lr"] for h in built.hypers] == [h["lr"] for h in opt.hypers]

    def test_a_slice_over_one_group_is_its_stop(self) -> None:
        for value in (slice(0.01, 0.5), slice(0.5)):
            assert SGD(three(), lr=value).hypers[0]["lr"] == 0.5

    @pytest.mark.parametrize("value", [[1, 2], slice(1, None), slice(1, 2, 3), []])
    def test_what_cannot_be_spread(self, value: Any) -> None:
        with pytest.raises(UsageError, match="give "):
            SGD(one_each(), lr=0.1).set_hyper("lr", value)

    def test_unknown_names_name_the_nearest(self) -> None:
        opt = Adam(three(), lr=0.1)
        with pytest.raises(UsageError, match=r"did you mean sqr_mom\?"):
            opt.set_hyper("sqr_mon", 0.9)
        with pytest.raises(UsageError, match="no stepper of this optimizer"):
            opt.set_hypers(step=3)
        with pytest.raises(UsageError, match="mom"):
            SGD(three(), lr=0.1).set_hyper("mom", 0.9)

    def test_the_view_is_live_both_ways(self) -> None:
        opt = SGD(one_each(), lr=0.1)
        view = opt.hypers[1]
        opt.param_groups[1]["lr"] = 0.7
        assert view["lr"] == 0.7
        view["lr"] = np.float64(0.3)
        assert type(opt.param_groups[1]["lr"]) is float
        assert opt.hypers[0]["lr"] == 0.1
        with pytest.raises(UsageError, match="lrr"):
            view["lrr"] = 1.0
        with pytest.raises(KeyError):
            view["params"]
        assert list(view) == ["lr", "wd"]

    def test_lr_is_known_to_chains_that_may_read_it(self) -> None:
        opt = Optimizer(three(), lambda p, **kwargs: p.data.sub_(kwargs["lr"]), lr=0.5)
        give_grads(opt)
        opt.step()
        assert torch.equal(opt.param_lists[0][1].data, torch.full((2,), 0.5))

    def test_each_group_is_stepped_with_its_own(self) -> None:
        opt = SGD(one_each(), lr=[0.1, 0.2, 0.4])
        give_grads(opt)
        opt.step()
        assert [round(ps[0][0].item(), 6) for ps in opt.param_lists] == [0.9, 0.8, 0.6]

    def test_repr(self) -> None:
        opt = Adam([three()[:2], three()[2:]], lr=slice(0.1, 1.0), wd=0)
        opt.freeze()
        assert repr(opt).splitlines() == [
            "Optimizer: weight_decay -> average_grad(dampening=True) -> average_sqr_grad"
            " -> step_stat -> adam_step",
            "  group 0: 2 parameters (3 values), frozen,"
            " lr=0.1, mom=0.9, sqr_mom=0.99, eps=1e-05, wd=0",
            "  group 1: 1 parameter (3 values), lr=1.0, mom=0.9, sqr_mom=0.99, eps=1e-05, wd=0",
        ]


class TestFlags:
    def test_flags_override_any_hyper(self) -> None:
        opt = SGD(three(), lr=0.1)
        opt.set_flags(opt.param_lists[0][0], lr=0.5)
        give_grads(opt)
        opt.step()
        assert [round(p[0].item(), 6) for p in opt.param_lists[0]] == [0.5, 0.9, 0.9]

    def test_flags_stay_when_state_is_cleared_and_are_not_saved(self) -> None:
        opt = Adam(three(), lr=0.1, wd=0.5)
        opt.set_flags(opt.param_lists[0], do_wd=False)
        give_grads(opt)
        opt.step()
        opt.clear_state()
        saved = opt.state_dict()
        assert saved["state"] == {}
        assert "do_wd" not in saved["param_groups"][0]
        for p in opt.param_lists[0]:
            p.grad = torch.zeros_like(p)
        before = [p.detach().clone() for p in opt.param_lists[0]]
        opt.step()
        assert all(torch.equal(p, b) for p, b in zip(opt.param_lists[0], before, strict=True))

    def test_unknown_flag_and_unknown_parameter(self) -> None:
        opt = SGD(three(), lr=0.1)
        with pytest.raises(UsageError, match=r"did you mean do_wd\?"):
            opt.set_flags(opt.param_lists[0], do_vd=False)
        with pytest.raises(UsageError, match=r"shape \(3,\) is not in this optimizer"):
            opt.set_flags([torch.ones(3)], do_wd=False)


class TestFreezing:
    @pytest.mark.parametrize(("n", "index"), [(0, 0), (1, 1), (-1, 2), (-3, 0), (3, 3)])
    def test_freeze_to(self, n: int, index: int) -> None:
        opt = SGD(one_each(), lr=0.1)
        opt.freeze_to(n)
        assert opt.frozen_idx == index
        assert [ps[0].requires_grad for ps in opt.param_lists] == [i >= index for i in range(3)]
        opt.unfreeze()
        assert all(ps[0].requires_grad for ps in opt.param_lists)

    def test_force_train(self) -> None:
        opt = SGD(one_each(), lr=0.1)
        norm = opt.param_lists[0][0]
        opt.set_flags([norm], force_train=True)
        opt.freeze()
        assert [ps[0].requires_grad for ps in opt.param_lists] == [True, False, True]

    def test_errors(self) -> None:
        with pytest.raises(UsageError, match="only one"):
            SGD(three(), lr=0.1).freeze()
        for n in (4, -4):
            with pytest.raises(UsageError, match="only 3 groups"):
                SGD(one_each(), lr=0.1).freeze_to(n)

    def test_a_frozen_parameter_with_a_gradient_is_not_moved(self) -> None:
        opt = SGD(one_each(), lr=0.1, wd=0.5)
        give_grads(opt)
        opt.freeze()
        opt.step()
        assert [ps[0][0].item() < 1 for ps in opt.param_lists] == [False, False, True]
        # one that the user froze, with a gradient of zeros left on it, is not decayed either
        p = opt.param_lists[2][0]
        before = p.detach().clone()
        p.requires_grad_(False)
        opt.zero_grad(set_to_none=False)
        opt.step()
        assert torch.equal(p, before)

    def test_a_plain_tensor_with_a_gradient_by_hand_is_stepped(self) -> None:
        t = torch.tensor([1.0])
        t.grad = torch.tensor([0.5])
        Optimizer([t], sgd_step, lr=1.0).step()
        assert t.item() == 0.5

    def test_unfrozen_in_mid_run_is_as_if_it_started_then(self) -> None:
        """Counts are per parameter: the late group takes Adam's steps 1, 2, 3, not 4, 5, 6."""
        opt = Adam(one_each(), lr=0.1, wd=0)
        alone = Adam([torch.nn.Parameter(torch.ones(1))], lr=0.1, wd=0)
        opt.freeze()
        draw = torch.Generator().manual_seed(0)
        for i in range(6):
            if i == 3:
                opt.unfreeze()
            for ps in opt.param_lists:
                ps[0].grad = torch.randn(ps[0].shape, generator=draw)
                if not ps[0].requires_grad:
                    ps[0].grad = None
            if i >= 3:
                alone.param_lists[0][0].grad = opt.param_lists[0][0].grad
                alone.step()
            opt.step()
        assert torch.equal(opt.param_lists[0][0], alone.param_lists[0][0])
        assert [opt.state[ps[0]]["step"] for ps in opt.param_lists] == [3, 3, 6]


class TestAllParams:
    def test_groups_and_gradients(self) -> None:
        opt = SGD(one_each(), lr=[1, 2, 3])
        opt.param_lists[2][0].grad = torch.ones(3)
        assert [(len(p), h["lr"]) for p, _, _, h in opt.all_params()] == [(1, 1), (2, 2), (3, 3)]
        assert [len(p) for p, *_ in opt.all_params(slice(1, None))] == [2, 3]
        assert [len(p) for p, *_ in opt.all_params(-1)] == [3]
        assert [len(p) for p, *_ in opt.all_params(with_grad=True)] == [3]

    def test_state_is_the_real_one(self) -> None:
        opt = Adam(three(), lr=0.1)
        give_grads(opt)
        opt.step()
        for p, group, state, _ in opt.all_params():
            assert state is opt.state[p]
            assert group is opt.param_groups[0]


def test_sparse_gradient_is_refused_before_anything_moves() -> None:
    dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    dense.grad = torch.ones(2)
    opt = SGD([("dense", dense), ("table", table.weight)], lr=0.1)
    with pytest.raises(UsageError, match="parameter table has a sparse gradient"):
        opt.step()
    assert torch.equal(dense.data, torch.ones(2))


def test_closure_runs_with_gradients_and_gives_its_loss() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    opt = SGD([w], lr=0.5)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert opt.step(closure).item() == 4.0
    assert w.item() == 0.0
