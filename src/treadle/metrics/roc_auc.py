"""The area under the ROC curve.

It depends on how all samples rank, so unlike the other metrics these keep every score on the
device until the value is read: 4 bytes a sample and class.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.metrics.base import SumMetric, Sums, pred_and_target
from treadle.metrics.checks import class_targets, describe, real, same_shape
from treadle.metrics.class_scores import check_no_stray

AVERAGES = ("macro", "micro", "weighted")


def area(scores: Tensor, true: Tensor) -> Tensor:
    """The probability that a true sample scores higher than another, ties counting half; NaN if
    there are no true samples, no others, or a score is NaN. `scores` and bool `true` are (N,).

    >>> area(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    tensor(0.7500, dtype=torch.float64)
    """
    _, place, ties = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = ties.cumsum(0).double() - (ties - 1) / 2  # of tied scores, their mean rank
    positives = true.sum().double()
    pairs = positives * (true.numel() - positives)
    above = ranks[place][true].sum() - positives * (positives + 1) / 2
    ratio: Tensor = above / pairs
    return ratio.where(~scores.isnan().any(), torch.nan)


class RankedMetric(SumMetric):
    """Keeps scores (N, C) and what is true, for `columns` to make of them the scores and truths of
    each class, both (N, C)."""

    name = "roc_auc_score"

    def __init__(self, average: str = "macro") -> None:
        if average not in AVERAGES:
            raise UsageError(f"average={average!r} is unknown; {nearest(average, AVERAGES)}")
        self.average = average

    @abstractmethod
    def columns(self, scores: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        """What ranks the samples for each class, and of which they are."""

    def _kept(self, scores: Tensor, targ: Tensor) -> Sums:
        # Copies: a compiled model may write its next answer where it wrote this one.
        return [real(self.name, scores).clone()], [targ.clone()]

    def result(self, scores: list[Tensor], targ: list[Tensor]) -> float | None:
        all_scores, all_targ = torch.cat(scores), torch.cat(targ)
        if all_scores.device.type == "mps":  # which has no float64
            all_scores, all_targ = all_scores.cpu(), all_targ.cpu()
        ranked, true = self.columns(all_scores.double(), all_targ)
        if self.average == "micro":
            ranked, true = ranked.reshape(-1, 1), true.reshape(-1, 1)
        areas = torch.stack([area(*pair) for pair in zip(ranked.T, true.T, strict=True)])
        defined = true.any(0) & ~true.all(0)
        weights = true.sum(0).double() if self.average == "weighted" else torch.ones_like(areas)
        if not defined[weights > 0].all() or not weights.any():
            return None
        return float((areas.where(weights > 0, 0) * weights).sum() / weights.sum())


class RocAuc(RankedMetric):
    """The area under the ROC curve of each class against the rest, averaged; of two classes, that
    of the second.

    Scores (N, ..., C) with the classes on `axis` against class indices (N, ...).

    Args:
        average: "macro" (the mean over classes), "weighted" (by how often each is true) or
            "micro" (all classes in one ranking).
        softmax: whether scores go through a softmax first, as raw outputs must: it changes which
            sample ranks higher for a class.

    The value is None where it is not defined: a class (for "weighted": one that occurs) has no
    samples, or all.

    >>> import torch
    >>> auc = RocAuc()
    >>> auc.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 0]))
    >>> auc.update(torch.tensor([[0.65, 0.35], [0.2, 0.8]]), torch.tensor([1, 1]))
    >>> auc.value
    0.75
    """

    def __init__(self, axis: int = -1, average: str = "macro", softmax: bool = True) -> None:
        super().__init__(average)
        self.axis, self.softmax = axis, softmax

    def sums(self, *batch: Any) -> Sums:
        pred, targ = pred_and_target(self.name, batch)
        targ = class_targets(self.name, pred, targ, self.axis)
        scores = pred.movedim(self.axis, -1)
        return self._kept(scores.reshape(-1, scores.shape[-1]), targ.flatten())

    def columns(self, scores: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        classes = torch.arange(scores.shape[1], device=targ.device)
        check_no_stray(self.name, len(classes), ((targ < 0) | (targ >= len(classes))).sum())
        true = targ[:, None] == classes
        if len(classes) == 2:
            # the difference ranks as the softmax does, also where that is 1 to the last digit
            ranked = scores.diff(dim=1) if self.softmax else scores[:, 1:]
            return ranked, true[:, 1:]
        return scores.softmax(1) if self.softmax else scores, true


class RocAucMulti(RankedMetric):
    """The area under the ROC curve of each label, averaged, for samples that may have several
    labels or none: scores (N, L) against targets of that shape that are 0 or 1.

    Only the ranking counts, so raw outputs and probabilities give the same. `average` and where
    the value is None: as in `RocAuc`.
    """

    def sums(self, *batch: Any) -> Sums:
        pred, targ = pred_and_target(self.name, batch)
        labels = pred.shape[-1] if pred.ndim > 1 else 1
        true = same_shape(self.name, pred, targ).bool()
        return self._kept(pred.reshape(-1, labels), true.reshape(-1, labels))

    def columns(self, scores: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        return scores, targ


class RocAucBinary(RocAuc):
    """The area under the ROC curve of a question of yes or no: scores of two classes on `axis`
    against class indices, or one score a sample against 0 or 1."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__(axis)

    def sums(self, *batch: Any) -> Sums:
        pred, targ = pred_and_target(self.name, batch)
        if pred.numel() == targ.numel():
            score = real(self.name, pred).reshape(-1)
            true = same_shape(self.name, pred, targ).reshape(-1).bool().long()
            return self._kept(torch.stack([torch.zeros_like(score), score], 1), true)
        if pred.shape[self.axis] != 2:
            raise UsageError(
                f"RocAucBinary got pred {describe(pred)} and targ {describe(targ)}; expected "
                f"scores of two classes on axis {self.axis}, or one a sample. RocAuc takes more."
            )
        return super().sums(pred, targ)
