"""Lion: the sign of an average. arXiv 2302.06675."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import Param, State, weight_decay


def lion_step(
    p: Param,
    lr: float,
    mom: float,
    avg_mom: float,
    grad_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """p ← p - lr·sign(mom·m + (1-mom)·g), then m ← avg_mom·m + (1-avg_mom)·g.

    arXiv 2302.06675, algorithm 2, whose β₁ is `mom` and whose β₂ is `avg_mom`. Keeps `grad_avg`.
    """
    g = p.grad.data
    if grad_avg is None:
        grad_avg = torch.zeros_like(g)
    p.data.add_((grad_avg * mom).add_(g, alpha=1 - mom).sign_(), alpha=-lr)
    grad_avg.mul_(avg_mom).add_(g, alpha=1 - avg_mom)
    return {"grad_avg": grad_avg}


def Lion(
    params: Any, lr: Any, mom: float = 0.9, avg_mom: float = 0.99, wd: float = 0.0
) -> Optimizer:
    """Steps of the same size in every entry, so lr wants to be 3 to 10 times smaller than Adam's,
    and wd as many times larger. See `lion_step`."""
    return Optimizer(params, [weight_decay, lion_step], lr=lr, mom=mom, avg_mom=avg_mom, wd=wd)
