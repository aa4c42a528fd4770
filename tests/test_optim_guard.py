"""Clipping, leaving out and careful rounding in the pass of the step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    SOAP,
    Adam,
    Adan,
    Lamb,
    Larc,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    ScheduleFreeAdamW,
)
from treadle.optim.engine import Engine
from treadle.optim.engine.guard import COMPENSATION
from treadle.optim.engine.rounding import stochastic

KINDS = ["c", "foreach", "reference"]
RECIPES = {
    "sgd": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.01),
    "sgd l2": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.01, decouple_wd=False),
    "rmsprop": lambda ps: RMSProp(ps, lr=0.01),
    "adam": lambda ps: Adam(ps, lr=0.01),
    "radam": lambda ps: RAdam(ps, lr=0.01),
    "qhadam": lambda ps: QHAdam(ps, lr=0.01),
    "larc": lambda ps: Larc(ps, lr=0.01),
    "lamb": lambda ps: Lamb(ps, lr=0.01),
    "lion": lambda ps: Lion(ps, lr=0.01),
    "adan": lambda ps: Adan(ps, lr=0.01),
    "nadam": lambda ps: NAdam(ps, lr=0.01),
    "lookahead": lambda ps: Lookahead(Adam(ps, lr=0.01), k=2),
    "schedule-free": lambda ps: ScheduleFreeAdamW(ps, lr=0.01),
    "muon": lambda ps: Muon(ps, lr=0.01),
    "soap": lambda ps: SOAP(ps, lr=0.01),
}
SHAPES = [(3, 4), (5,), (), (40, 50)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def on(opt: Optimizer, kind: str) -> Optimizer:
    opt._engine = Engine(kind)
    return opt


def params_of(opt: Optimizer) -> list[torch.Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def set_grads(opt: Optimizer, seed: int, factor: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params = params_of(opt)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * factor).to(p.dtype)
    return params


def snapshot(opt: Optimizer) -> list:
    return [copy.deepcopy([p.data, dict(opt.state.get(p, {}))]) for p in params_of(opt)]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


# ---- leaving out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore:stepper")
def test_a_step_that_is_left_out_leaves_no_trace(name, kind):
    guarded = on(RECIPES[name](parameters()), kind).guard(skip_nonfinite=True)
    plain = on(RECIPES[name](parameters()), kind)
    skipped = 0
    for step, poison in enumerate(
        [math.nan, None, None, math.inf, None, -math.inf, math.nan, None]
    ):
        set_grads(guarded, step)
        if poison is not None:
            params_of(guarded)[step % 4].grad.view(-1)[-1] = poison
            before = snapshot(guarded)
            guarded.step()
            skipped += 1
            assert same(snapshot(guarded), before)
            assert guarded.skipped == skipped
            continue
        set_grads(plain, step)
        guarded.step()
        plain.step()
        for a, b in zip(params_of(guarded), params_of(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert skipped == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_all_dtypes_and_roundings_are_left_out(dtype, kind, rounding):
    opt = on(Adam(parameters(dtype), lr=0.01), kind).guard(skip_nonfinite=True, rounding=rounding)
    set_grads(opt, 0)
    opt.step()
    before = snapshot(opt)
    set_grads(opt, 1)[1].grad[0] = math.nan
    opt.step()
    assert same(snapshot(opt), before)
    set_grads(opt, 1)
    opt.step()
    assert not same(snapshot(opt), before)
    assert opt.skipped == 1


def test_a_step_without_gradients_is_not_left_out():
    opt = on(Adam(parameters(), lr=0.01), "c").guard(skip_nonfinite=True)
    set_grads(opt, 0)[0].grad.fill_(math.nan)
    opt.step()
    opt.zero_grad()
    opt.step()
    assert opt.skipped == 1


def test_it_goes_on_after_a_change_of_the_guard():
    opt = on(Adam(parameters(), lr=0.01), "c")
    for guard in ({}, {"max_norm": 1.0}, {"skip_nonfinite": True}, {}, {"max_norm": 0.1}):
        opt.guard(**guard)
        set_grads(opt, 0)
        opt.step()
    assert all(stats["step"] == 5 for stats in opt.state.values())


# ---- clipping


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore:stepper")
def test_clipping_is_that_of_torch(name, kind):
    guarded = on(RECIPES[name](parameters(torch.float64)), kind).guard(max_norm=1.0)
    plain = on(RECIPES[name](parameters(torch.float64)), kind)
    for step, factor in enumerate([1.0, 1e-4, 100.0]):  # clipped, not clipped, clipped
        given = [p.grad.clone() for p in set_grads(guarded, step, factor)]
        nn.utils.clip_grad_norm_(set_grads(plain, step, factor), 1.0)
        guarded.step()
        plain.step()
        for p, q, g in zip(params_of(guarded), params_of(plain), given, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
            assert torch.equal(p.grad, g)


def test_the_norm_is_of_all_groups_and_of_those_without_a_program():
    def odd(p, lr):
        p.data.sub_(p.grad.data.sort().values, alpha=lr)

    a, b = parameters()[0], parameters()[1]
    opt = Optimizer(
        [{"params": [a]}, {"params": [b], "cbs": odd}],
        [lambda p, lr: p.data.sub_(p.grad, alpha=lr)],
        lr=1.0,
    )
    opt.guard(max_norm=1.0)
    a.grad, b.grad = torch.full_like(a, 3.0), torch.full_like(b, 4.0)
    norm = math.sqrt(9 * a.numel() + 16 * b.numel())
    was = a.detach().clone(), b.detach().clone()
    with pytest.warns(UserWarning, match="odd cannot be fused"):
        opt.step()
    torch.testing.assert_close(was[0] - a.data, torch.full_like(a, 3 / norm))
    torch.testing.assert_close(was[1] - b.data, torch.full_like(b, 4 / norm))


# ---- a GradScaler


@pytest.mark.parametrize("kind", KINDS)
def test_a_grad_scaler_leaves_its_work_to_the_step(kind):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    mine, oracle = parameters(), parameters()
    opt = on(Adam(mine, lr=0.01, sqr_mom=0.999, eps=1e-8, wd=0.0), kind)
    adam = torch.optim.Adam(oracle, lr=0.01)
    for step in range(5):
        for params, each, sc in ((mine, opt, scaler), (oracle, adam, theirs)):
            set_grads(each, step) if each is opt else None
            loss = sum((p * p).sum() for p in params) * (math.inf if step in (0, 3) else 1.0)
            each.zero_grad()
            sc.scale(loss).backward()
            sc.step(each)
            sc.update()
        for p, q in zip(mine, oracle, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert opt.skipped == 2
    assert scaler.get_scale() == theirs.get_scale()
    assert all(stats["step"] == 3 for stats in opt.state.values())


def test_a_subclass_with_its_own_step_is_left_to_the_scaler():
    class Mine(Optimizer):
        def step(self, closure=None):
            return super().step(closure)

    assert Adam(parameters(), lr=0.1)._step_supports_amp_scaling
    assert not Mine(parameters(), lambda p, lr: None, lr=0.1)._step_supports_amp_scaling


# ---- rounding


def neighbours(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest number of `dtype` that is not above `x`, and the least that is not below."""
    near = x.to(dtype)
    up = torch.nextafter(near, torch.full_like(near, math.inf))
    down = torch.nextafter(near, torch.full_like(near, -math.inf))
    low = torch.where(near.double() <= x.double(), near, down)
    high = torch.where(near.double() >= x.double(), near, up)
    return low.double(), high.double()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-65000, 65000, width=32),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.integers(0, 2**53 - 1),
)
def test_stochastic_rounding_gives_a_neighbour_with_the_right_odds(value, dtype, seed):
    n = 4096
    x = torch.full((n,), value)
    y = stochastic(x, dtype, seed, 3).double()
    low, high = (t[0].item() for t in neighbours(x[:1], dtype))
    assert set(y.tolist()) <= {low, high}
    assert torch.equal(y.to(dtype).double(), y)
    if high > low:
        odds = (x[0].double().item() - low) / (high - low)
        share = (y == high).double().mean().item()
        assert abs(share - odds) < 6 * math.sqrt(max(odds * (1 - odds), 1 / n) / n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
def test_engines_draw_the_same_bits(dtype, threads):
    def shift(p, lr):
        p.data.add_(p.grad.data, alpha=-lr)

    def run(kind):
        torch.manual_seed(5)
        ps = [nn.Parameter(torch.linspace(-2, 2, n).to(dtype)) for n in (7, 70_000, 3)]
        ps.append(
            nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(dtype).mT)
        )
        opt = on(Optimizer(ps, shift, lr=0.001), kind).guard(rounding="stochastic")
        for _ in range(3):
            for p in ps:
                p.grad = torch.ones_like(p)
            opt.step()
        return ps

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        c, foreach = run("c"), run("foreach")
    finally:
        torch.set_num_threads(before)
    for p, q in zip(c, foreach, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "muon"])
