"""Precision, recall and their kin: functions of how often a class was right, given and true.

Three counts a class are all that they need: they stay on the device and add up over batches and
processes. Definitions and averages are those of scikit-learn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.metrics.base import SumMetric, Sums, pred_and_target
from treadle.metrics.checks import above, class_targets, same_shape

AVERAGES = ("binary", "macro", "micro", "weighted")


def class_counts(
    who: str, batch: tuple[Any, ...], axis: int, ignore_index: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For scores with C classes on `axis` against class indices: how often each class was right,
    given and true, int64 (C,); and how many targets were none of the classes, 0-d."""
    pred, targ = pred_and_target(who, batch)
    targ = class_targets(who, pred, targ, axis).flatten().long()
    answers, classes = pred.argmax(dim=axis).flatten(), pred.shape[axis]
    stray = (targ < 0) | (targ >= classes)
    if ignore_index is not None:
        stray = stray & (targ != ignore_index)
        counted = (targ != ignore_index) & ~stray
    else:
        counted = ~stray
    # A place in three tables that are one: bincount would read its greatest entry first, and wait.
    zero = torch.zeros(3 * classes, dtype=torch.int64, device=pred.device)
    safe = targ.clamp(0, classes - 1)
    places = torch.cat([safe, answers + classes, safe + 2 * classes])
    counts = torch.cat([counted & (answers == targ), counted, counted]).long()
    right, given, true = zero.scatter_add_(0, places, counts).view(3, classes)
    return right, given, true, stray.sum()


