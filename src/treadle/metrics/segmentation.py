"""How well regions overlap, over all pixels of a pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.metrics.base import SumMetric, Sums, pred_and_target
from treadle.metrics.checks import above, class_targets, describe, same_shape
from treadle.metrics.class_scores import F1Score, Jaccard


class Overlap(SumMetric):
    """A ratio of the pixels of the foreground: those answered, those true, and those both.

    Scores (N, 2, ...) with the classes on `axis`, of which 1 is the foreground; or (N, 1, ...), or
    of the shape of the target, with one score a pixel, which is foreground above `thresh`, after a
    sigmoid if `sigmoid`. Targets (N, ...) are 0 or 1; pixels of `ignore_index` do not count.

    None where there is no foreground, neither answered nor true.
    """

    def __init__(
        self,
        axis: int = 1,
        thresh: float = 0.5,
        sigmoid: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        self.axis, self.thresh, self.sigmoid = axis, thresh, sigmoid
        self.ignore_index = ignore_index

    @abstractmethod
    def ratio(self, both: Tensor, given: Tensor, true: Tensor) -> Tensor:
        """The value, from the numbers of pixels."""

    def sums(self, *batch: Any) -> Sums:
        pred, targ = pred_and_target(self.name, batch)
        given, targ = self._foreground(pred, targ)
        true = targ == 1
        if self.ignore_index is not None:
            counted = targ != self.ignore_index
            given, true = given & counted, true & counted
        return (given & true).sum(), given.sum(), true.sum()

    def _foreground(self, pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
        """Which pixels are answered foreground, bool, and the target in that shape."""
        if pred.numel() == targ.numel():
            targ = same_shape(self.name, pred, targ)
            return above(self.name, pred, self.thresh, self.sigmoid), targ
        targ = class_targets(self.name, pred, targ, self.axis)
        if pred.shape[self.axis] != 2:
            raise UsageError(
                f"{self.name} is of one foreground; pred {describe(pred)} has "
                f"{pred.shape[self.axis]} classes on axis {self.axis}. DiceMulti and "
                "JaccardCoeffMulti average over classes."
            )
        return pred.argmax(dim=self.axis) == 1, targ

    def result(self, both: Tensor, given: Tensor, true: Tensor) -> Tensor | None:
        return self.ratio(both, given, true) if given + true else None


class Dice(Overlap):
    """Twice the pixels that are both foreground and answered so, over the sum of either.

    >>> import torch
    >>> dice = Dice()
    >>> dice.update(torch.tensor([[[-2.0, 3.0, 4.0]]]), torch.tensor([[0, 1, 0]]))
    >>> round(dice.value, 4)
    0.6667
    """

    name = "dice"

    def ratio(self, both: Tensor, given: Tensor, true: Tensor) -> Tensor:
        return 2 * both / (given + true)


class JaccardCoeff(Overlap):
    """The pixels that are both foreground and answered so, over those that are either."""

    name = "jaccard_coeff"

    def ratio(self, both: Tensor, given: Tensor, true: Tensor) -> Tensor:
        return both / (given + true - both)


class DiceMulti(F1Score):
    """The mean over classes of the `Dice` of each: scores (N, C, ...) with the classes on `axis`
    against class indices (N, ...). Classes that do not occur are left out; `labels` chooses others,
    all but the background for example."""

    name = "dice_multi"

    def __init__(
        self, axis: int = 1, labels: Sequence[int] | None = None, ignore_index: int | None = None
    ) -> None:
        super().__init__(axis, labels, average="macro", ignore_index=ignore_index)


class JaccardCoeffMulti(Jaccard):
    """The mean over classes of the `JaccardCoeff` of each, or mean IoU; arguments as in
    `DiceMulti`."""

    name = "jaccard_coeff_multi"

    def __init__(
        self, axis: int = 1, labels: Sequence[int] | None = None, ignore_index: int | None = None
    ) -> None:
        super().__init__(axis, labels, average="macro", ignore_index=ignore_index)
