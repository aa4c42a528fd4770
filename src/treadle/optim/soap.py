"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner. arXiv 2409.11321."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.optim.muon import as_matrix
from treadle.optim.optimizer import Optimizer
from treadle.optim.recipes import adamw_steppers
from treadle.optim.rules import split_matrices
from treadle.optim.steppers import Param, State, debias, weight_decay


def turned(g: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """leftᵀ·g·right: the matrix `g` in the bases whose columns are given; None is no turn."""
    g = g if left is None else left.mT @ g
    return g if right is None else g @ right


def soap_step(
    p: Param,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    step: int = 0,
    left: Tensor | None = None,
    right: Tensor | None = None,
    grad_avg: Tensor | None = None,
    sqr_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """p ← p - lr·L·[LᵀmR / (√v̂ + eps)]·Rᵀ/(1 - mom^t), with v the average of (LᵀgR)².

    arXiv 2409.11321, algorithm 3, on the bases L and R of `soap_basis`, which comes after it: the
    gradient at hand never turns itself, and the first step only builds the bases, as in the
    authors' code. Keeps `grad_avg`, in the coordinates of p, and `sqr_avg`, in the turned ones.
    """
    g = _precise(p.grad.data)
    if grad_avg is None or sqr_avg is None or step == 0:
        return {"grad_avg": torch.zeros_like(g), "sqr_avg": torch.zeros_like(g)}
    grad_avg.mul_(mom).add_(g, alpha=1 - mom)
    sqr_avg.mul_(sqr_mom).add_(turned(g, left, right) ** 2, alpha=1 - sqr_mom)
    denom = (sqr_avg / debias(sqr_mom, 1 - sqr_mom, step)).sqrt() + eps
    update = turned(turned(grad_avg, left, right) / denom, _mT(left), _mT(right))
    p.data.add_(update.reshape(p.grad.data.shape), alpha=-lr / debias(mom, 1 - mom, step))
    return {"grad_avg": grad_avg, "sqr_avg": sqr_avg}


def soap_basis(
    p: Param,
    sqr_mom: float,
    every: int,
    max_dim: int,
    step: int = 0,
    left: Tensor | None = None,
    right: Tensor | None = None,
    left_avg: Tensor | None = None,
    right_avg: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """A ← sqr_mom·A + (1-sqr_mom)·ggᵀ, B likewise of gᵀg; every so many steps L ← Q of QR(A·L).

    R ← Q of QR(B·R). arXiv 2409.11321, algorithms 3 and 4. The first time L and R are the
    eigenvectors of A and B. A side longer than `max_dim` is not turned. Keeps `step`, `left` and
    `right`, which are L and R, `left_avg` and `right_avg`, which are A and B.
    """
    g, renew = _precise(p.grad.data), step % every == 0
    stats: State = {"step": step + 1}
    if g.shape[0] <= max_dim:
        both = _renewed(left, left_avg, g @ g.mT, sqr_mom, renew)
        stats["left"], stats["left_avg"] = both
    if g.shape[1] <= max_dim:
        both = _renewed(right, right_avg, g.mT @ g, sqr_mom, renew)
        stats["right"], stats["right_avg"] = both
    return stats


def _renewed(
    basis: Tensor | None, avg: Tensor | None, square: Tensor, sqr_mom: float, renew: bool
) -> tuple[Tensor, Tensor]:
    """The basis of one side and the average it comes from, after a gradient with that square."""
    if basis is None or avg is None:
        avg = square * (1 - sqr_mom)
        # As it will be when it was saved and loaded: products of other layouts differ by bits.
        return torch.linalg.eigh(avg).eigenvectors.contiguous(), avg
    avg.mul_(sqr_mom).add_(square, alpha=1 - sqr_mom)
    return (torch.linalg.qr(avg @ basis).Q.contiguous() if renew else basis), avg


def _precise(g: Tensor) -> Tensor:
    """`g` as a matrix of at least float32: no 16-bit type has eigenvectors in torch."""
    return as_matrix(g).to(torch.promote_types(g.dtype, torch.float32))


def _mT(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.mT


def SOAP(
    params: Any,
    lr: Any,
    mom: float = 0.95,
    sqr_mom: float = 0.95,
    eps: float = 1e-8,
    wd: float = 0.01,
    every: int = 10,
    max_dim: int = 10_000,
) -> Optimizer:
    """Adam in turned coordinates for what has 2 or more dimensions, AdamW for the rest.

    The bases are renewed every `every` steps. A side longer than `max_dim`, such as that of a
    vocabulary, is left as it is. See `soap_step` and `soap_basis`.
    """
    cbs = [weight_decay, soap_step, soap_basis]
    groups = split_matrices(params, cbs, every=every, max_dim=max_dim)
    return Optimizer(groups, adamw_steppers, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)
