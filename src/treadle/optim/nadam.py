"""NAdam: Adam with Nesterov's momentum. Dozat, Incorporating Nesterov Momentum into Adam, 2016."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import (
    Param,
    State,
    average_grad,
    average_sqr_grad,
    debias,
    l2_reg,
    step_stat,
    weight_decay,
)


def nadam_step(
    p: Param,
    lr: float,
    mom: float,
    mom_decay: float,
    step: int,
    sqr_mom: float,
    grad_avg: Tensor,
    sqr_avg: Tensor,
    eps: float,
    mom_prod: float = 1.0,
    **kwargs: Any,
) -> State:
    """p ← p - lr·(μ'·m/(1-Π·μ') + (1-μ)·g/(1-Π)) / (√v̂ + eps).

    μ = mom·(1 - 0.96^(t·mom_decay)/2), μ' is the μ of t + 1, and Π the product of all μ up to t.
    Dozat, 2016, algorithm 2. Keeps Π as `mom_prod`.
    """
    mu, mu_next = (mom * (1 - 0.5 * 0.96 ** (t * mom_decay)) for t in (step, step + 1))
    mom_prod = mom_prod * mu
    denom = (sqr_avg / debias(sqr_mom, 1 - sqr_mom, step)).sqrt() + eps
    p.data.addcdiv_(p.grad.data, denom, value=-lr * (1 - mu) / (1 - mom_prod))
    p.data.addcdiv_(grad_avg, denom, value=-lr * mu_next / (1 - mom_prod * mu_next))
    return {"mom_prod": mom_prod}


def NAdam(
    params: Any,
    lr: Any,
    mom: float = 0.9,
    sqr_mom: float = 0.999,
    eps: float = 1e-8,
    mom_decay: float = 4e-3,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Adam that looks one step ahead along its momentum, which warms up. See `nadam_step`."""
    moments = [partial(average_grad, dampening=True), average_sqr_grad, step_stat]
    cbs = [weight_decay if decouple_wd else l2_reg, *moments, nadam_step]
    hypers = {"mom": mom, "sqr_mom": sqr_mom, "eps": eps, "mom_decay": mom_decay, "wd": wd}
    return Optimizer(params, cbs, lr=lr, **hypers)
