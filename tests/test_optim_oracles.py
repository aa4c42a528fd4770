"""The steppers against torch.optim, and against the papers' formulas in float64 numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from treadle.optim import (
    SGD,
    Adam,
    AdamW,
    Lamb,
    Larc,
    Lookahead,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    debias,
    ranger,
    sgd_step,
)

STEPS = 50
# Both sides do the same few operations in another order. One rounding is 1e-16 (float64) or 6e-8
# (float32); 50 steps through a batch norm and divisions by small roots can let it grow a
# thousandfold.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
# Against numpy the gradients are shared, so nothing feeds back and rounding only adds up.
FORMULA_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
Recipe = Callable[..., torch.optim.Optimizer]


def make_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    # No bias before the batch norm: its gradient is rounding noise, which Adam blows up to full
    # steps, so that no two implementations agree on it.
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return net.to(dtype)


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 6, generator=draw, dtype=torch.float64).to(dtype),
            torch.randn(16, 3, generator=draw, dtype=torch.float64).to(dtype),
        )
        for _ in range(STEPS)
    ]


def train(recipe: Recipe, dtype: torch.dtype) -> list[Tensor]:
    net = make_net(dtype)
    opt = recipe(net.parameters())
    for x, y in batches(dtype):
        opt.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        opt.step()
    return [p.detach() for p in net.parameters()]


def assert_same(mine: list[Tensor], theirs: list[Tensor], tol: float) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


TORCH_PAIRS: dict[str, tuple[Recipe, Recipe]] = {
    "sgd": (partial(SGD, lr=0.1), partial(torch.optim.SGD, lr=0.1)),
    "sgd momentum": (
        partial(SGD, lr=0.05, mom=0.9),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    ),
    "sgd momentum l2": (
        partial(SGD, lr=0.05, mom=0.9, wd=0.1, decouple_wd=False),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    ),
    "rmsprop": (
        partial(RMSProp, lr=0.01, sqr_mom=0.97, eps=1e-3),
        partial(torch.optim.RMSprop, lr=0.01, alpha=0.97, eps=1e-3),
    ),
    "adam": (
        partial(Adam, lr=0.01, sqr_mom=0.98, eps=1e-6, wd=0),
        partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.98), eps=1e-6),
    ),
    "adam l2": (
        partial(Adam, lr=0.01, wd=0.1, decouple_wd=False),
        partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.1),
    ),
    "adam decoupled": (
        partial(Adam, lr=0.01, wd=0.1),
        partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.1),
    ),
    "adamw": (partial(AdamW, lr=0.01), partial(torch.optim.AdamW, lr=0.01)),
    "adamw defaults": (AdamW, torch.optim.AdamW),
    # torch adds eps before it corrects the bias of v, so the two agree at eps = 0.
    "radam": (
        partial(RAdam, lr=0.01, sqr_mom=0.98, eps=0),
        partial(torch.optim.RAdam, lr=0.01, betas=(0.9, 0.98), eps=0),
    ),
    "radam decoupled": (
        partial(RAdam, lr=0.01, sqr_mom=0.98, eps=0, wd=0.1),
        partial(
            torch.optim.RAdam,
            lr=0.01,
            betas=(0.9, 0.98),
            eps=0,
            weight_decay=0.1,
            decoupled_weight_decay=True,
        ),
    ),
}


@DTYPES
@pytest.mark.parametrize("pair", TORCH_PAIRS)
def test_fifty_steps_end_where_torch_ends(pair: str, dtype: torch.dtype) -> None:
    mine, theirs = TORCH_PAIRS[pair]
    assert_same(train(mine, dtype), train(theirs, dtype), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("pair", ["sgd", "sgd momentum"])
def test_sgd_is_torchs_to_the_bit(pair: str, dtype: torch.dtype) -> None:
    mine, theirs = TORCH_PAIRS[pair]
    assert_same(train(mine, dtype), train(theirs, dtype), 0)


# ---- the papers, in numpy float64. A rule gets a dict to keep its averages in.

Array = np.ndarray[Any, np.dtype[np.float64]]
Rule = Callable[[dict[str, Any], Array, Array], Array]


def moments(s: dict[str, Any], g: Array, b1: float, b2: float) -> tuple[int, Array, Array]:
    s["t"] = s.get("t", 0) + 1
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    return s["t"], s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])


def rmsprop_averaged(s: dict[str, Any], p: Array, g: Array) -> Array:
    s["m"] = 0.9 * s.get("m", 0) + g
    s["v"] = 0.97 * s.get("v", 0) + 0.03 * g**2
    return p - 0.01 * s["m"] / (np.sqrt(s["v"]) + 1e-3)


def radam(s: dict[str, Any], p: Array, g: Array, beta: float = 0, lr: float = 0.01) -> Array:
    t, m, v = moments(s, g, 0.9, 0.98)
    rho_inf = 2 / (1 - 0.98) - 1
    rho = rho_inf - 2 * t * 0.98**t / (1 - 0.98**t)
    if rho <= 5:
        return p - lr * m
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    denom = np.sqrt(v) + 1e-3
    if beta:
        denom = np.log1p(np.exp(beta * denom)) / beta
    return p - lr * r * m / denom


def qhadam(s: dict[str, Any], p: Array, g: Array) -> Array:
    _, m, v = moments(s, g, 0.9, 0.98)
    return p - 0.01 * (0.3 * g + 0.7 * m) / (np.sqrt(0.1 * g**2 + 0.9 * v) + 1e-3)


def larc(s: dict[str, Any], p: Array, g: Array, clip: bool, mom: float = 0.9) -> Array:
    p = p * (1 - 0.1 * 0.01)
    s["m"] = mom * s.get("m", 0) + g
    p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
    if p_norm == 0 or g_norm == 0:
        return p - 0.1 * s["m"]
    lr = 0.1 * 0.02 * p_norm / (g_norm + 0.01 * p_norm + 1e-3)
    return p - (min(lr, 0.1) if clip else lr) * s["m"]


def lamb(s: dict[str, Any], p: Array, g: Array) -> Array:
    _, m, v = moments(s, g, 0.9, 0.98)
    u = m / (np.sqrt(v) + 1e-3)
    p_norm, u_norm = np.sqrt((p**2).sum()), np.sqrt((u**2).sum())
    q = min(p_norm / u_norm, 10) if p_norm > 0 and u_norm > 0 else 1
    return p - 0.01 * q * u


def looking_ahead(rule: Rule, k: int, alpha: float) -> Rule:
    def ahead(s: dict[str, Any], p: Array, g: Array) -> Array:
        s.setdefault("slow", p)
        p = rule(s, p, g)
        s["n"] = s.get("n", 0) + 1
        if s["n"] % k == 0:
            p = s["slow"] = s["slow"] + alpha * (p - s["slow"])
        return p

    return ahead


def ranger_rule(s: dict[str, Any], p: Array, g: Array) -> Array:
    p = p * (1 - 0.01 * 0.05)
    return radam(s, p, g)


ADAM_LIKE: dict[str, Any] = {"lr": 0.01, "mom": 0.9, "sqr_mom": 0.98, "eps": 1e-3}
LARC_LIKE: dict[str, Any] = {"lr": 0.1, "wd": 0.01, "eps": 1e-3}
FORMULAS: dict[str, tuple[Recipe, Rule]] = {
    "rmsprop averaged": (
        partial(RMSProp, lr=0.01, mom=0.9, sqr_mom=0.97, eps=1e-3),
        rmsprop_averaged,
    ),
    "radam": (partial(RAdam, **ADAM_LIKE), radam),
    "radam softplus": (partial(RAdam, beta=20, **ADAM_LIKE), partial(radam, beta=20)),
    "qhadam": (partial(QHAdam, nu_1=0.7, nu_2=0.9, **ADAM_LIKE), qhadam),
    "larc": (partial(Larc, **LARC_LIKE), partial(larc, clip=True)),
    "lars": (partial(Larc, clip=False, **LARC_LIKE), partial(larc, clip=False)),
    "larc plain": (partial(Larc, mom=0, **LARC_LIKE), partial(larc, clip=True, mom=0)),
    "lamb": (partial(Lamb, **ADAM_LIKE), lamb),
    "lookahead sgd": (
        lambda params: Lookahead(SGD(params, lr=0.1), k=4, alpha=0.3),
        looking_ahead(lambda s, p, g: p - 0.1 * g, 4, 0.3),
    ),
    "ranger": (
        partial(ranger, **ADAM_LIKE, wd=0.05, k=5),
        looking_ahead(ranger_rule, 5, 0.5),
    ),
}


@DTYPES
@pytest.mark.parametrize("name", FORMULAS)
def test_fifty_steps_follow_the_formula(name: str, dtype: torch.dtype) -> None:
    recipe, rule = FORMULAS[name]
    net = make_net(dtype)
    params = list(net.parameters())
    by_hand = [p.detach().double().numpy().copy() for p in params]
    kept: list[dict[str, Any]] = [{} for _ in params]
    opt = recipe(params)
    for x, y in batches(dtype):
        opt.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        for i, p in enumerate(params):
            assert p.grad is not None
            by_hand[i] = rule(kept[i], by_hand[i], p.grad.double().numpy().copy())
        opt.step()
    for p, expected in zip(params, by_hand, strict=True):
        tol = FORMULA_TOLERANCE[dtype]
        np.testing.assert_allclose(p.detach().double().numpy(), expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("recipe", [Larc, partial(Larc, clip=False), Lamb])
def test_trust_ratios_do_not_pin_what_starts_at_zero(recipe: Recipe) -> None:
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.tensor([1.0, -1.0, 2.0])
    recipe([bias], lr=0.1).step()
    assert (bias * bias.grad < 0).all()


@pytest.mark.parametrize("recipe", [Larc, partial(Larc, clip=False), Lamb])
def test_trust_ratios_survive_a_gradient_of_zero(recipe: Recipe) -> None:
    w = nn.Parameter(torch.ones(3))
    opt = recipe([w], lr=0.1)
    for g in (0.0, 1.0, 0.0):
        w.grad = torch.full((3,), g)
        opt.step()
    assert w.isfinite().all()


def test_lambs_trust_ratio_is_at_most_ten() -> None:
    w = nn.Parameter(torch.full((3,), 1000.0))
    w.grad = torch.ones(3)
    Lamb([w], lr=0.1).step()
    # the first step of Adam is g/|g| = 1 in each entry (but for eps), so |p|/|u| is 1000
    torch.testing.assert_close(w.data, torch.full((3,), 999.0), rtol=1e-7, atol=0)


def test_debias_has_no_division_by_zero() -> None:
    assert debias(0, 1, 3) == 1
    assert debias(1, 0.5, 3) == 1.5
    # the weights of three terms, added by hand
    assert debias(0.9, 0.1, 3) == pytest.approx(0.1 * (1 + 0.9 + 0.81), rel=1e-15)


def test_wd_flag_spares_a_parameter() -> None:
    for decouple_wd in (True, False):
        w, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        opt = SGD([w, b], lr=0.1, wd=0.5, decouple_wd=decouple_wd)
        opt.set_flags([b], do_wd=False)
        w.grad, b.grad = torch.zeros(2), torch.zeros(2)
        opt.step()
        torch.testing.assert_close(w.data, torch.full((2,), 0.95))
        assert torch.equal(b.data, torch.ones(2))


# ---- steppers as users write them, in the chapter's spelling


def sgd_cb(p: Any, lr: float, **kwargs: Any) -> None:
    p.data.add_(-lr, p.grad.data)


def average_grad(p: Any, mom: float, grad_avg: Any = None, **kwargs: Any) -> dict[str, Any]:
    if grad_avg is None:
        grad_avg = torch.zeros_like(p.grad.data)
    return {"grad_avg": grad_avg * mom + p.grad.data}


def momentum_step(p: Any, lr: float, grad_avg: Any, **kwargs: Any) -> None:
    p.data.add_(-lr, grad_avg)


def average_sqr_grad(p: Any, sqr_mom: float, sqr_avg: Any = None, **kwargs: Any) -> dict[str, Any]:
    if sqr_avg is None:
        sqr_avg = torch.zeros_like(p.grad.data)
    return {"sqr_avg": sqr_avg * sqr_mom + p.grad.data**2}


def rms_prop_step(p: Any, lr: float, sqr_avg: Any, eps: float, **kwargs: Any) -> None:
    denom = sqr_avg.sqrt().add_(eps)
    p.data.addcdiv_(-lr, p.grad, denom)


class TestTheChaptersSteppers:
    """The old spelling too: torch's note on it, once a process, would be an error here."""

    def test_sgd(self) -> None:
        mine = train(lambda params: Optimizer(params, sgd_cb, lr=0.1), torch.float64)
        assert_same(mine, train(partial(torch.optim.SGD, lr=0.1), torch.float64), 0)

    def test_momentum_as_opt_func(self) -> None:
        opt_func = partial(Optimizer, cbs=[average_grad, momentum_step], mom=0.9)
        mine = train(lambda params: opt_func(params, lr=0.03), torch.float64)
        theirs = train(partial(torch.optim.SGD, lr=0.03, momentum=0.9), torch.float64)
        assert_same(mine, theirs, TOLERANCE[torch.float64])

    def test_rms_prop(self) -> None:
        opt_func = partial(Optimizer, cbs=[average_sqr_grad, rms_prop_step], sqr_mom=0.99, eps=1e-7)
        mine = train(lambda params: opt_func(params, lr=0.003), torch.float64)
        # v here lacks the factor 1 - sqr_mom, so the denominator is ten times torch's
        theirs = train(partial(torch.optim.RMSprop, lr=0.0003, alpha=0.99, eps=1e-8), torch.float64)
        assert_same(mine, theirs, TOLERANCE[torch.float64])

    def test_lambda(self) -> None:
        opt = partial(Optimizer, cbs=lambda p, lr: p.data.sub_(lr * p.grad), lr=0.1)
        theirs = train(partial(torch.optim.SGD, lr=0.1), torch.float64)
        assert_same(train(opt, torch.float64), theirs, TOLERANCE[torch.float64])

    def test_callable_object_and_method(self) -> None:
        class Rule:
            def __call__(self, p: Any, lr: float) -> None:
                p.data.add_(p.grad, alpha=-lr)

            def method(self, p: Any, lr: float) -> None:
                self(p, lr)

        plain = train(partial(Optimizer, cbs=sgd_step, lr=0.1), torch.float64)
        for cbs in (Rule(), Rule().method):
            assert_same(train(partial(Optimizer, cbs=cbs, lr=0.1), torch.float64), plain, 0)
