"""The rules: one function for one parameter, in the order of rising complexity.

A stepper is called with a parameter and, as keywords, with the hyper-parameters of its group, the
parameter's flags and the parameter's state. It changes `p.data` and `p.grad` in place, and what it
returns (a dict) is kept as the parameter's state for the steppers after it and for the next step:

    weight_decay -> average_grad -> average_sqr_grad -> step_stat -> adam_step
                    grad_avg        sqr_avg             step

So an optimizer is a chain of these, and a new one is a new function of the same shape; the recipes
beside this file tie the usual chains. In the formulas p is the parameter, g its gradient, m and v
the two averages, t the number of steps that the parameter has taken. Averages start as zeros with
the shape, dtype and device of the gradient.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Any]


class Param(Protocol):
    """What a stepper sees of a parameter: its values and a gradient that is there."""

    data: Tensor  # any shape
    grad: Tensor  # same shape as data


def sgd_step(p: Param, lr: float, **kwargs: Any) -> None:
    """p ← p - lr·g. Robbins and Monro, 1951, doi:10.1214/aoms/1177729586.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> w.grad = torch.tensor([0.5, -0.5])
    >>> sgd_step(w, lr=1.0)
    >>> w.data
    tensor([0.5000, 2.5000])
    """
    p.data.add_(p.grad.data, alpha=-lr)


def weight_decay(p: Param, lr: float, wd: float, do_wd: bool = True, **kwargs: Any) -> None:
    """p ← (1 - lr·wd)·p, away from the gradient ("decoupled"). arXiv 1711.05101.

    The flag `do_wd=False` spares a parameter, usually a bias or the weight of a norm.
    """
    if do_wd and wd != 0:
        p.data.mul_(1 - lr * wd)


def l2_reg(p: Param, lr: float, wd: float, do_wd: bool = True, **kwargs: Any) -> None:
    """g ← g + wd·p: the gradient of wd/2·|p|², so that averages see it. arXiv 1711.05101, eq. 2.

    The flag `do_wd=False` spares a parameter.
    """
    if do_wd and wd != 0:
        p.grad.data.add_(p.data, alpha=wd)


def average_grad(
    p: Param,
    mom: float,
    dampening: bool = False,
    grad_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """m ← mom·m + d·g, with d = 1 - mom if `dampening`, else 1. Keeps `grad_avg`.

    Without dampening it is the momentum of SGD (Polyak, 1964, doi:10.1016/0041-5553(64)90137-5),
    with it the first moment of Adam (arXiv 1412.6980).
    """
    if grad_avg is None:
        grad_avg = torch.zeros_like(p.grad.data)
    damp = 1 - mom if dampening else 1.0
    grad_avg.mul_(mom).add_(p.grad.data, alpha=damp)
    return {"grad_avg": grad_avg}


def average_sqr_grad(
    p: Param,
    sqr_mom: float,
    dampening: bool = True,
    sqr_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """v ← sqr_mom·v + d·g², with d = 1 - sqr_mom if `dampening`, else 1. Keeps `sqr_avg`.

    Without dampening and with sqr_mom = 1 it is the sum of Adagrad (Duchi et al., JMLR 12, 2011),
    with it the second moment of RMSProp and Adam (arXiv 1412.6980).
    """
    if sqr_avg is None:
        sqr_avg = torch.zeros_like(p.grad.data)
    damp = 1 - sqr_mom if dampening else 1.0
    sqr_avg.mul_(sqr_mom).addcmul_(p.grad.data, p.grad.data, value=damp)
    return {"sqr_avg": sqr_avg}


def momentum_step(p: Param, lr: float, grad_avg: Tensor, **kwargs: Any) -> None:
    """p ← p - lr·m, with m from `average_grad`. Sutskever et al., ICML 2013, section 2."""
    p.data.add_(grad_avg, alpha=-lr)


def nesterov_step(p: Param, lr: float, mom: float, grad_avg: Tensor, **kwargs: Any) -> None:
    """p ← p - lr·(g + mom·m), with m from `average_grad`. Sutskever et al., ICML 2013, eq. 3-4.

    It is Nesterov's momentum, written for the point at which the next gradient is taken.
    """
    p.data.add_(p.grad.data.add(grad_avg, alpha=mom), alpha=-lr)


def rms_prop_step(
    p: Param,
    lr: float,
    sqr_avg: Tensor,
    eps: float,
    grad_avg: Tensor | None = None,
    **kwargs: Any,
) -> None:
    """p ← p - lr·g / (√v + eps), with m in place of g if the chain keeps `grad_avg`.

    Hinton, Neural Networks for Machine Learning, 2012, lecture 6e; arXiv 1308.0850, section 4.2.
    """
    denom = sqr_avg.sqrt().add_(eps)
    p.data.addcdiv_(p.grad.data if grad_avg is None else grad_avg, denom, value=-lr)


def step_stat(p: Param, step: int = 0, **kwargs: Any) -> State:
    """t ← t + 1 for each parameter, so that one unfrozen late starts at 1. Keeps `step`."""
    return {"step": step + 1}


def debias(mom: float, damp: float, step: int) -> float:
    """The sum of the weights in an average after `step` steps: damp·(1 - mom^step) / (1 - mom).

    An average divided by it is unbiased. arXiv 1412.6980, section 3.

    >>> debias(mom=0.9, damp=1 - 0.9, step=1) == 1 - 0.9
    True
    >>> debias(mom=1, damp=1, step=5)
    5
    """
    return damp * step if mom == 1 else damp * (1 - mom**step) / (1 - mom)


def adam_step(
    p: Param,
    lr: float,
    mom: float,
    step: int,
    sqr_mom: float,
    grad_avg: Tensor,
    sqr_avg: Tensor,
    eps: float,
    **kwargs: Any,
) -> None:
    """p ← p - lr·m̂ / (√v̂ + eps), with m̂ = m/(1 - mom^t), v̂ = v/(1 - sqr_mom^t). arXiv 1412.6980."""
    debias1 = debias(mom, 1 - mom, step)
    debias2 = debias(sqr_mom, 1 - sqr_mom, step)
    denom = (sqr_avg / debias2).sqrt() + eps
    p.data.addcdiv_(grad_avg, denom, value=-lr / debias1)


def radam_step(
    p: Param,
    lr: float,
    mom: float,
    step: int,
    sqr_mom: float,
    grad_avg: Tensor,
    sqr_avg: Tensor,
    eps: float,
    beta: float,
    **kwargs: Any,
) -> None:
    """p ← p - lr·r·m̂ / (√v̂ + eps) once ρ > 5, else p ← p - lr·m̂. arXiv 1908.03265, algorithm 2.

    ρ∞ = 2/(1 - sqr_mom) - 1, ρ = ρ∞ - 2t·sqr_mom^t/(1 - sqr_mom^t) and
    r² = (ρ - 4)(ρ - 2)ρ∞ / ((ρ∞ - 4)(ρ∞ - 2)ρ). The paper waits for ρ > 4; 5 is what its authors'
    code and torch use. A `beta` other than 0 takes the softplus with that beta of the denominator
    (arXiv 1908.00700).
    """
    debias1 = debias(mom, 1 - mom, step)
    debias2 = debias(sqr_mom, 1 - sqr_mom, step)
    r_inf = 2 / (1 - sqr_mom) - 1
    r = r_inf - 2 * step * sqr_mom**step / (1 - sqr_mom**step)
    if r <= 5:
        p.data.add_(grad_avg, alpha=-lr / debias1)
        return
    rect = math.sqrt((r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r))
    denom = (sqr_avg / debias2).sqrt() + eps
    if beta != 0:
        denom = F.softplus(denom, beta)
    p.data.addcdiv_(grad_avg, denom, value=-lr * rect / debias1)


def qhadam_step(
    p: Param,
    lr: float,
    mom: float,
    sqr_mom: float,
    sqr_avg: Tensor,
    nu_1: float,
    nu_2: float,
    step: int,
    grad_avg: Tensor,
    eps: float,
    **kwargs: Any,
) -> None:
    """p ← p - lr·((1-ν₁)g + ν₁m̂) / (√((1-ν₂)g² + ν₂v̂) + eps). arXiv 1810.06801, section 4.

    ν₁ = ν₂ = 1 is Adam.
    """
    debias1 = debias(mom, 1 - mom, step)
    debias2 = debias(sqr_mom, 1 - sqr_mom, step)
    g = p.grad.data
    num = (1 - nu_1) * g + nu_1 * (grad_avg / debias1)
    denom = ((1 - nu_2) * g**2 + nu_2 * (sqr_avg / debias2)).sqrt() + eps
    p.data.addcdiv_(num, denom, value=-lr)


def larc_layer_lr(
    p: Param,
    lr: float,
    trust_coeff: float,
    wd: float,
    eps: float,
    clip: bool = True,
    **kwargs: Any,
) -> State:
    """lr_p = lr·trust_coeff·|p| / (|g| + wd·|p| + eps), at most lr if `clip`. arXiv 1708.03888.

    Norms are over the whole parameter. Keeps `local_lr`, a 0-d tensor, so that nothing waits for
    the device. With |p| = 0 or |g| = 0 there is no ratio to trust and lr_p = lr: a bias that
    starts at zero would otherwise stay there.
    """
    p_norm = torch.linalg.vector_norm(p.data)
    g_norm = torch.linalg.vector_norm(p.grad.data)
    local_lr = lr * trust_coeff * p_norm / (g_norm + wd * p_norm + eps)
    if clip:
        local_lr = local_lr.clamp(max=lr)
    has_ratio = (p_norm > 0) & (g_norm > 0)
    return {"local_lr": torch.where(has_ratio, local_lr, lr)}


def larc_step(p: Param, local_lr: Tensor, grad_avg: Tensor | None = None, **kwargs: Any) -> None:
    """p ← p - lr_p·g, with m in place of g if the chain keeps `grad_avg`. arXiv 1708.03888."""
    p.data.sub_(local_lr * (p.grad.data if grad_avg is None else grad_avg))


def lamb_step(
    p: Param,
    lr: float,
    mom: float,
    step: int,
    sqr_mom: float,
    grad_avg: Tensor,
    sqr_avg: Tensor,
    eps: float,
    **kwargs: Any,
) -> None:
    """p ← p - lr·q·u, where u = m̂ / (√v̂ + eps) and q = min(|p|/|u|, 10). arXiv 1904.00962.

    Norms are over the whole parameter; q = 1 where one of them is 0. The bound of 10 is fastai's
    choice of the φ that the paper leaves open.
    """
    debias1 = debias(mom, 1 - mom, step)
    debias2 = debias(sqr_mom, 1 - sqr_mom, step)
    update = (grad_avg / debias1) / ((sqr_avg / debias2).sqrt() + eps)
    p_norm = torch.linalg.vector_norm(p.data)
    u_norm = torch.linalg.vector_norm(update)
    has_ratio = (p_norm > 0) & (u_norm > 0)
    trust = torch.where(has_ratio, (p_norm / u_norm).clamp(max=10), 1.0)
    p.data.sub_(lr * trust * update)
