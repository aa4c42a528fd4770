"""The recipes beyond the chapter's, against torch.optim and the papers' formulas in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    SOAP,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Adan,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    Rule,
    ScheduleFreeAdamW,
    adadelta_step,
    adamw_steppers,
    adan_averages,
    adan_step,
    average_grad,
    lion_step,
    muon_step,
    nadam_step,
    newton_schulz,
    param_rules,
    schedule_free_step,
    soap_basis,
    soap_step,
    split_matrices,
    weight_decay,
)

# Matrix steppers are no elementwise programs, and the engine says so.
pytestmark = pytest.mark.filterwarnings("ignore:stepper (muon|soap).*one by one:UserWarning")

STEPS = 30
# Gradients are shared by both sides, so rounding adds up and does not feed back.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
Recipe = Callable[..., torch.optim.Optimizer]
SHAPES = [(5, 3), (3, 6), (4,), ()]


def params(dtype: torch.dtype, shapes: list[tuple[int, ...]] | None = None) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype))
        for shape in (SHAPES if shapes is None else shapes)
    ]


def gradients(t: int, like: list[nn.Parameter]) -> list[Tensor]:
    """Those of step `t`: a signal that all steps share, and noise."""
    same, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(100 + t)
    grads = []
    for p in like:
        signal = torch.randn(p.shape, generator=same, dtype=torch.float64)
        noise = torch.randn(p.shape, generator=own, dtype=torch.float64)
        grads.append((signal + noise).to(p.dtype))
    return grads


def run(opt: torch.optim.Optimizer, steps: int = STEPS, first: int = 0) -> list[Tensor]:
    ps = [p for group in opt.param_groups for p in group["params"]]
    for t in range(first, first + steps):
        for p, g in zip(ps, gradients(t, ps), strict=True):
            p.grad = g
        opt.step()
    return [p.detach() for p in ps]


TORCH_PAIRS: dict[str, tuple[Recipe, Recipe]] = {
    "nesterov": (
        partial(SGD, lr=0.05, mom=0.9, nesterov=True),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "nesterov l2": (
        partial(SGD, lr=0.05, mom=0.9, wd=0.1, decouple_wd=False, nesterov=True),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "nadam": (partial(NAdam, lr=0.01), partial(torch.optim.NAdam, lr=0.01)),
    "nadam decoupled": (
        partial(NAdam, lr=0.01, mom=0.8, sqr_mom=0.98, eps=1e-4, mom_decay=0.1, wd=0.1),
        partial(
            torch.optim.NAdam,
            lr=0.01,
            betas=(0.8, 0.98),
            eps=1e-4,
            momentum_decay=0.1,
            weight_decay=0.1,
            decoupled_weight_decay=True,
        ),
    ),
    "nadam l2": (
        partial(NAdam, lr=0.01, wd=0.1, decouple_wd=False),
        partial(torch.optim.NAdam, lr=0.01, weight_decay=0.1),
    ),
    "adagrad": (partial(Adagrad, lr=0.1), partial(torch.optim.Adagrad, lr=0.1)),
    "adagrad l2": (
        partial(Adagrad, lr=0.1, eps=1e-3, wd=0.1, decouple_wd=False),
        partial(torch.optim.Adagrad, lr=0.1, eps=1e-3, weight_decay=0.1),
    ),
    "adadelta": (Adadelta, torch.optim.Adadelta),
    "adadelta l2": (
        partial(Adadelta, lr=0.5, sqr_mom=0.95, eps=1e-3, wd=0.1, decouple_wd=False),
        partial(torch.optim.Adadelta, lr=0.5, rho=0.95, eps=1e-3, weight_decay=0.1),
    ),
}


@DTYPES
@pytest.mark.parametrize("pair", TORCH_PAIRS)
def test_it_ends_where_torch_ends(pair: str, dtype: torch.dtype) -> None:
    mine, theirs = TORCH_PAIRS[pair]
    # torch keeps NAdam's product of momenta in float32, whatever the parameters are
    tol = max(TOLERANCE[dtype], 1e-7 if pair.startswith("nadam") else 0)
    for a, b in zip(run(mine(params(dtype))), run(theirs(params(dtype))), strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_nesterov_is_torchs_to_the_bit() -> None:
    mine, theirs = TORCH_PAIRS["nesterov"]
    ends = run(mine(params(torch.float32))), run(theirs(params(torch.float32)))
    assert all(map(torch.equal, *ends))


# ---- the papers, in numpy float64. A rule gets a dict to keep its averages in.

Array = np.ndarray[Any, np.dtype[np.float64]]
Formula = Callable[[dict[str, Any], Array, Array], Array]


def lion(s: dict[str, Any], p: Array, g: Array) -> Array:
    m = s.get("m", 0)
    s["m"] = 0.95 * m + 0.05 * g
    return p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)


def nadam(s: dict[str, Any], p: Array, g: Array) -> Array:
    s["t"] = t = s.get("t", 0) + 1
    mus = [0.8 * (1 - 0.5 * 0.96 ** (i * 0.1)) for i in range(1, t + 2)]
    s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
    s["v"] = 0.98 * s.get("v", 0) + 0.02 * g**2
    m = mus[-1] * s["m"] / (1 - np.prod(mus)) + (1 - mus[-2]) * g / (1 - np.prod(mus[:-1]))
    return p - 0.01 * m / (np.sqrt(s["v"] / (1 - 0.98**t)) + 1e-3)


def adan(s: dict[str, Any], p: Array, g: Array) -> Array:
    """Algorithm 1 of the paper, whose β are 0.02, 0.08 and 0.01, with debiased averages."""
    b1, b2, b3 = 0.02, 0.08, 0.01
    diff = g - s.get("g", g)
    s["t"], s["g"] = s.get("t", 0) + 1, g
    s["m"] = (1 - b1) * s.get("m", 0) + b1 * g
    s["d"] = (1 - b2) * s.get("d", 0) + b2 * diff
    s["n"] = (1 - b3) * s.get("n", 0) + b3 * (g + (1 - b2) * diff) ** 2
    m, d, n = (s[k] / (1 - (1 - b) ** s["t"]) for k, b in (("m", b1), ("d", b2), ("n", b3)))
    return (p - 0.01 * (m + (1 - b2) * d) / (np.sqrt(n) + 1e-3)) / (1 + 0.01 * 0.1)


def schedule_free(s: dict[str, Any], y: Array, g: Array) -> Array:
    """Algorithm 1 of the paper, on its three sequences x, y, z."""
    lr, b1, b2, wd = 0.05, 0.8, 0.98, 0.1
    s["t"] = s.get("t", 0) + 1
    x, z = s.get("x", y), s.get("z", y)
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    z = z - lr * (g / (np.sqrt(s["v"] / (1 - b2 ** s["t"])) + 1e-3) + wd * y)
    c = 1 / s["t"]  # lr²/Σlr² at a flat lr
    s["x"], s["z"] = (1 - c) * x + c * z, z
    return (1 - b1) * s["z"] + b1 * s["x"]


def polynomial(x: Array) -> Array:
    """Newton-Schulz on the singular values themselves: five times 3.4445s - 4.775s³ + 2.0315s⁵."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vt