@pytest.mark.filterwarnings("ignore:stepper")
def test_small_updates_are_not_lost(name, rounding, dtype, kind):
    """After many steps below the rounding the parameters are near those of float32."""
    if kind == "reference" and name not in ("adam", "muon"):
        pytest.skip("the reference engine has one path for all")
    makes = RECIPES[name]

    def run(dtype, kind, **guard):
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.full(s, 1.0, dtype=dtype)) for s in ((32, 32), (512,))]
        opt = on(makes(ps), kind).guard(**guard)
        opt.set_hypers(lr=2e-5)
        for step in range(200):
            for p in ps:
                wave = torch.cos(torch.arange(p.numel()) + step).view(p.shape)
                p.grad = (1 + 0.1 * wave).to(dtype)
            opt.step()
        # What the compensation holds is there, if not yet in the parameter.
        return [p.float() + opt.state[p].get(COMPENSATION, 0.0) for p in ps]

    exact = run(torch.float32, "c")
    near, careful = run(dtype, kind), run(dtype, kind, rounding=rounding)
    for e, n, c in zip(exact, near, careful, strict=True):
        moved, lost, left = ((x - e).mean().abs().item() for x in (torch.ones(()), n, c))
        assert lost > 0.9 * moved
        assert left < 0.2 * moved


