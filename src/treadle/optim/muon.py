"""Muon: momentum, orthogonalized. Jordan et al., 2024, kellerjordan.github.io/posts/muon."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from treadle.optim.optimizer import Optimizer
from treadle.optim.recipes import adamw_steppers
from treadle.optim.rules import split_matrices
from treadle.optim.steppers import Param, average_grad, weight_decay


def as_matrix(t: Tensor) -> Tensor:
    """`t` with its first dimension against all others: the weights of a convolution as a matrix."""
    return t.reshape(t.shape[0], -1)


def newton_schulz(g: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Roughly U·Vᵀ for g = U·S·Vᵀ: all singular values go to between 0.7 and 1.2 or so.

    `g` is a matrix or a stack of them; the result is of `dtype`, in which it is computed: five
    steps of X ← aX + (bA + cA²)X with A = XXᵀ, whose coefficients are the ones of the post.

    >>> x = newton_schulz(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), torch.float64)
    >>> bool((torch.linalg.svdvals(x) - 1).abs().max() < 0.35)
    True
    """
    tall = g.shape[-2] > g.shape[-1]
    x: Tensor = g.to(dtype)
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


def muon_step(
    p: Param,
    lr: float,
    mom: float,
    grad_avg: Tensor,
    match_rms: bool = True,
    ns_dtype: torch.dtype = torch.bfloat16,
    **kwargs: Any,
) -> None:
    """p ← p - lr·s·NS(g + mom·m), with m from `average_grad` and NS from `newton_schulz`.

    s = 0.2·√max(rows, columns) makes the step as large as Adam's (arXiv 2502.16982, section 2.2),
    so that one lr serves both; without `match_rms` it is the post's √max(1, rows/columns).
    """
    update = as_matrix(p.grad.data.add(grad_avg, alpha=mom))
    rows, cols = update.shape
    scale = 0.2 * math.sqrt(max(rows, cols)) if match_rms else math.sqrt(max(1, rows / cols))
    turned = newton_schulz(update, ns_dtype).reshape(p.grad.data.shape)
    p.data.add_(turned, alpha=-lr * scale)


def Muon(
    params: Any,
    lr: Any,
    mom: float = 0.95,
    wd: float = 0.1,
    adam_mom: float = 0.9,
    sqr_mom: float = 0.95,
    eps: float = 1e-8,
    match_rms: bool = True,
) -> Optimizer:
    """Muon for what has 2 or more dimensions, AdamW for the rest, in one optimizer.

    Embeddings and the output layer are better left to AdamW: give them its chain by a rule, as in
    `Muon(param_rules(model, Rule(nn.Embedding, cbs=adamw_steppers)), lr=1e-3)`. `mom` is the
    momentum of the matrices, `adam_mom`, `sqr_mom` and `eps` are for the rest; lr and wd are for
    both, and a rule with `lr_mult` gives a group an lr of its own. See `muon_step`.
    """
    cbs = [weight_decay, average_grad, partial(muon_step, match_rms=match_rms)]
    groups = split_matrices(params, cbs, mom=mom)
    return Optimizer(groups, adamw_steppers, lr=lr, mom=adam_mom, sqr_mom=sqr_mom, eps=eps, wd=wd)