def muon(s: dict[str, Any], p: Array, g: Array, match_rms: bool) -> Array:
    s["m"] = 0.95 * s.get("m", 0) + g
    rows, cols = p.shape[0], p.size // p.shape[0]
    scale = 0.2 * math.sqrt(max(rows, cols)) if match_rms else math.sqrt(max(1, rows / cols))
    turned = polynomial((g + 0.95 * s["m"]).reshape(rows, cols)).reshape(p.shape)
    return p * (1 - 0.02 * 0.1) - 0.02 * scale * turned


def soap(s: dict[str, Any], p: Array, g: Array) -> Array:
    """Algorithm 3 of the paper; the first gradient is for the bases only."""
    shape, lr, b1, b2, every = p.shape, 0.01, 0.9, 0.8, 3
    p, g = p.reshape(shape[0], -1) * (1 - lr * 0.1), g.reshape(shape[0], -1)
    if t := s.get("t", 0):
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * (s["QL"].T @ g @ s["QR"]) ** 2
        m = s["QL"].T @ s["m"] @ s["QR"] / (1 - b1**t)
        n = m / (np.sqrt(s["v"] / (1 - b2**t)) + 1e-3)
        p = p - lr * s["QL"] @ n @ s["QR"].T
    s["t"] = t + 1
    for side, square in (("L", g @ g.T), ("R", g.T @ g)):
        s[side] = b2 * s.get(side, 0) + (1 - b2) * square
        if t == 0:
            s["Q" + side] = np.linalg.eigh(s[side])[1]
        elif t % every == 0:
            s["Q" + side] = np.linalg.qr(s[side] @ s["Q" + side])[0]
    return p.reshape(shape)


