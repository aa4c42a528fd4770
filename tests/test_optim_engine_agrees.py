"""The engines against the reference engine, which is the definition of what a chain does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adan,
    Lamb,
    Larc,
    Lion,
    Lookahead,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    ScheduleFreeAdamW,
    adadelta_step,
    adam_step,
    adan_averages,
    adan_step,
    average_grad,
    average_sqr_grad,
    l2_reg,
    lamb_step,
    larc_layer_lr,
    larc_step,
    lion_step,
    momentum_step,
    nadam_step,
    nesterov_step,
    proximal_decay,
    qhadam_step,
    radam_step,
    ranger,
    rms_prop_step,
    schedule_free_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from treadle.optim.chain import read_chain
from treadle.optim.engine import Engine, fused
from treadle.optim.engine.codegen_c import WIDE

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


def lerps(p, lr, mom, exp_avg=None, exp_sqr=None):
    if exp_avg is None:
        exp_avg, exp_sqr = torch.zeros_like(p.data), torch.zeros_like(p.data)
    exp_avg.lerp_(p.grad.data, 1 - mom)
    exp_sqr.mul_(mom).addcmul_(p.grad.data, p.grad.data, value=1 - mom)
    p.data.addcdiv_(exp_avg, exp_sqr.sqrt().add_(0.1), value=-lr)
    return {"exp_avg": exp_avg, "exp_sqr": exp_sqr}


def warms_up(p, lr, mom, age=0):
    """Branches on the step count and on a hyper-parameter, as Python has them."""
    rate = lr * (age + 1) / 3 if age < 2 else lr
    g = p.grad.data if mom > 0.85 else -p.grad.data.neg()
    p.data.add_(g, alpha=-rate if mom else 0.0)
    return {"age": age + 1}


def operators(p, lr, heat):
    d = p.data
    d -= lr * p.grad
    d *= 1 - heat / 10
    d /= 1 + lr
    d += (p.grad**2 <= heat) * p.grad * (lr / 2)


def trust(p, lr):
    ratio = p.data.norm() / (p.grad.data.norm(1) + 1)
    p.data.sub_(lr * torch.where(ratio > 0.2, ratio, 0.2).clamp(max=2.0) * p.grad.data)


def by_fan_in(p, lr):
    p.data.sub_(p.grad.data, alpha=lr / max(1, p.shape[-1] if p.ndim else 2))


def average_of_mean(p, lr, centre=None):
    m = p.grad.data.mean()
    centre = m if centre is None else 0.9 * centre + 0.1 * m
    p.data.sub_(lr * (p.grad.data - centre))
    return {"centre": centre}


HYPERS = {
    "mom": 0.9, "sqr_mom": 0.95, "eps": 1e-2, "wd": 0.1, "limit": 0.4, "heat": 0.7, "beta": 20.0,
    "nu_1": 0.7, "nu_2": 0.9, "trust_coeff": 0.5, "avg_mom": 0.8, "mom_decay": 0.1, "diff_mom": 0.7,
}  # fmt: skip
# What may become of them in mid-run. At 0 some chains take another branch.
VALUES = {"lr": [0.0, 0.02, 0.3], "mom": [0.0, 0.5, 0.95], "sqr_mom": [0.5, 0.9], "wd": [0.0, 0.3]}
damped = partial(average_grad, dampening=True)
_moments = [damped, average_sqr_grad, step_stat]
CHAINS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda ps: SGD(ps, lr=0.1, wd=0.1),
    "sgd l2 momentum": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.1, decouple_wd=False),
    "nesterov": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.1, nesterov=True),
    "rmsprop": lambda ps: RMSProp(ps, lr=0.1, mom=0.9, eps=1e-2),
    "adagrad": lambda ps: Adagrad(ps, lr=0.1, eps=1e-2, wd=0.1),
    "adadelta": lambda ps: Adadelta(ps, lr=0.5, eps=1e-2, wd=0.1, decouple_wd=False),
    "adam": lambda ps: Adam(ps, lr=0.1, eps=1e-2),
    "adan": lambda ps: Adan(ps, lr=0.1, eps=1e-2, wd=0.1),
    "lion": lambda ps: Lion(ps, lr=0.1, wd=0.1),
    "nadam": lambda ps: NAdam(ps, lr=0.1, eps=1e-2, mom_decay=0.1),
    "schedule-free": lambda ps: ScheduleFreeAdamW(ps, lr=0.1, eps=1e-2, wd=0.1),
    "radam": lambda ps: RAdam(ps, lr=0.1, sqr_mom=0.8, eps=1e-2),
    "radam softplus": lambda ps: RAdam(ps, lr=0.1, sqr_mom=0.8, beta=20.0),
    "qhadam": lambda ps: QHAdam(ps, lr=0.1, mom=0.8, eps=1e-2),
    "larc": lambda ps: Larc(ps, lr=0.1, wd=0.1, eps=1e-2),
    "lamb": lambda ps: Lamb(ps, lr=0.1, wd=0.1, eps=1e-2),
    "ranger": lambda ps: ranger(ps, lr=0.1, k=3, eps=1e-2),
    "lookahead": lambda ps: Lookahead(SGD(ps, lr=0.1, mom=0.9), k=2, alpha=0.3),
}
PARTS: list[Any] = [weight_decay, l2_reg, clipping, unit, every_third, keeps_zeros]
RULES: list[list[Any]] = [
    [sgd_step],
    [old_spelling],
    [lion],
    [softened],
    [counts],
    [masked],
    [lerps],
    [warms_up],
    [operators],
    [trust],
    [by_fan_in],
    [average_of_mean],
    [functional_average, momentum_step],
    [functional_average, cautious],
    [average_grad, nesterov_step],
    [average_sqr_grad, amsgrad],
    [average_grad, average_sqr_grad, rms_prop_step],
    [average_sqr_grad, adadelta_step],
    [lion_step],
    [damped, adan_averages, step_stat, adan_step, proximal_decay],
    [average_sqr_grad, step_stat, schedule_free_step],
    [larc_layer_lr, larc_step],
    [average_grad, larc_layer_lr, larc_step],
    *([*_moments, step] for step in (adam_step, nadam_step, radam_step, qhadam_step, lamb_step)),
]
EXACT = [
    sgd_step, old_spelling, functional_average, average_grad, momentum_step, nesterov_step,
    weight_decay, l2_reg, clipping, warms_up, every_third, keeps_zeros,
]  # fmt: skip

SHAPES = [
    (), (1,), (7,), (3, 5), (3, 5), (2, 3, 4, 5), (2, 3, 4, 5), (40, 50), (0,), (2, 0, 3),
    (1, 1, 1, 1),
]  # fmt: skip
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


LAYOUTS = ["plain", "strided", "transposed", "channels last"]
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

    def step(
        self, missing: frozenset[int] = frozenset(), odd: frozenset[int] = frozenset()
    ) -> None:
        """Draw gradients, take a step with both, and compare all that they hold.

        The parameters `missing` get no gradient, and a frozen one may well have one left. One of
        `odd` gets that of its predecessor, if it fits, or else one of another layout.
        """
        a, b = self.reference, self.other
        pairs = list(zip(flat(a), flat(b), strict=True))
        for i, (p, q) in enumerate(pairs):
            if i in missing:
                p.grad = q.grad = None
                continue
            last, its = pairs[i - 1]
            g = torch.randn(p.shape).to(self.dtype)
            if i in odd and i and last.grad is not None and last.shape == p.shape:
                p.grad, q.grad = last.grad, its.grad
            elif i in odd:
                p.grad, q.grad = g.clone(), g.clone()
            else:
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
    # All at once, so that what shares memory does so in the copy.
    return [[nn.Parameter(p) for p in group] for group in copy.deepcopy(groups)]


def flat(opt: Optimizer) -> list[torch.Tensor]:
    return [p for params in opt.param_lists for p in params]


# ---- the properties


def world(data: st.DataObject, shared: bool = True) -> list[list[torch.Tensor]]:
    """Groups of tensors of one dtype; if `shared`, some may lie in the same memory."""
    dtype = data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    specs = data.draw(st.lists(params_like, min_size=1, max_size=3))
    groups = [[tensor(shape, dtype, layout) for shape, layout in group] for group in specs]
    if shared and dtype.itemsize > 2 and data.draw(st.booleans()):
        room = torch.randn(7).to(dtype)
        groups[0].append(room[:5])
        groups[-1].append(room[3:])
    return groups


EVENTS = "nothing nothing hyper hypers freeze unfreeze flag no_decay clear load".split()


def live(data: st.DataObject, twins: Twins) -> None:
    """Some steps, and between them what users do."""
    count, groups = len(flat(twins.other)), len(twins.other.param_groups)
    none, some = st.just(frozenset[int]()), st.frozensets(st.integers(0, count - 1))
    odd = data.draw(none if twins.wider else some)
    names = sorted(set(VALUES) & set.intersection(*(set(h) for h in twins.other.hypers)))
    for _ in range(data.draw(st.integers(3, 7))):
        event = data.draw(st.sampled_from(EVENTS))
        name, i = data.draw(st.sampled_from(names)), data.draw(st.integers(0, count - 1))
        value = data.draw(st.sampled_from(VALUES[name]))
        for opt in twins.both:
            if event == "hyper":
                opt.set_hyper(name, value)
            elif event == "hypers":
                opt.set_hyper(name, [VALUES[name][k % len(VALUES[name])] for k in range(groups)])
            elif event == "freeze":
                opt.freeze_to(min(i, groups))
            elif event == "unfreeze":
                opt.unfreeze()
            elif event == "flag":
                opt.set_flags(flat(opt)[i], **{name: value})
            elif event == "no_decay" and "do_wd" in opt.hyper_names:
                opt.set_flags(flat(opt)[i], do_wd=False)
            elif event == "clear":
                opt.clear_state()
            elif event == "load":
                opt.load_state_dict(opt.state_dict())
        twins.step(data.draw(none | some), data.draw(st.sampled_from([frozenset(), odd])))


KINDS = pytest.mark.parametrize("kind", ["c", "foreach"])


@KINDS
@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_recipes(name: str, kind: str, data: st.DataObject) -> None:
    live(data, Twins(CHAINS[name], world(data), kind))


@KINDS
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_chains(kind: str, data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(PARTS), unique=True, max_size=3))
    chain = [*before, *data.draw(st.sampled_from(RULES))]
    # To assign to p.data, as `softened` does, ends the sharing on the reference engine only.
    params = world(data, shared=softened not in chain)
    twins = Twins(lambda ps: Optimizer(ps, chain, lr=0.1, **wanted(chain)), params, kind)
    live(data, twins)
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


def test_the_last_bit_of_many_entries() -> None:
    """They have a kernel of their own."""
    torch.manual_seed(0)
    params = [[torch.randn(1 << 20), torch.randn((1 << 20) + 5)]]
    twins = Twins(lambda ps: Optimizer(ps, [lion], lr=0.1, mom=0.9), params, "c")
    for _ in range(2):
        twins.step()
    assert twins.equal()
    assert [key for key in fused._kernels if key[1] == WIDE]


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
        alone = run(1)
        for threads in (2, 3, 7, 64):  # of the last some have no share to begin with
            assert torch.equal(alone, run(threads))
    finally:
        torch.set_num_threads(before)


def test_fewer_threads_than_asked_for_do_it_all() -> None:
    code = """if True:
        import torch
        from treadle.optim import Lamb
        torch.set_num_threads(4)
        p = torch.nn.Parameter(torch.linspace(-1, 1, 300_000))
        opt = Lamb([p], lr=0.1)
        for _ in range(3):
            p.grad = torch.linspace(2, 3, 300_000)
            opt.step()
        print(hash(p.detach().numpy().tobytes()))
    """
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_THREAD_LIMIT": limit, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in ("4", "1", "2")
    ]
    assert found[0] == found[1] == found[2] != ""


@KINDS
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


@pytest.mark.parametrize("kind", ["reference", "c", "foreach"])
def test_a_sparse_gradient_is_refused_before_anything_moves(kind: str) -> None:
    table, weight = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    opt = Optimizer([weight, table.weight], [*_moments, adam_step], lr=0.1, **wanted([adam_step]))
    opt._engine = Engine(kind)
    for sparse in (False, True):
        before = weight.detach().clone()
        table.sparse = sparse
        opt.zero_grad()
        (table(torch.tensor([1])) * weight).sum().backward()
        if sparse:
            with pytest.raises(UsageError, match=r"has a sparse gradient.*SparseAdam"):
                opt.step()
            assert torch.equal(weight, before)
            assert {stats["step"] for stats in opt.state.values()} == {1}
        else:
            opt.step()
            assert not torch.equal(weight, before)


@KINDS
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
