"""Scores that are fair where some classes are rare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.metrics.base import SumMetric, Sums
from treadle.metrics.class_scores import check_no_stray, class_counts, label_counts


class BalancedAccuracy(SumMetric):
    """The mean over classes of the share of each that is found; classes without a target are left
    out. Scores with the classes on `axis` against class indices.

    Args:
        adjusted: scaled so that guessing scores 0 and perfection 1; None where only one class has
            targets.

    >>> import torch
    >>> balanced = BalancedAccuracy()
    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    >>> balanced.update(scores, torch.tensor([0, 0, 0, 1]))
    >>> balanced.value
    0.5
    """

    name = "balanced_accuracy_score"

    def __init__(
        self, axis: int = -1, adjusted: bool = False, ignore_index: int | None = None
    ) -> None:
        self.axis, self.adjusted, self.ignore_index = axis, adjusted, ignore_index

    def sums(self, *batch: Any) -> Sums:
        return class_counts(self.name, batch, self.axis, self.ignore_index)

    def result(self, right: Tensor, given: Tensor, true: Tensor, stray: Tensor) -> Tensor | None:
        check_no_stray(self.name, len(true), stray)
        seen = true > 0
        classes = int(seen.sum())
        if classes < 1 + self.adjusted:
            return None
        score = (right[seen] / true[seen]).mean()
        return (score - 1 / classes) / (1 - 1 / classes) if self.adjusted else score


class MatthewsCorrCoef(SumMetric):
    """The correlation of answers and targets, from -1 to 1, for two or more classes
    (10.1016/j.compbiolchem.2004.09.006). 0 where answers or targets are all of one class.

    Scores with the classes on `axis` against class indices.
    """

    name = "matthews_corrcoef"

    def __init__(self, axis: int = -1, ignore_index: int | None = None) -> None:
        self.axis, self.ignore_index = axis, ignore_index

    def sums(self, *batch: Any) -> Sums:
        return class_counts(self.name, batch, self.axis, self.ignore_index)

    def result(self, right: Tensor, given: Tensor, true: Tensor, stray: Tensor) -> Tensor | None:
        check_no_stray(self.name, len(true), stray)
        n = true.sum()
        if not n:
            return None
        together = right.sum() / n - (given / n) @ (true / n)
        spread = (1 - (given / n).square().sum()) * (1 - (true / n).square().sum())
        one_class = (given == n).any() or (true == n).any()
        return torch.zeros(()) if one_class else together / spread.sqrt()


class MatthewsCorrCoefMulti(MatthewsCorrCoef):
    """`MatthewsCorrCoef` of scores against targets of their shape that are 0 or 1, all elements
    taken together; `thresh` and `sigmoid` as in `accuracy_multi`."""

    def __init__(self, thresh: float = 0.5, sigmoid: bool = True) -> None:
        super().__init__()
        self.thresh, self.sigmoid = thresh, sigmoid

    def sums(self, *batch: Any) -> Sums:
        right, given, true, stray = label_counts(self.name, batch, self.thresh, self.sigmoid)
        right, given, true = right.sum(), given.sum(), true.sum()
        n = batch[0].numel()
        both_wrong = n - given - true + right  # neither given nor true: right about class 0
        return (
            torch.stack([both_wrong, right]),
            torch.stack([n - given, given]),
            torch.stack([n - true, true]),
            stray,
        )