def label_counts(
    who: str, batch: tuple[Any, ...], thresh: float, sigmoid: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For scores (N, L) against 0 or 1 for each of L labels: how often each label was right, given
    and true, int64 (L,); and 0. Of shape (N,), it is one label."""
    pred, targ = pred_and_target(who, batch)
    given = above(who, pred, thresh, sigmoid)
    true = same_shape(who, pred, targ).bool()
    given, true = (t.reshape(-1, pred.shape[-1] if pred.ndim > 1 else 1) for t in (given, true))
    right = (given & true).sum(0)
    return right, given.sum(0), true.sum(0), torch.zeros_like(right[0])


class ClassScore(SumMetric):
    """A ratio of counts for each class, averaged over classes. A subclass says which ratio.

    Args:
        axis: where pred has its classes, two or more; the highest score is the answer.
        labels: the classes to average over; by default those that occur, as target or answer. One
            given here that never occurs has the score 0.
        pos_label: the class that "binary" is about.
        average: "binary" (of the class `pos_label`, for two classes), "macro" (the mean over
            classes), "weighted" (the same weighted by how often each is true) or "micro" (one
            ratio of the counts of all classes).
        ignore_index: targets that do not count, such as padding.

    A ratio without a denominator (a class that was never given, for precision) is 0, as it is in
    scikit-learn, without its warning.

    Raises:
        UsageError: for an unknown average; in a batch, for shapes that do not fit, or more than
            two classes under "binary"; when the value is read, for targets that are no class.
    """

    def __init__(
        self,
        axis: int = -1,
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str = "binary",
        ignore_index: int | None = None,
    ) -> None:
        if average not in AVERAGES:
            raise UsageError(f"average={average!r} is unknown; {nearest(average, AVERAGES)}")
        if average == "binary" and (labels is not None or pos_label not in (0, 1)):
            raise UsageError(
                f"average='binary' is of one class of two, pos_label=0 or 1; it was given "
                f"pos_label={pos_label!r} and labels={labels!r}. For classes of your choice give "
                "average='macro', 'micro' or 'weighted' with labels=."
            )
        self.axis, self.average, self.pos_label = axis, average, pos_label
        self.labels = list(labels) if labels else None
        self.ignore_index = ignore_index

    @abstractmethod
    def ratio(self, right: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of each class, from its counts."""

    def sums(self, *batch: Any) -> Sums:
        counts = class_counts(self.name, batch, self.axis, self.ignore_index)
        if self.average == "binary" and len(counts[0]) != 2:
            raise UsageError(
                f"{self.name} with average='binary' needs scores of two classes; on axis "
                f"{self.axis}, pred of shape {tuple(batch[0].shape)} has {len(counts[0])}. Give "
                "average='macro', 'micro' or 'weighted'."
            )
        return counts

    def result(self, right: Tensor, given: Tensor, true: Tensor, stray: Tensor) -> Tensor | None:
        check_no_stray(self.name, len(true), stray)
        if not self._anything(given, true):
            return None
        kept = self._kept(given + true)
        right, given, true = (counts[kept] for counts in (right, given, true))
        if self.average == "micro":
            right, given, true = (counts.sum(0, keepdim=True) for counts in (right, given, true))
        numerator, denominator = self.ratio(right, given, true)
        scores = numerator / denominator.where(denominator > 0, 1)
        weighted = self.average == "weighted" and true.any()
        return (scores * true).sum() / true.sum() if weighted else scores.mean()

    def _anything(self, given: Tensor, true: Tensor) -> bool:
        return bool(true.any())  # one of the classes is true of every sample

    def _kept(self, occurs: Tensor) -> Tensor:
        """The indices of the classes to average over."""
        if self.average == "binary":
            return torch.tensor([self.pos_label])
        if self.labels is None:
            return (occurs > 0).nonzero().flatten()
        unknown = [label for label in self.labels if not 0 <= label < len(occurs)]
        if unknown:
            raise UsageError(
                f"{self.name} is to average over the labels {unknown}, but pred has scores for the "
                f"classes 0 to {len(occurs) - 1}."
            )
        return torch.tensor(self.labels)


class MultiLabel(ClassScore):
    """The same for samples that may have several labels or none, and for one output a sample:
    scores (N, L), or (N,) for one label, against targets of that shape that are 0 or 1.

    Args:
        thresh: a label is given where its score is above this.
        sigmoid: whether scores go through a sigmoid first, as raw outputs must.
        labels, average: as in `ClassScore`; by default over all labels. "binary" is for one label.
    """

    def __init__(
        self,
        thresh: float = 0.5,
        sigmoid: bool = True,
        labels: Sequence[int] | None = None,
        average: str = "macro",
    ) -> None:
        super().__init__(average=average, labels=labels)
        self.thresh, self.sigmoid = thresh, sigmoid

    def sums(self, *batch: Any) -> Sums:
        counts = label_counts(self.name, batch, self.thresh, self.sigmoid)
        if self.average == "binary" and len(counts[0]) != 1:
            raise UsageError(
                f"{self.name} with average='binary' needs one label; pred of shape "
                f"{tuple(batch[0].shape)} has {len(counts[0])}. Give average='macro', 'micro' or "
                "'weighted'."
            )
        return (*counts, batch[0].numel())

    def result(self, *totals: Tensor) -> Tensor | None:
        *counts, elements = totals
        return super().result(*counts) if elements else None

    def _anything(self, given: Tensor, true: Tensor) -> bool:
        return True

    def _kept(self, occurs: Tensor) -> Tensor:
        if self.labels is None:
            return torch.arange(len(occurs))
        return super()._kept(occurs)


class Precision(ClassScore):
    """Of the answers that name a class, the share that is right.

    >>> import torch
    >>> precision = Precision()
    >>> precision.update(torch.tensor([[0.2, 0.8], [0.1, 0.9]]), torch.tensor([1, 0]))
    >>> precision.value
    0.5
    """

    name = "precision_score"

    def ratio(self, right: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        return right, given


class Recall(ClassScore):
    """Of the samples of a class, the share that is found."""

    name = "recall_score"

    def ratio(self, right: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        return right, true


class F1Score(ClassScore):
    """The harmonic mean of precision and recall."""

    name = "f1_score"
    beta: float = 1.0

    def ratio(self, right: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        b2 = self.beta**2
        return (1 + b2) * right, b2 * true + given


class FBeta(F1Score):
    """The harmonic mean of precision and recall in which recall counts `beta` times as much."""

    name = "fbeta_score"

    def __init__(
        self,
        beta: float,
        axis: int = -1,
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str = "binary",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(axis, labels, pos_label, average, ignore_index)
        self.beta = beta


class Jaccard(ClassScore):
    """Of the samples that are of a class or are given it, the share that is both."""

    name = "jaccard_score"

    def ratio(self, right: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        return right, true + given - right


class PrecisionMulti(MultiLabel, Precision):
    """`Precision` of several labels a sample."""


class RecallMulti(MultiLabel, Recall):
    """`Recall` of several labels a sample."""


class F1ScoreMulti(MultiLabel, F1Score):
    """`F1Score` of several labels a sample."""


class FBetaMulti(F1ScoreMulti):
    """`FBeta` of several labels a sample."""

    name = "fbeta_score"

    def __init__(
        self,
        beta: float,
        thresh: float = 0.5,
        sigmoid: bool = True,
        labels: Sequence[int] | None = None,
        average: str = "macro",
    ) -> None:
        super().__init__(thresh, sigmoid, labels, average)
        self.beta = beta


class JaccardMulti(MultiLabel, Jaccard):
    """`Jaccard` of several labels a sample."""


def check_no_stray(who: str, classes: int, stray: Tensor) -> None:
    """Raises UsageError if targets were seen that are none of the classes 0 to `classes` - 1."""
    if stray:
        raise UsageError(
            f"{who} saw {int(stray)} targets that are none of the classes 0 to {classes - 1}, "
            "which pred has scores for; give ignore_index= if they are not to count."
        )