def muon_in(dtype: torch.dtype, match_rms: bool) -> Recipe:
    step = partial(muon_step, match_rms=match_rms, ns_dtype=dtype)
    cbs = [weight_decay, average_grad, step]
    return partial(Optimizer, cbs=cbs, lr=0.02, mom=0.95, wd=0.1)


MATRICES = [(5, 3), (3, 6), (4, 4), (6, 2, 1, 2)]
SOAP_HYPERS: dict[str, Any] = {"lr": 0.01, "mom": 0.9, "sqr_mom": 0.8, "eps": 1e-3, "wd": 0.1}
FORMULAS: dict[str, tuple[Recipe, Formula, list[tuple[int, ...]]]] = {
    "lion": (partial(Lion, lr=0.01, avg_mom=0.95, wd=0.1), lion, SHAPES),
    "nadam": (
        partial(NAdam, lr=0.01, mom=0.8, sqr_mom=0.98, eps=1e-3, mom_decay=0.1),
        nadam,
        SHAPES,
    ),
    "adan": (partial(Adan, lr=0.01, eps=1e-3, wd=0.1), adan, SHAPES),
    "schedule-free": (
        partial(ScheduleFreeAdamW, lr=0.05, mom=0.8, sqr_mom=0.98, eps=1e-3, wd=0.1),
        schedule_free,
        SHAPES,
    ),
    "muon": (muon_in(torch.float64, True), partial(muon, match_rms=True), MATRICES),
    "muon of the post": (muon_in(torch.float64, False), partial(muon, match_rms=False), MATRICES),
    # Only square ones: an eigenvalue of 0 that is there twice has no eigenvectors of its own.
    "soap": (partial(SOAP, every=3, **SOAP_HYPERS), soap, [(4, 4), (3, 3), (6, 2, 1, 3)]),
}


# The matrix ones only in float64: they lose digits to cancellation, or to close eigenvalues.
ONLY_F64 = ("soap", "muon", "muon of the post")
CASES = [(n, d) for n in FORMULAS for d in TOLERANCE if n not in ONLY_F64 or d is torch.float64]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_it_follows_the_formula(name: str, dtype: torch.dtype) -> None:
    recipe, formula, shapes = FORMULAS[name]
    ps = params(dtype, shapes)
    by_hand = [p.detach().double().numpy().copy() for p in ps]
    kept: list[dict[str, Any]] = [{} for _ in ps]
    opt = recipe(ps)
    for t in range(STEPS):
        for i, (p, g) in enumerate(zip(ps, gradients(t, ps), strict=True)):
            p.grad = g
            by_hand[i] = formula(kept[i], by_hand[i], g.double().numpy())
        opt.step()
    for p, expected in zip(ps, by_hand, strict=True):
        tol = 1e-9 if name in ONLY_F64 else TOLERANCE[dtype]
        np.testing.assert_allclose(p.detach().double().numpy(), expected, rtol=tol, atol=tol)


