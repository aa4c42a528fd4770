"""Scores of all tokens, and the cross entropy of them, where most of a language model's time goes.

On a CPU the scores of one batch take hundreds of megabytes. As torch computes a loss it makes four
tensors of that size, and fresh memory comes from the system page by page, each zeroed first: that
costs as much as the arithmetic. Here there are two, scores and gradient, in memory that is used
again when nobody has the batch before any more. On other devices, in other types, and where torch
compiles or exports a model, torch's own functions do the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from treadle.data.buffers import Buffers
from treadle.losses import CrossEntropyLossFlat
from treadle.registry import register

__all__ = ["TokenCrossEntropy", "scores"]

_BUFFERS = Buffers(most=2)
_LARGE = 1 << 20  # numbers below which memory is not what takes the time
_ROWS = 64  # whose scores are worked on while they are in the processor's cache
_RARE = 1e-30  # a probability whose logarithm float32 does not hold to the last digits


def scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(x, weight, bias)`: features (..., F), a row of weights for each of V tokens, to
    (..., V)."""
    if not _is_ours(x, x.numel() // max(x.shape[-1], 1) * len(weight)):
        return F.linear(x, weight, bias)
    flat: Tensor = _Scores.apply(x.flatten(0, -2), weight, bias)
    return flat.view(*x.shape[:-1], len(weight))


@register
class TokenCrossEntropy(CrossEntropyLossFlat):
    """Cross entropy of tokens: raw scores (..., V) against tokens (...), int64.

    It is `CrossEntropyLossFlat`, and gives what that gives but for rounding, in less time and
    memory where scores are many.

    >>> loss = TokenCrossEntropy()
    >>> round(float(loss(torch.zeros(2, 5, 100), torch.zeros(2, 5, dtype=torch.long))), 4)
    4.6052
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        plain = self.reduction == "mean" and self.weight is None and not self.label_smoothing
        if not (plain and self.axis == -1 and _is_ours(input) and input.is_contiguous()):
            return super().forward(input, target)
        flat, tokens = input.view(-1, input.shape[-1]), target.reshape(-1)
        loss: Tensor = _CrossEntropy.apply(flat, tokens, self.ignore_index)
        return loss


def _is_ours(t: Any, scores: int | None = None) -> bool:
    return (
        type(t) is Tensor
        and t.device.type == "cpu"
        and t.dtype == torch.float32
        and (t.numel() if scores is None else scores) >= _LARGE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Scores(torch.autograd.Function):
    """The bias is one more feature, which is 1: added apart, and its gradient summed up apart, it
    would cost two more passes over all scores."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.has_bias = bias is not None
        if bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            weight = torch.cat([weight, bias[:, None]], 1)
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.t(), out=_BUFFERS.take(len(x), len(weight)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        of_weight = grad.t() @ x if any(ctx.needs_input_grad[1:]) else None
        if not ctx.has_bias:
            return of_x, of_weight, None
        of_x = None if of_x is None else of_x[:, :-1]
        if of_weight is None:
            return of_x, None, None
        return of_x, of_weight[:, :-1].contiguous(), of_weight[:, -1].contiguous()


class _CrossEntropy(torch.autograd.Function):
    """The gradient is the probabilities less one at the target: both are there once the loss is,
    so that backward has nothing left to do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, ignored: int) -> Tensor:
        counted = target != ignored
        token = torch.where(counted, target, 0)[:, None]
        weight = counted.to(x) / counted.sum()
        grad = _BUFFERS.take(*x.shape)
        losses = []
        for i in range(0, len(x), _ROWS):
            part, rows = grad[i : i + _ROWS], slice(i, i + _ROWS)
            torch.softmax(x[rows], 1, out=part)
            losses.append(_nats(part.gather(1, token[rows])[:, 0], x[rows], token[rows]))
            part.scatter_add_(1, token[rows], part.new_full((len(part), 1), -1.0))
            part.mul_(weight[rows, None])
        ctx.save_for_backward(grad)  # let go of when it is used
        return torch.where(counted, torch.cat(losses) * weight, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (whole,) = ctx.saved_tensors
        return whole if grad.item() == 1 else whole * grad, None, None


def _nats(probability: Tensor, x: Tensor, token: Tensor) -> Tensor:
    """-log of the probabilities (B,) that softmax gave the tokens (B, 1)."""
    losses = -probability.log()
    if (rare := probability < _RARE).any():
        exact = torch.log_softmax(x[rare], 1).gather(1, token[rare])
        losses[rare] = -exact[:, 0]
    return losses
