"""Train on mixtures of two samples."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from treadle.errors import CallbackError, UsageError
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors


class MixUp(Callback):
    """Trains on `lam * x + (1 - lam) * x[others]`, with the losses of both targets mixed alike
    (arXiv 1710.09412).

    `others` is a random order of the batch; `lam`, one number a sample, is drawn from
    Beta(alpha, alpha) and taken from 1 if it is below one half, so that a sample keeps the greater
    part of itself. Several inputs, also within tuples or dicts, are mixed alike; all must be
    floating-point. Targets may be anything that the loss takes: not they are mixed, their losses
    are. These must come one a sample, so the loss needs a `reduction`, as an attribute or as a
    keyword; what was mixed is then averaged (also where class weights would weigh the average), or
    summed if that is the loss's own reduction. Validation is as without it.

    Random numbers are drawn on the batch's device, from torch's generator there.

    Args:
        alpha: the greater, the more evenly two samples are mixed; above 0.

    Raises:
        UsageError: if `alpha` is not above 0; at a batch, if an input is not floating-point.
        CallbackError: when a fit starts, if the loss has no `reduction` or `CutMix` is there too.

    >>> mix = MixUp(alpha=0.2)
    """

    order = -1  # mixes the loss before others add to it
    run_valid = False

    def __init__(self, alpha: float = 0.4) -> None:
        if not alpha > 0:
            raise UsageError(f"MixUp(alpha={alpha}) draws from Beta(alpha, alpha); give above 0.")
        self.alpha = alpha

    def before_fit(self) -> None:
        if getattr(self.learn, "cut_mix", None) is not None:
            raise CallbackError("MixUp and CutMix would both replace the loss; use one of them.")
        self.reduction = _reduction(self.loss_func)
        if self.reduction is None:
            raise CallbackError(
                f"MixUp weighs the loss of each sample, and {self.loss_func} gives one for the "
                'batch; let it take reduction="none" as a keyword or an attribute, as torch\'s '
                "losses do, or use CutMix, which does not ask for it."
            )

    def before_batch(self) -> None:
        tensors: list[Tensor] = []
        map_tensors(tensors.append, self.xb)
        _check_floats(tensors)
        n, device = len(tensors[0]), tensors[0].device
        # Of two shares that add up to 1, as Dirichlet gives, each is drawn from Beta. To check its
        # arguments would wait for the device.
        alphas = torch.full((n, 2), self.alpha, device=device)
        self.lam = Dirichlet(alphas, validate_args=False).sample().amax(1)
        others = torch.rand(n, device=device).argsort()
        self.learn.xb = map_tensors(lambda x: _mix(x, x[others], self.lam), self.xb)
        self.other_yb = map_tensors(lambda y: y[others], self.yb)

    def after_loss(self) -> None:
        with self.learn.loss_not_reduced():
            own = self.loss_func(self.pred, *self.yb)
            other = self.loss_func(self.pred, *self.other_yb)
        n = len(self.lam)
        _check_per_sample(own, n)
        # Several numbers a sample may stand in one axis with the samples, these coming first.
        mixed = _mix(own.reshape(n, -1), other.reshape(n, -1), self.lam)
        parts = {"sum": 1, "batchmean": n}.get(str(self.reduction), mixed.numel())
        self.learn.loss = mixed.sum() / parts


def _mix(x: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """`lam * x + (1 - lam) * other`, with a number of `lam` for each sample."""
    return torch.lerp(other, x, lam.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))


def _reduction(loss_func: Any) -> str | None:
    """What the loss does with the losses of the samples; None if it has no such choice."""
    if hasattr(loss_func, "reduction"):
        return str(loss_func.reduction)
    try:
        return str(inspect.signature(loss_func).parameters["reduction"].default)
    except (KeyError, TypeError, ValueError):  # no such parameter, or no signature to read
        return None


def _check_floats(tensors: list[Tensor]) -> None:
    if not all(x.is_floating_point() for x in tensors):
        kinds = ", ".join(str(x.dtype) for x in tensors)
        raise UsageError(f"MixUp adds up parts of inputs, and got {kinds}; give floating-point.")


def _check_per_sample(loss: Tensor, n: int) -> None:
    if loss.numel() % n:
        raise CallbackError(
            f'MixUp asked the loss for reduction="none" and got the shape {tuple(loss.shape)} for '
            f"{n} samples; let it give at least one number a sample."
        )
