"""How well the next token is foretold."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from treadle.metrics.base import AvgMetric, averaged
from treadle.metrics.checks import class_targets, real


@averaged(then=torch.exp)
def perplexity(
    inp: Tensor, targ: Tensor, axis: int = -1, ignore_index: int = -100
) -> tuple[Any, Any]:
    """exp of the mean cross entropy of a token, in nats: raw scores (N, ..., V) with the
    vocabulary on `axis` against tokens (N, ...). Tokens of `ignore_index` do not count, and each
    of the others counts alike, however they fall into batches.

    Raises:
        UsageError: if the shapes do not fit, or the targets are no tokens.

    >>> import torch
    >>> round(perplexity(torch.zeros(2, 3, 10), torch.ones(2, 3, dtype=torch.long)).item(), 4)
    10.0
    """
    targ = class_targets("perplexity", inp, targ, axis).reshape(-1).long()
    scores = real("perplexity", inp.movedim(axis, -1))
    scores = scores.reshape(-1, scores.shape[-1])
    total = F.cross_entropy(scores, targ, ignore_index=ignore_index, reduction="sum")
    return total, (targ != ignore_index).sum()


class Perplexity(AvgMetric):
    """`perplexity` as a class, in whose place the function serves as well.

    It is that of the predictions, whatever the loss adds to the cross entropy.
    """

    def __init__(self, axis: int = -1, ignore_index: int = -100) -> None:
        super().__init__(partial(perplexity, axis=axis, ignore_index=ignore_index))
