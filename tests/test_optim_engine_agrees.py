"""The engines against the reference engine, which is the definition of what a chain does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from treadle.optim import (
    SGD,
    Adam,
    Lamb,
    Larc,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    adam_step,
    average_grad,
    average_sqr_grad,
    l2_reg,
    momentum_step,
    ranger,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from treadle.optim.chain import read_chain
from treadle.optim.engine import Engine

# ---- chains: the shipped ones, and steppers as users write them


def functional_average(p, mom, grad_avg=None, **kwargs):
    if grad_avg is None:
        grad_avg = torch.zeros_like(p.grad.data)
    return {"grad_avg": grad_avg * mom + p.grad.data}


def lion(p, lr, mom, exp_avg=None):
    if exp_avg is None:
        exp_avg = torch.zeros_like(p)
    p.data.add_((exp_avg * mom + p.grad * (1 - mom)).sign(), alpha=-lr)
    return {"exp_avg": exp_avg.lerp(p.grad, 1 - 0.99)}


def cautious(p, lr, grad_avg, **kwargs):
    mask = torch.where(grad_avg * p.grad.data > 0, 1.0, 0.0)
    p.data -= lr * grad_avg * mask


def old_spelling(p, lr):
    p.data.add_(-lr, p.grad.data)


def clipping(p, limit, **kwargs):
    p.grad.data.clamp_(-limit, limit)


def unit(p):
    p.grad.data.div_(p.grad.data.norm() + 1e-3)


def amsgrad(p, lr, sqr_avg, top=None, **kwargs):
    top = sqr_avg.clone() if top is None else torch.maximum(top, sqr_avg)
    p.data.addcdiv_(p.grad.data, top.sqrt().add_(1e-3), value=-lr)
    return {"top": top}


def every_third(p, turn=0):
    if turn == 2:
        p.data.mul_(0.5)
        return {"turn": 0}
    return {"turn": turn + 1}


def softened(p, lr, heat):
    g = p.grad.data
    p.data = p.data - lr * torch.tanh(g / heat) * (2 / (1 + torch.exp(-g.abs())))


def keeps_zeros(p, idle=None):
    return {"idle": torch.zeros_like(p.data)} if idle is None else None


def counts(p, lr, seen=None):
    seen = torch.ones_like(p.grad.data) if seen is None else seen + 1
    p.data.sub_(p.grad.data / seen.pow(0.75), alpha=lr)
    return {"seen": seen}


def masked(p, lr, **kwargs):
    g = p.grad.data
    p.data.sub_(lr * g.masked_fill(~(g.abs() > 0.5) | (p.data < -1), 0.0))


def average_of_mean(p, lr, centre=None):
    m = p.grad.data.mean()
    centre = m if centre is None else 0.9 * centre + 0.1 * m
    p.data.sub_(lr * (p.grad.data - centre))
    return {"centre": centre}


HYPERS = {"mom": 0.9, "sqr_mom": 0.95, "eps": 1e-3, "wd": 0.1, "limit": 0.4, "heat": 0.7}
_moments = [average_grad, average_sqr_grad, step_stat, adam_step]
CHAINS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda ps: SGD(ps, lr=0.1, wd=0.1),
    "sgd l2 momentum": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.1, decouple_wd=False),
    "rmsprop": lambda ps: RMSProp(ps, lr=0.1, mom=0.9, eps=1e-3),
    "adam": lambda ps: Adam(ps, lr=0.1, eps=1e-3),
    "radam": lambda ps: RAdam(ps, lr=0.1, sqr_mom=0.8, eps=1e-3),
    "radam softplus": lambda ps: RAdam(ps, lr=0.1, sqr_mom=0.8, beta=20.0),
    "qhadam": lambda ps: QHAdam(ps, lr=0.1, mom=0.8, eps=1e-3),
    "larc": lambda ps: Larc(ps, lr=0.1, wd=0.1, eps=1e-3),
    "lamb": lambda ps: Lamb(ps, lr=0.1, wd=0.1, eps=1e-3),
    "ranger": lambda ps: ranger(ps, lr=0.1, k=3, eps=1e-3),
}
PARTS: list[Any] = [weight_decay, l2_reg, clipping, unit, every_third, keeps_zeros]
RULES: list[list[Any]] = [
    [sgd_step],
    [old_spelling],
    [lion],
    [softened],
    [counts],
    [masked],
    [average_of_mean],
    [functional_average, momentum_step],
    [functional_average, cautious],
    [average_sqr_grad, amsgrad],
    [average_grad, average_sqr_grad, rms_prop_step],
    _moments,
]
EXACT = [sgd_step, old_spelling, functional_average, momentum_step, weight_decay, l2_reg, clipping]

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (40, 50), (0,), (2, 0, 3), (1, 1, 1, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# A rounding or two of what an engine stores. In between it computes in float32 or better.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def tensor(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    t = torch.randn(shape).to(dtype)
    # What has gaps goes to the reference engine, which rounds 16-bit numbers after every operation.
    if layout == "strided" and t.dim() >= 1 and dtype.itemsize > 2:
        return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]
    if layout == "transposed" and t.dim() >= 2:
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t


LAYOUTS = ["plain", "plain", "strided", "transposed", "channels last"]
params_like = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS)), min_size=1, max_size=5
)


def close(a: Any, b: Any, dtype: torch.dtype, where: str) -> None:
    """Equal, up to what rounding does; numbers and keys exactly."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape, where
        tol = TOLERANCE[dtype]
        torch.testing.assert_close(
            a.detach().to(b.dtype),
            b.detach(),
            rtol=tol,
            atol=tol,
            equal_nan=True,
            msg=lambda m: where + m,
        )
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            close(a[key], b[key], dtype, f"{where} {key} ")
    else:
        assert a == b and type(a) is type(b), where


