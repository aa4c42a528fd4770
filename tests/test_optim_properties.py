"""Any chain of shipped steppers over any parameters equals stepping each parameter alone."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from treadle.optim import (
    Optimizer,
    adam_step,
    average_grad,
    average_sqr_grad,
    l2_reg,
    lamb_step,
    larc_layer_lr,
    larc_step,
    momentum_step,
    qhadam_step,
    radam_step,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from treadle.optim.lookahead import lookahead_step, slow_weights

HYPERS: dict[str, Any] = {
    "lr": 0.03,
    "mom": 0.9,
    "sqr_mom": 0.95,
    "eps": 1e-4,
    "wd": 0.1,
    "beta": 0.5,
    "nu_1": 0.7,
    "nu_2": 0.9,
    "trust_coeff": 0.02,
    "k": 2,
    "alpha": 0.5,
}
STATS = {
    "grad_avg": [average_grad, partial(average_grad, dampening=True)],
    "sqr_avg": [average_sqr_grad, partial(average_sqr_grad, dampening=False)],
    "step": [step_stat],
    "local_lr": [larc_layer_lr],
    "slow": [slow_weights],
}
MOMENTS = {"grad_avg", "sqr_avg", "step"}
NEEDS: dict[Any, set[str]] = {
    sgd_step: set(),
    weight_decay: set(),
    l2_reg: set(),
    momentum_step: {"grad_avg"},
    rms_prop_step: {"sqr_avg"},
    adam_step: MOMENTS,
    radam_step: MOMENTS,
    qhadam_step: MOMENTS,
    lamb_step: MOMENTS,
    larc_step: {"local_lr"},
    lookahead_step: {"slow"},
}


@st.composite
def chains(draw: st.DrawFn) -> list[Any]:
    """One to four rules in any order, each stat given somewhere before it is needed."""
    cbs: list[Any] = []
    kept: set[str] = set()
    for rule in draw(st.lists(st.sampled_from(list(NEEDS)), min_size=1, max_size=4)):
        for stat in draw(st.permutations(sorted(NEEDS[rule] - kept))):
            cbs.append(draw(st.sampled_from(STATS[stat])))
            kept.add(stat)
        cbs.append(rule)
    return cbs


SHAPES = st.lists(
    st.sampled_from([(), (0,), (1,), (5,), (3, 4), (2, 0), (2, 3, 2)]), min_size=1, max_size=5
)
LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided"])


def tensor(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    if not shape or layout == "contiguous":
        return values
    if layout == "transposed":
        return values.t().contiguous().t() if values.ndim == 2 else values
    wide = torch.zeros((*shape[:-1], 2 * shape[-1]), dtype=dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


def cloned(values: Tensor) -> nn.Parameter:
    """A parameter with the strides of `values`, on memory of its own."""
    span = sum((n - 1) * s for n, s in zip(values.shape, values.stride(), strict=True)) + 1
    if values.numel() == 0:
        return nn.Parameter(values.clone())
    room = torch.zeros(span, dtype=values.dtype).as_strided(values.shape, values.stride())
    return nn.Parameter(room.copy_(values))


@given(
    cbs=chains(),
    shapes=SHAPES,
    layout=LAYOUTS,
    grad_layout=LAYOUTS,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    silent=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 2))),
    do_wd=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_together_is_alone(
    cbs: list[Any],
    shapes: list[tuple[int, ...]],
    layout: str,
    grad_layout: str,
    dtype: torch.dtype,
    silent: set[tuple[int, int]],
    do_wd: bool,
) -> None:
    hypers = {
        name: value
        for name, value in HYPERS.items()
        if any(name in f.__code__.co_varnames for f in map(_function, cbs))
    }
    values = [tensor(shape, layout, dtype, i) for i, shape in enumerate(shapes)]
    together = [cloned(v) for v in values]
    alone = [cloned(v) for v in values]
    opt = Optimizer(together, cbs, **hypers)
    opts = [Optimizer([p], cbs, **hypers) for p in alone]
    if "do_wd" in opt.hyper_names:
        opt.set_flags(together[:1], do_wd=do_wd)
        opts[0].set_flags(alone[:1], do_wd=do_wd)
    for t in range(3):
        for i, shape in enumerate(shapes):
            # some have no gradient in some steps, so that ages differ
            for p in (together[i], alone[i]):
                grad = tensor(shape, grad_layout, dtype, 100 * t + i)
                p.grad = None if (i, t) in silent else grad
        opt.step()
        for o in opts:
            o.step()
    for p, q, o in zip(together, alone, opts, strict=True):
        assert torch.equal(p, q)
        mine, theirs = opt.state[p], o.state[q]
        assert mine.keys() == theirs.keys()
        for name, stat in mine.items():
            assert torch.equal(torch.as_tensor(stat), torch.as_tensor(theirs[name]))


def _function(cb: Any) -> Any:
    return cb.func if isinstance(cb, partial) else cb


@given(
    start=st.floats(1e-8, 1e3),
    stop=st.floats(1e-8, 1e3),
    n=st.integers(2, 12),
)
def test_a_slice_is_spread_geometrically(start: float, stop: float, n: int) -> None:
    params = [[nn.Parameter(torch.zeros(1))] for _ in range(n)]
    lrs = [h["lr"] for h in Optimizer(params, sgd_step, lr=slice(start, stop)).hypers]
    assert (lrs[0], lrs[-1]) == (start, stop)
    ratios = [b / a for a, b in itertools.pairwise(lrs)]
    assert max(ratios) <= min(ratios) * (1 + 1e-9)