def test_kahan_keeps_twice_the_bits():
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    opt = on(SGD([p], lr=1e-4), "c").guard(rounding="kahan")
    for _ in range(1000):
        p.grad = torch.ones_like(p)
        opt.step()
    kept = opt.state[p][COMPENSATION]
    assert kept.dtype is torch.bfloat16
    assert (p.double() + kept.double()).item() == pytest.approx(0.9, abs=2e-3)


def test_float32_parameters_are_rounded_as_ever():
    a, b = parameters(), parameters()
    for ps, rounding in ((a, "nearest"), (b, "kahan")):
        opt = on(Adam(ps, lr=0.01), "c").guard(rounding=rounding)
        set_grads(opt, 0)
        opt.step()
        assert all(COMPENSATION not in stats for stats in opt.state.values())
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_the_compensation_is_saved_and_asked_for():
    opt = on(Adam(parameters(torch.bfloat16), lr=1e-4), "c").guard(rounding="kahan")
    for step in range(3):
        set_grads(opt, step)
        opt.step()
    saved = opt.state_dict()
    other = Adam([nn.Parameter(p.detach().clone()) for p in params_of(opt)], lr=1e-4)
    with pytest.raises(UsageError, match=COMPENSATION):
        other.load_state_dict(saved)
    other.guard(rounding="kahan").load_state_dict(saved)
    for each in (opt, other):
        set_grads(each, 9)
        each.step()
    assert same(snapshot(opt), snapshot(other))


# ---- the face


def test_bad_arguments_are_sentences():
    opt = Adam(parameters(), lr=0.1)
    with pytest.raises(UsageError, match="expected a number above 0"):
        opt.guard(max_norm=0.0)
    with pytest.raises(UsageError, match="stochastic"):
        opt.guard(rounding="stochastc")


def test_it_is_shown_and_copied():
    opt = Adam(parameters(), lr=0.1).guard(max_norm=1.0, skip_nonfinite=True, rounding="kahan")
    line = "  guard: gradients clipped to norm 1, non-finite steps skipped, kahan rounding"
    assert repr(opt).endswith(line)
    assert repr(copy.deepcopy(opt)).endswith(line)
    assert "guard" not in repr(opt.guard())


def test_a_guard_compiles_one_program_more_and_none_later():
    opt = on(Adam(parameters(), lr=0.1), "c").guard(max_norm=1.0, skip_nonfinite=True)
    for step in range(5):
        set_grads(opt, step, 10.0**step)
        opt.set_hypers(lr=0.1 / (step + 1))
        opt.step()
        if step == 1:
            count = len(opt._engine.programs)
    assert len(opt._engine.programs) == count
