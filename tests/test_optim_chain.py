"""A chain is checked when the optimizer is built; the sentence names stepper, argument and mend."""

from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from treadle.errors import ChainError
from treadle.optim import (
    Adam,
    Optimizer,
    adam_step,
    average_grad,
    average_sqr_grad,
    momentum_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from treadle.optim.chain import read_chain
from treadle.optim.engine import Engine, run_chain


def a_param(*shape: int) -> nn.Parameter:
    p = nn.Parameter(torch.ones(shape or (3,)))
    p.grad = torch.ones_like(p)
    return p


def build(cbs: Any, **defaults: Any) -> Optimizer:
    return Optimizer([a_param()], cbs, **defaults)


def needs_count(p: Any, lr: float, count: int) -> None: ...


def gives_count(p: Any, lr: float) -> dict[str, int]:
    return {"count": 1}


def quick_lr(p: Any, lr: float = 0.5, **kwargs: Any) -> None:
    p.data.sub_(lr * p.grad)


class TestErrors:
    def test_missing_state_names_the_usual_giver(self) -> None:
        with pytest.raises(ChainError, match=r"momentum_step needs grad_avg.*put average_grad"):
            build([momentum_step], lr=0.1)

    def test_a_chain_error_is_a_type_error_and_a_value_error(self) -> None:
        for kind in (TypeError, ValueError):
            with pytest.raises(kind):
                build([momentum_step], lr=0.1)

    def test_wrong_order(self) -> None:
        with pytest.raises(ChainError, match="move average_grad before momentum_step"):
            build([momentum_step, average_grad], lr=0.1, mom=0.9)

    def test_wrong_order_of_the_users_own(self) -> None:
        with pytest.raises(ChainError, match="move gives_count before needs_count"):
            build([needs_count, gives_count], lr=0.1)

    def test_wrong_order_where_the_stat_has_a_number_as_default(self) -> None:
        cbs = [average_grad, average_sqr_grad, adam_step, step_stat]
        with pytest.raises(ChainError, match="move step_stat before adam_step"):
            build(cbs, lr=0.1, mom=0.9, sqr_mom=0.9, eps=1e-8)

    def test_missing_hyper(self) -> None:
        with pytest.raises(ChainError, match=r"weight_decay needs wd.*wd=\.\.\."):
            build([weight_decay, sgd_step], lr=0.1)

    def test_missing_lr(self) -> None:
        with pytest.raises(ChainError, match="sgd_step needs lr"):
            build([sgd_step])

    def test_hyper_missing_in_one_group(self) -> None:
        with pytest.raises(ChainError, match="sgd_step needs lr"):
            Optimizer([{"params": [a_param()], "lr": 1.0}, {"params": [a_param()]}], sgd_step)

    def test_unknown_hyper_names_the_nearest(self) -> None:
        with pytest.raises(ChainError, match=r"momm.*did you mean mom\?"):
            build([average_grad, momentum_step], lr=0.1, mom=0.9, momm=0.8)

    def test_unknown_hyper_in_a_group(self) -> None:
        groups = [{"params": [a_param()]}, {"params": [a_param()], "weight_decay": 0.1}]
        with pytest.raises(ChainError, match="group 1 was given weight_decay, but no stepper"):
            Optimizer(groups, [weight_decay, sgd_step], lr=0.1, wd=0.1)

    def test_state_with_the_name_of_a_hyper(self) -> None:
        with pytest.raises(ChainError, match="gives_count returns count as state"):
            build([gives_count, needs_count], lr=0.1, count=0)

    @pytest.mark.parametrize("cbs", [None, [sgd_step, None], "sgd_step", 3, {"a": sgd_step}])
    def test_no_callable(self, cbs: Any) -> None:
        with pytest.raises(ChainError, match="cannot be called"):
            build(cbs, lr=0.1)

    def test_a_class(self) -> None:
        with pytest.raises(ChainError, match="SGD is a class"):
            build([torch.optim.SGD], lr=0.1)

    @pytest.mark.parametrize("cbs", [[], [[], []]])
    def test_an_empty_chain(self, cbs: Any) -> None:
        with pytest.raises(ChainError, match="no stepper"):
            build(cbs)

    def test_no_place_for_the_parameter(self) -> None:
        with pytest.raises(ChainError, match="takes no parameter"):
            build([lambda: None])

    def test_arguments_by_position_only(self) -> None:
        def f(p: Any, lr: float, /) -> None: ...

        with pytest.raises(ChainError, match="takes lr by position only"):
            build([f], lr=0.1)

    def test_a_later_group_is_checked_and_refused_whole(self) -> None:
        opt = Optimizer([{"params": [a_param()], "lr": 1.0}], sgd_step)
        with pytest.raises(ChainError, match="sgd_step needs lr"):
            opt.add_param_group({"params": [a_param()]})
        assert len(opt.param_groups) == 1
        opt.add_param_group({"params": [a_param()], "lr": 0.5})
        assert [dict(h) for h in opt.hypers] == [{"lr": 1.0}, {"lr": 0.5}]


class TestDefaults:
    def test_keyword_before_declared_before_signature(self) -> None:
        def f(p: Any, lr: float = 0.1, mom: float = 0.2, **kwargs: Any) -> None: ...

        assert build(f).hypers[0] == {"lr": 0.1, "mom": 0.2}
        f.defaults = {"mom": 0.3}  # type: ignore[attr-defined]
        assert build(f).hypers[0] == {"lr": 0.1, "mom": 0.3}
        assert build(f, mom=0.4).hypers[0] == {"lr": 0.1, "mom": 0.4}

    def test_declared_defaults_live_through_a_partial(self) -> None:
        def f(p: Any, lr: float, mom: float, nesterov: bool = False) -> None: ...

        f.defaults = {"mom": 0.3, "lr": 1.0}  # type: ignore[attr-defined]
        assert build(partial(f, nesterov=True)).hypers[0] == {"mom": 0.3, "lr": 1.0}

    def test_a_number_in_one_signature_serves_the_others(self) -> None:
        opt = build([weight_decay, quick_lr], wd=0.0)
        assert opt.hypers[0] == {"wd": 0.0, "lr": 0.5}
        opt.step()

    def test_first_values_of_state_are_no_hypers(self) -> None:
        opt = Adam([a_param()], lr=0.1)
        assert set(opt.hypers[0]) == {"lr", "mom", "sqr_mom", "eps", "wd"}
        assert opt.hyper_names >= {"lr", "mom", "do_wd", "dampening"}
        assert opt.hyper_names.isdisjoint({"step", "grad_avg", "sqr_avg", "p", "kwargs"})

    def test_a_stepper_without_kwargs_gets_only_what_it_names(self) -> None:
        seen = []

        def f(p: Any, lr: float, count: int = 0) -> dict[str, int]:
            seen.append((lr, count))
            return {"count": count + 1, "other": 0}

        def g(p: Any, wd: float) -> None: ...

        opt = build([f, g], lr=0.1, wd=0.2)
        opt._engine = Engine("reference")  # others call it to record it and to compare
        seen.clear()
        opt.step()
        opt.step()
        assert seen == [(0.1, 0), (0.1, 1)]

    def test_a_stepper_with_kwargs_gets_all(self) -> None:
        seen: list[dict[str, Any]] = []

        def f(p: Any, **kwargs: Any) -> None:
            seen.append(kwargs)

        opt = build([step_stat, weight_decay, f], lr=0.1, wd=0.2)
        opt.set_flags(opt.param_lists[0], do_wd=False)
        opt._engine = Engine("reference")
        opt.step()
        assert seen[-1] == {"lr": 0.1, "wd": 0.2, "do_wd": False, "step": 1}

    def test_nested_lists_are_flattened(self) -> None:
        opt = build([[weight_decay], [[average_grad], (momentum_step,)]], lr=0.1, mom=0.9, wd=0.0)
        assert opt.steppers == [weight_decay, average_grad, momentum_step]

    def test_the_parameter_may_have_any_name(self) -> None:
        def f(weight: Any, lr: float) -> None:
            weight.data.sub_(lr)

        opt = build(f, lr=0.25)
        opt.step()
        assert torch.equal(opt.param_lists[0][0].data, torch.full((3,), 0.75))


class TestRehearsal:
    def test_nothing_real_is_touched(self) -> None:
        p = a_param(4, 5)
        before, grad = p.detach().clone(), p.grad
        opt = Adam([p], lr=0.1)
        assert torch.equal(p, before)
        assert p.grad is grad
        assert torch.equal(grad, torch.ones(4, 5))
        assert opt.state_dict()["state"] == {}

    def test_random_streams_stay_where_they_are(self) -> None:
        def noisy(p: Any, lr: float, **kwargs: Any) -> None:
            p.data += torch.randn_like(p.data) + np.random.rand() + random.random()

        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        expected = torch.rand(3), np.random.rand(3), random.random()
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        build(noisy, lr=0.1)
        assert torch.equal(torch.rand(3), expected[0])
        assert np.array_equal(np.random.rand(3), expected[1])
        assert random.random() == expected[2]

    def test_the_stand_in_has_ndim_and_dtype_and_is_small(self) -> None:
        seen = []

        def f(p: Tensor, lr: float) -> None:
            assert p.grad is not None
            seen.append((tuple(p.shape), p.dtype, p.device.type, p.grad.dtype))

        params = [
            nn.Parameter(torch.zeros(7, 1, 9, dtype=torch.float64)),
            nn.Parameter(torch.zeros(())),
            nn.Parameter(torch.zeros(0, 4, dtype=torch.bfloat16)),
            nn.Parameter(torch.zeros(8, 1, 2, dtype=torch.float64)),
        ]
        Optimizer(params, f, lr=0.1)
        assert seen == [
            ((2, 1, 2), torch.float64, "cpu", torch.float64),
            ((), torch.float32, "cpu", torch.float32),
            ((0, 2), torch.bfloat16, "cpu", torch.bfloat16),
        ]

    def test_a_stepper_that_raises_for_its_own_reasons_is_let_be(self) -> None:
        def large_only(p: Any, lr: float) -> dict[str, Any]:
            if p.numel() < 3:
                raise RuntimeError("too small")
            return {"count": 2}

        opt = build([large_only, needs_count], lr=0.1)
        opt.step()
        with pytest.raises(ChainError, match="needs count"):
            build([needs_count, large_only], lr=0.1)

    def test_state_for_matrices_only_is_missed_for_vectors(self) -> None:
        def for_matrices(p: Any, lr: float) -> dict[str, Any] | None:
            return {"count": 1} if p.ndim == 2 else None

        Optimizer([a_param(2, 3)], [for_matrices, needs_count], lr=0.1)
        with pytest.raises(ChainError, match="needs_count needs count"):
            Optimizer([a_param(2, 3), a_param(3)], [for_matrices, needs_count], lr=0.1)

    def test_a_warning_of_a_stepper_is_heard_at_the_step_only(self) -> None:
        def f(p: Any, lr: float) -> None:
            warnings.warn("careful", stacklevel=1)

        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            opt = build(f, lr=0.1)
            assert heard == []
            opt.step()
            assert [str(w.message) for w in heard] == ["careful"]


def test_an_error_in_a_stepper_says_where() -> None:
    def wrong(p: Any, lr: float) -> None:
        if p.numel() > 2:
            raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own") as caught:
        build(wrong, lr=0.1).step()
    assert caught.value.__notes__ == ["in stepper wrong, on a parameter of (3,)"]


def test_reference_engine_puts_state_over_flags_over_hypers() -> None:
    seen: list[dict[str, Any]] = []

    def f(p: Any, **kwargs: Any) -> dict[str, int]:
        seen.append(kwargs)
        return {"c": 4}

    p, q = a_param(), a_param()
    state: dict[Tensor, dict[str, Any]] = {p: {"c": 3}}
    hypers = {"a": 1, "b": 1, "c": 1}
    run_chain(read_chain([f, f]), [p, q], hypers, state, {p: {"b": 2, "c": 2}})
    assert seen == [
        {"a": 1, "b": 2, "c": 3},
        {"a": 1, "b": 2, "c": 4},
        {"a": 1, "b": 1, "c": 1},
        {"a": 1, "b": 1, "c": 4},
    ]
    assert state == {p: {"c": 4}, q: {"c": 4}}