class Twins:
    """An optimizer on the reference engine and one on the engine `kind`, of equal parameters.

    Where an engine holds 16-bit numbers it computes in float32. So there the reference
    has float32 parameters, and before each step takes over what the other one holds.
    """

    def __init__(
        self, make: Callable[[Any], Optimizer], params: list[list[torch.Tensor]], kind: str
    ) -> None:
        self.dtype = params[0][0].dtype
        self.wider = self.dtype.itemsize == 2
        held = [[p.to(torch.float32) if self.wider else p for p in group] for group in params]
        self.reference, self.other = make(parameters(held)), make(parameters(params))
        self.reference._engine, self.other._engine = Engine("reference"), Engine(kind)
        self.both = self.reference, self.other

    def step(self, missing: frozenset[int] = frozenset()) -> None:
        """Draw gradients, take a step with both, and compare all that they hold."""
        a, b = self.reference, self.other
        pairs = list(zip(flat(a), flat(b), strict=True))
        for i, (p, q) in enumerate(pairs):
            if i in missing or not p.requires_grad:
                p.grad = q.grad = None
                continue
            g = torch.randn(p.shape).to(self.dtype)
            p.grad = torch.empty_like(p.data).copy_(g)
            q.grad = torch.empty_like(q.data).copy_(g)
            if self.wider:
                p.data.copy_(q.data)
                for name, value in b.state.get(q, {}).items():
                    if isinstance(value, torch.Tensor):
                        a.state[p][name].copy_(value)
        a.step()
        b.step()
        for i, (p, q) in enumerate(pairs):
            close(p, q, self.dtype, f"parameter {i} ")
            if p.grad is not None:
                close(p.grad, q.grad, self.dtype, f"gradient {i} ")
            close(dict(a.state.get(p, {})), dict(b.state.get(q, {})), self.dtype, f"state {i} ")

    def equal(self) -> bool:
        """Whether all that they hold is equal to the last bit."""
        a, b = self.reference, self.other
        return all(
            torch.equal(p, q)
            and all(
                torch.equal(value.nan_to_num(), b.state[q][name].nan_to_num())
                for name, value in a.state[p].items()
                if isinstance(value, torch.Tensor)
            )
            for p, q in zip(flat(a), flat(b), strict=True)
        )