class TestMuon:
    @pytest.mark.parametrize("match_rms", [True, False])
    def test_it_ends_where_torchs_ends(self, match_rms: bool) -> None:
        """torch rounds to bfloat16 at other places, so each step agrees to a few of its units."""
        shapes = [(5, 3), (3, 6), (4, 4)]
        mine = run(Muon(params(torch.float32, shapes), lr=0.02, match_rms=match_rms))
        adjust = "match_rms_adamw" if match_rms else "original"
        theirs = run(torch.optim.Muon(params(torch.float32, shapes), 0.02, adjust_lr_fn=adjust))
        for a, b, start in zip(mine, theirs, params(torch.float32, shapes), strict=True):
            assert (a - b).norm() < 0.02 * (b - start).norm()

    def test_vectors_are_adamws(self) -> None:
        mine = run(Muon(params(torch.float64), lr=0.01, wd=0.2))
        adamw = torch.optim.AdamW(params(torch.float64), 0.01, (0.9, 0.95), weight_decay=0.2)
        theirs = run(adamw)
        for i in (2, 3):
            torch.testing.assert_close(mine[i], theirs[i], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(mine[0], theirs[0])

    def test_one_lr_one_state_one_schedule(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        opt = Muon(model.named_parameters(), lr=0.1)
        assert [group["name"] for group in opt.param_groups] == ["matrices", "others"]
        assert opt.param_groups[0]["param_names"] == ["0.weight", "1.weight"]
        assert [hypers["mom"] for hypers in opt.hypers] == [0.95, 0.9]
        opt.set_hyper("lr", slice(0.3))
        assert [hypers["lr"] for hypers in opt.hypers] == [0.3, 0.3]
        with pytest.raises(UsageError, match="only one"):
            opt.freeze()
        torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 0.5)
        assert [hypers["lr"] for hypers in opt.hypers] == [0.15, 0.15]
        run(opt, 2)
        assert {frozenset(stats) for stats in opt.state.values()} == {
            frozenset({"grad_avg"}),
            frozenset({"grad_avg", "sqr_avg", "step"}),
        }

    def test_layer_groups_stay_what_they_were(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        opt = Muon([list(layer.parameters()) for layer in model], lr=slice(0.01, 0.1))
        assert [hypers["lr"] for hypers in opt.hypers] == [0.01, 0.01, 0.1, 0.1]
        opt.freeze()
        assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
        assert repr(opt).count("frozen") == 2

    def test_a_rule_keeps_an_embedding_out(self) -> None:
        model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        rules = Rule(nn.Embedding, cbs=adamw_steppers), Rule(name="2.*", cbs=adamw_steppers)
        opt = Muon(param_rules(model, *rules), lr=0.01)
        run(opt, 2)
        by_muon = [p for p in model.parameters() if "sqr_avg" not in opt.state[p]]
        assert by_muon == [model[1].weight]

    def test_newton_schulz_takes_a_stack(self) -> None:
        stack = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
        together = newton_schulz(stack, torch.float64)
        alone = torch.stack([newton_schulz(x, torch.float64) for x in stack])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
        assert newton_schulz(torch.zeros(2, 2)).isfinite().all()


class TestSoap:
    def test_a_long_side_is_not_turned(self) -> None:
        opt = SOAP(params(torch.float64, [(5, 3), (4,)]), lr=0.01, max_dim=4)
        matrix, vector = run(opt)
        stats = opt.state[opt.param_lists[0][0]]
        assert "right" in stats
        assert "left" not in stats
        assert matrix.isfinite().all()
        assert vector.isfinite().all()

    def test_without_bases_it_is_adam_from_the_second_step_on(self) -> None:
        ps, qs = params(torch.float64, [(5, 3)]), params(torch.float64, [(5, 3)])
        soap = SOAP(ps, lr=0.01, mom=0.9, sqr_mom=0.98, eps=1e-6, wd=0, max_dim=0)
        adam = Adam(qs, lr=0.01, mom=0.9, sqr_mom=0.98, eps=1e-6, wd=0)
        run(soap)
        run(adam, STEPS - 1, first=1)
        torch.testing.assert_close(ps[0], qs[0], rtol=1e-12, atol=1e-12)

    def test_bfloat16_weights(self) -> None:
        (p,) = run(SOAP(params(torch.bfloat16, [(5, 3)]), lr=0.01))
        assert p.dtype == torch.bfloat16
        assert p.isfinite().all()


class TestScheduleFree:
    def test_eval_is_the_papers_x_and_train_is_bit_equal(self) -> None:
        ps, kept = params(torch.float64), [dict[str, Any]() for _ in SHAPES]
        opt = ScheduleFreeAdamW(ps, lr=0.05, mom=0.8, sqr_mom=0.98, eps=1e-3, wd=0.1)
        y = [p.detach().numpy().copy() for p in ps]
        for t in range(STEPS):
            for i, g in enumerate(gradients(t, ps)):
                y[i] = schedule_free(kept[i], y[i], g.numpy())
        trained = [p.clone() for p in run(opt)]
        for _ in range(2):  # a second eval() changes nothing
            opt.eval()
        for p, s in zip(ps, kept, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), s["x"], rtol=1e-12, atol=1e-12)
        with pytest.raises(UsageError, match=r"call opt\.train\(\)"):
            run(opt, 1)
        saved = opt.state_dict()
        opt.train()
        opt.train()
        assert all(map(torch.equal, ps, trained))

        again = ScheduleFreeAdamW(params(torch.float64), lr=0.05)
        again.load_state_dict(saved)
        again.train()
        assert all(map(torch.equal, again.param_lists[0], trained))
        assert again.state_dict()["state"].keys() == {0, 1, 2, 3}

    def test_a_moving_lr_weighs_the_average(self) -> None:
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        opt = ScheduleFreeAdamW([p], lr=0.0, mom=0.5, sqr_mom=0.0, eps=0.0)
        for lr in (0.0, 1.0, 2.0):  # sign(g) = 1: z goes 0, -1, -3 with weights 0, 1, 4
            opt.set_hyper("lr", lr)
            p.grad = torch.ones_like(p)
            opt.step()
        assert opt.state[p]["z"].item() == -3
        opt.eval()
        assert p.item() == pytest.approx(-(1 * 1 + 4 * 3) / 5, rel=1e-15)

    def test_a_new_one_can_be_evaluated(self) -> None:
        p = nn.Parameter(torch.ones(2))
        opt = ScheduleFreeAdamW([p], lr=0.1)
        opt.eval()
        p.grad = torch.ones(2)
        opt.step()
        opt.set_hyper("mom", 0.0)
        with pytest.raises(UsageError, match="mom=0"):
            opt.eval()


ALL: dict[str, Recipe] = {
    "nesterov": partial(SGD, lr=0.02, mom=0.9, nesterov=True),
    "adagrad": partial(Adagrad, lr=0.5),
    "adadelta": partial(Adadelta, lr=20.0),
    "lion": partial(Lion, lr=0.05),
    "nadam": partial(NAdam, lr=0.05),
    "adan": partial(Adan, lr=0.05),
    "schedule-free": partial(ScheduleFreeAdamW, lr=0.1),
    "muon": partial(Muon, lr=0.05, wd=0.0),
    "soap": partial(SOAP, lr=0.05),
}
RECIPES = pytest.mark.parametrize("name", ALL)


@RECIPES
def test_it_finds_a_minimum(name: str) -> None:
    """|Ax - b|² for an ill-conditioned A: the loss falls a hundredfold."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(20, 6, generator=draw) * torch.logspace(0, -1, 6)
    b = a @ torch.randn(6, 4, generator=draw)
    x = nn.Parameter(torch.zeros(6, 4))
    opt = ALL[name]([x])
    first = ((a @ x - b) ** 2).mean().item()
    for t in range(300):
        for hypers in opt.hypers:
            hypers["lr"] = hypers["lr"] * (0.98 if t > 150 else 1)
        opt.zero_grad()
        ((a @ x - b) ** 2).mean().backward()
        opt.step()
    if isinstance(opt, ScheduleFreeAdamW):
        opt.eval()
    assert ((a @ x - b) ** 2).mean().item() < first / 100


@RECIPES
def test_it_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    whole, resumed = params(torch.float32), params(torch.float32)
    opt, again = ALL[name](whole), ALL[name](resumed)
    run(opt, 4)
    for p, q in zip(resumed, whole, strict=True):
        p.data.copy_(q.data)
    again.load_state_dict(opt.state_dict())
    run(opt, 5, first=4)
    run(again, 5, first=4)
    assert all(map(torch.equal, whole, resumed))


@RECIPES
def test_lookahead_takes_it(name: str) -> None:
    plain, ahead = params(torch.float32), params(torch.float32)
    run(ALL[name](plain), 3)
    opt = Lookahead(ALL[name](ahead), k=3, alpha=1.0)
    run(opt, 3)
    assert all(map(torch.equal, plain, ahead))


@RECIPES
def test_do_wd_spares_a_parameter(name: str) -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    opt = ALL[name]([p, q])
    opt.set_hypers(lr=0.1, wd=0.5)
    opt.set_flags([q], do_wd=False)
    for _ in range(2):
        p.grad, q.grad = torch.zeros(2, 2), torch.zeros(2, 2)
        opt.step()
    assert (p < 1).all()
    assert torch.equal(q, torch.ones(2, 2))


def test_nesterov_wants_momentum() -> None:
    with pytest.raises(UsageError, match="give mom"):
        SGD(params(torch.float32), lr=0.1, nesterov=True)


def test_recipes_and_steppers_are_short() -> None:
    """Statements without docstring: a recipe fits in 40 lines with its steppers, each in 15."""
    steppers = [
        lion_step,
        nadam_step,
        adadelta_step,
        adan_averages,
        adan_step,
        schedule_free_step,
        muon_step,
        soap_step,
        soap_basis,
    ]
    for fn in [*steppers, Lion, NAdam, Adadelta, Adagrad, Adan, Muon, SOAP, AdamW]:
        source = inspect.getsource(fn)
        body = source.split('"""')[2].strip().splitlines()
        assert len(body) <= 15, fn.__name__


def test_split_matrices_keeps_empty_groups_and_names() -> None:
    w, b = params(torch.float32, [(2, 2), (2,)])
    groups = split_matrices([[("w", w), ("b", b)], []], [weight_decay], mom=0.5)
    assert [(g.get("name"), g["layer_group"], g["param_names"]) for g in groups] == [
        ("matrices", 0, ["w"]),
        ("others", 0, ["b"]),
        ("others", 1, []),
    ]
