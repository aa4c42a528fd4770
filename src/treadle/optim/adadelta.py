"""Adadelta: the step is measured by the steps before it. arXiv 1212.5701."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import Param, State, average_sqr_grad, l2_reg, weight_decay


def adadelta_step(
    p: Param,
    lr: float,
    sqr_mom: float,
    eps: float,
    sqr_avg: Tensor,
    sqr_delta: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """p ← p - lr·d, with d = √(u + eps)/√(v + eps)·g, u ← sqr_mom·u + (1 - sqr_mom)·d².

    arXiv 1212.5701, algorithm 1. Keeps u as `sqr_delta`.
    """
    if sqr_delta is None:
        sqr_delta = torch.zeros_like(sqr_avg)
    delta = (sqr_delta + eps).sqrt() / (sqr_avg + eps).sqrt() * p.grad.data
    sqr_delta.mul_(sqr_mom).addcmul_(delta, delta, value=1 - sqr_mom)
    p.data.add_(delta, alpha=-lr)
    return {"sqr_delta": sqr_delta}


def Adadelta(
    params: Any,
    lr: Any = 1.0,
    sqr_mom: float = 0.9,
    eps: float = 1e-6,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Steps as large as the past steps were, so that lr = 1 serves. See `adadelta_step`."""
    cbs = [weight_decay if decouple_wd else l2_reg, average_sqr_grad, adadelta_step]
    return Optimizer(params, cbs, lr=lr, sqr_mom=sqr_mom, eps=eps, wd=wd)