def parameters(groups: list[list[torch.Tensor]]) -> list[list[nn.Parameter]]:
    return [[nn.Parameter(copy.deepcopy(p)) for p in group] for group in groups]


def flat(opt: Optimizer) -> list[torch.Tensor]:
    return [p for params in opt.param_lists for p in params]


# ---- the properties


@pytest.mark.parametrize("kind", ["c", "foreach"])
@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_recipes(name: str, kind: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    specs = data.draw(st.lists(params_like, min_size=1, max_size=3))
    params = [[tensor(shape, dtype, layout) for shape, layout in group] for group in specs]
    twins = Twins(CHAINS[name], params, kind)
    count = len(flat(twins.other))
    for step in range(data.draw(st.integers(2, 7))):
        if len(params) > 1 and step in (1, 3):
            n = data.draw(st.integers(0, len(params) - 1))
            for opt in twins.both:
                opt.freeze_to(n)
        if data.draw(st.booleans()):
            for opt in twins.both:
                opt.set_hyper("lr", 0.1 / (step + 1))
        if step == 2 and data.draw(st.booleans()):
            for opt in twins.both:
                opt.set_flags(flat(opt)[0], do_wd=False)
        twins.step(frozenset(data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))))


@pytest.mark.parametrize("kind", ["c", "foreach"])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_chains(kind: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    before = data.draw(st.lists(st.sampled_from(PARTS), unique=True, max_size=3))
    chain = [*before, *data.draw(st.sampled_from(RULES))]
    specs = data.draw(params_like)
    params = [[tensor(shape, dtype, layout) for shape, layout in specs]]
    twins = Twins(lambda ps: Optimizer(ps, chain, lr=0.1, **wanted(chain)), params, kind)
    for _ in range(4):
        twins.step()
    if not twins.wider and (kind == "foreach" or set(chain) <= set(EXACT)):
        assert twins.equal()


def wanted(chain: list[Any]) -> dict[str, float]:
    """The hyper-parameters of `HYPERS` that `chain` takes."""
    names = read_chain(chain).names
    return {name: value for name, value in HYPERS.items() if name in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "chain",
    [
        [weight_decay, sgd_step],
        [l2_reg, average_grad, momentum_step],
        [clipping, functional_average, momentum_step],
        [lion],
        [old_spelling],
        [functional_average, cautious],
        [masked],
    ],
    ids=lambda chain: "-".join(f.__name__ for f in chain),
)
def test_the_last_bit(chain: list[Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    params = [[torch.randn(50_001, dtype=dtype), torch.randn(3, dtype=dtype)]]
    twins = Twins(lambda ps: Optimizer(ps, chain, lr=0.1, **wanted(chain)), params, "c")
    for _ in range(4):
        twins.step()
    assert twins.equal()


def test_the_number_of_threads_changes_nothing() -> None:
    def run(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        draw = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(300_000, generator=draw))
        opt = Lamb([p], lr=0.1)
        for _ in range(3):
            p.grad = torch.randn(300_000, generator=draw)
            opt.step()
        return p.detach()

    before = torch.get_num_threads()
    try:
        assert torch.equal(run(1), run(2))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["c", "foreach"])
def test_float32_stats_of_bfloat16_parameters(kind: str) -> None:
    def precise(p, lr, m=None):
        if m is None:
            m = torch.zeros_like(p, dtype=torch.float32)
        m.mul_(0.9).add_(p.grad)
        p.data.copy_(p.data.float() - lr * m)
        return {"m": m}

    params = [[torch.randn(100).bfloat16(), torch.randn(3, 4).bfloat16()]]
    twins = Twins(lambda ps: Optimizer(ps, precise, lr=0.1), params, kind)
    for _ in range(3):
        twins.step()
    assert {stats["m"].dtype for stats in twins.other.state.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["c", "foreach"])
def test_nan_and_infinity_pass_through(kind: str) -> None:
    chain = [clipping, average_grad, momentum_step]
    ends = []
    for engine in ("reference", kind):
        p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        opt = Optimizer([p], chain, lr=0.1, mom=0.9, limit=0.4)
        opt._engine = Engine(engine)
        p.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.1])
        opt.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, equal_nan=True)
