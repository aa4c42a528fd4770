"""What is particular to programs in C: chunks, threads, and reductions in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from treadle.native import build
from treadle.optim import Optimizer
from treadle.optim.engine import Engine
from treadle.optim.engine.codegen_c import c_source


def stepped(kind: str, stepper, grads: list[torch.Tensor], **hypers: float) -> torch.Tensor:
    """A parameter of zeros after one step for each of `grads`."""
    p = nn.Parameter(torch.zeros_like(grads[0]))
    opt = Optimizer([p], stepper, **hypers)
    opt._engine = Engine(kind)
    for grad in grads:
        p.grad = grad
        opt.step()
    return p.data


def test_a_stat_of_no_dimensions_is_written_when_all_chunks_have_read_it():
    def counts(p, lr, n=None):
        n = torch.zeros_like(p.grad.sum()) if n is None else n
        p.data.sub_(p.grad.data * (n + 1), alpha=lr)
        return {"n": n + 1}

    p = stepped("c", counts, [torch.ones(100_000)] * 3, lr=1.0)
    assert torch.equal(p, torch.full_like(p, -6.0))


def test_a_reduction_that_is_only_kept():
    def keeps(p, lr, norm=None):
        p.data.sub_(p.grad.data, alpha=lr)
        return {"norm": (p.grad.data * 2).norm()}

    p = nn.Parameter(torch.zeros(40_000))
    opt = Optimizer([p], keeps, lr=1.0)
    opt._engine = Engine("c")
    for _ in range(2):
        p.grad = torch.ones(40_000)
        opt.step()
    assert opt.state[p]["norm"].item() == pytest.approx(400.0)
    assert torch.equal(p.data, torch.full_like(p, -2.0))
    assert all(build(c_source(program)) for program in opt._engine.programs.values())


REDUCTIONS = {
    "amax": lambda g: g.amax(),
    "amin": lambda g: g.amin(),
    "norm": lambda g: g.norm(),
    "norm1": lambda g: g.norm(1),
    "norminf": lambda g: torch.linalg.vector_norm(g, math.inf),
    "sum": lambda g: g.sum(),
    "mean": lambda g: g.mean(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reductions_pass_nan_on_and_are_right(name, dtype):
    def step(p, lr):
        p.data.sub_(REDUCTIONS[name](p.grad.data), alpha=lr)

    grad = torch.randn(40_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = -REDUCTIONS[name](grad.double())
    found = stepped("c", step, [grad], lr=1.0)[0]
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3}[dtype]
    scale = max(abs(expected.item()), grad.double().abs().sum().item() / len(grad))
    assert abs(found.item() - expected.item()) <= tolerance * scale
    for at in (0, 511, 512, 39_999):
        poisoned = grad.clone()
        poisoned[at] = math.nan
        assert stepped("c", step, [poisoned], lr=1.0).isnan().all()


@given(
    divisor=st.floats(width=32, allow_nan=False) | st.floats(2**-10, 2**10),
    seed=st.integers(0, 2**32),
)
def test_a_division_by_a_number_rounds_as_torch_does(divisor, seed):
    """Over all that a float can be. (A product with the inverse in double, which rounds the same
    but below 2^-126, was tried: a quarter faster where all lies in the caches, a tenth slower where
    it does not.)"""
    draw = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=draw, dtype=torch.int64)
    numbers = bits.to(torch.int32).view(torch.float32)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38])
    grad = torch.cat([special, numbers])

    def over(p, lr):
        p.data.copy_(p.grad.data / lr)

    found, expected = stepped("c", over, [grad], lr=divisor), grad / divisor
    same = found.view(torch.int32) == expected.view(torch.int32)
    assert (same | (found.isnan() & expected.isnan())).all()
