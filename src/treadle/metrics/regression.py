"""How far numbers are from numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.metrics.base import SumMetric, Sums, averaged, pred_and_target, wide
from treadle.metrics.checks import real, same_shape


@averaged()
def mse(inp: Tensor, targ: Tensor) -> tuple[Any, Any]:
    """Mean squared error over all elements of two tensors of one shape, up to axes of length 1.

    Raises:
        UsageError: if the shapes differ by more.

    >>> import torch
    >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])).item()
    2.0
    """
    return _total(_difference("mse", inp, targ).square()), targ.numel()


@averaged(then=torch.sqrt)
def rmse(inp: Tensor, targ: Tensor) -> tuple[Any, Any]:
    """The square root of `mse`; over a pass, of the mean of the pass."""
    return _total(_difference("rmse", inp, targ).square()), targ.numel()


@averaged()
def mae(inp: Tensor, targ: Tensor) -> tuple[Any, Any]:
    """Mean absolute error; arguments as in `mse`."""
    return _total(_difference("mae", inp, targ).abs()), targ.numel()


class R2Score(SumMetric):
    """The coefficient of determination: 1 less the squared error over the targets' variance.

    All elements are taken together. Constant targets give 1.0 if every prediction is exact, else
    0.0, as in scikit-learn; fewer than two elements give None.

    >>> import torch
    >>> r2 = R2Score()
    >>> r2.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    >>> r2.value
    0.5
    """

    name = "r2_score"

    def sums(self, *batch: Any) -> Sums:
        pred, targ = pred_and_target(self.name, batch)
        error = _total(_difference(self.name, pred, targ).square())
        y = wide(real(self.name, targ))
        n = torch.full_like(error, targ.numel())
        mean = y.sum() / n.clamp(min=1)
        return n, mean, (y - mean).square().sum(), error

    def plus(self, mine: Sums, others: Sums) -> Sums:
        """Means and sums of squares about them: of squares about zero, targets far from zero would
        lose their digits (Chan, Golub, LeVeque, 1983)."""
        n, mean, squares, error = mine
        n2, mean2, squares2, error2 = others
        total = (n + n2).clamp(min=1)
        apart = mean2 - mean
        between = apart.square() * n * n2 / total
        return n + n2, mean + apart * n2 / total, squares + squares2 + between, error + error2

    def result(self, n: Tensor, mean: Tensor, squares: Tensor, error: Tensor) -> float | None:
        if n < 2:
            return None
        if squares == 0:
            return float(error == 0)
        return float(1 - error / squares)


def _difference(who: str, inp: Tensor, targ: Tensor) -> Tensor:
    targ = same_shape(who, inp, targ)
    return real(who, inp) - real(who, targ)


def _total(t: Tensor) -> Tensor:
    """The sum in float64 (see `wide`), without a copy of `t` in it."""
    return t.sum(dtype=torch.float32 if t.device.type == "mps" else torch.float64)
