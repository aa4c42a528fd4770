"""Adan: momentum from the difference of gradients. arXiv 2208.06677."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import Param, State, average_grad, debias, step_stat


def adan_averages(
    p: Param,
    diff_mom: float,
    sqr_mom: float,
    prev_grad: Tensor | None = None,
    diff_avg: Tensor | None = None,
    sqr_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """d ← diff_mom·d + (1-diff_mom)·Δ, v ← sqr_mom·v + (1-sqr_mom)·(g + diff_mom·Δ)², Δ = g - g₋₁.

    arXiv 2208.06677, algorithm 1; Δ is 0 in the first step. Keeps `prev_grad`, which is g₋₁,
    `diff_avg` and `sqr_avg`.
    """
    g = p.grad.data
    if prev_grad is None or diff_avg is None or sqr_avg is None:
        prev_grad, diff_avg, sqr_avg = g.clone(), torch.zeros_like(g), torch.zeros_like(g)
    diff = g - prev_grad
    diff_avg.mul_(diff_mom).add_(diff, alpha=1 - diff_mom)
    ahead = g.add(diff, alpha=diff_mom)
    sqr_avg.mul_(sqr_mom).addcmul_(ahead, ahead, value=1 - sqr_mom)
    prev_grad.copy_(g)
    return {"prev_grad": prev_grad, "diff_avg": diff_avg, "sqr_avg": sqr_avg}


def adan_step(
    p: Param,
    lr: float,
    mom: float,
    diff_mom: float,
    sqr_mom: float,
    step: int,
    grad_avg: Tensor,
    diff_avg: Tensor,
    sqr_avg: Tensor,
    eps: float,
    **kwargs: Any,
) -> None:
    """p ← p - lr·(m̂ + diff_mom·d̂) / (√v̂ + eps), with hats for averages that are debiased.

    arXiv 2208.06677, algorithm 1, with the debiasing of its authors' code.
    """
    denom = (sqr_avg / debias(sqr_mom, 1 - sqr_mom, step)).sqrt() + eps
    p.data.addcdiv_(grad_avg, denom, value=-lr / debias(mom, 1 - mom, step))
    ratio = diff_mom / debias(diff_mom, 1 - diff_mom, step)
    p.data.addcdiv_(diff_avg, denom, value=-lr * ratio)


def proximal_decay(p: Param, lr: float, wd: float, do_wd: bool = True, **kwargs: Any) -> None:
    """p ← p/(1 + lr·wd): weight decay as an implicit step, to be taken last. arXiv 2202.00089.

    The flag `do_wd=False` spares a parameter.
    """
    if do_wd and wd != 0:
        p.data.div_(1 + lr * wd)


def Adan(
    params: Any,
    lr: Any,
    mom: float = 0.98,
    diff_mom: float = 0.92,
    sqr_mom: float = 0.99,
    eps: float = 1e-8,
    wd: float = 0.0,
) -> Optimizer:
    """Adam with Nesterov's momentum from the gradients at hand. See `adan_step`.

    The momenta are what an average keeps, as everywhere here; the paper's β are 1 minus these.
    """
    averages = [partial(average_grad, dampening=True), adan_averages, step_stat]
    cbs = [*averages, adan_step, proximal_decay]
    hypers = {"mom": mom, "diff_mom": diff_mom, "sqr_mom": sqr_mom, "eps": eps, "wd": wd}
    return Optimizer(params, cbs, lr=lr, **hypers)
