"""Shares of right and wrong answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from treadle.metrics.base import averaged
from treadle.metrics.checks import above, class_targets, same_shape


@averaged()
def accuracy(
    inp: Tensor, targ: Tensor, axis: int = -1, ignore_index: int | None = None
) -> tuple[Any, Any]:
    """The share of right answers: scores (N, ..., C) with the classes on `axis` against class
    indices (N, ...); targets of `ignore_index` do not count.

    Raises:
        UsageError: if the shapes do not fit, or the targets are no class indices.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
    0.5
    """
    targ = class_targets("accuracy", inp, targ, axis)
    return _share(inp.argmax(dim=axis) == targ, targ, ignore_index)


@averaged()
def error_rate(
    inp: Tensor, targ: Tensor, axis: int = -1, ignore_index: int | None = None
) -> tuple[Any, Any]:
    """The share of wrong answers: `1 - accuracy`."""
    targ = class_targets("error_rate", inp, targ, axis)
    return _share(inp.argmax(dim=axis) != targ, targ, ignore_index)


@averaged()
def top_k_accuracy(
    inp: Tensor, targ: Tensor, k: int = 5, axis: int = -1, ignore_index: int | None = None
) -> tuple[Any, Any]:
    """The share of targets whose class is among the `k` highest scores; arguments as in
    `accuracy`. `partial(top_k_accuracy, k=3)` is a metric with another `k`.

    >>> import torch
    >>> scores = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    >>> top_k_accuracy(scores, torch.tensor([1, 2]), k=2).item()
    0.5
    """
    targ = class_targets("top_k_accuracy", inp, targ, axis)
    best = inp.topk(k=min(k, inp.shape[axis]), dim=axis).indices
    return _share((best == targ.unsqueeze(axis)).any(dim=axis), targ, ignore_index)


@averaged()
def foreground_acc(
    inp: Tensor, targ: Tensor, bkg_idx: int = 0, axis: int = 1, ignore_index: int | None = None
) -> tuple[Any, Any]:
    """The share of right answers among the pixels that are not of the class `bkg_idx`: scores
    (N, C, ...) against class indices (N, ...).

    >>> import torch
    >>> scores = torch.tensor([[[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]]])
    >>> foreground_acc(scores, torch.tensor([[0, 1, 1]])).item()
    1.0
    """
    targ = class_targets("foreground_acc", inp, targ, axis)
    counted = targ != bkg_idx
    if ignore_index is not None:
        counted = counted & (targ != ignore_index)
    return ((inp.argmax(dim=axis) == targ) & counted).sum(), counted.sum()


@averaged()
def accuracy_multi(
    inp: Tensor, targ: Tensor, thresh: float = 0.5, sigmoid: bool = True
) -> tuple[Any, Any]:
    """The share of labels that are right, where a sample may have several or none: scores against
    targets of the same shape that are 0 or 1. A label is given where the score is above `thresh`,
    after a sigmoid if `sigmoid` (for raw outputs). Serves binary models of one output too.

    >>> import torch
    >>> accuracy_multi(torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 1]])).item()
    0.5
    """
    targ = same_shape("accuracy_multi", inp, targ)
    return (above("accuracy_multi", inp, thresh, sigmoid) == targ.bool()).sum(), targ.numel()


def _share(hits: Tensor, targ: Tensor, ignore_index: int | None) -> tuple[Any, Any]:
    """How many of the targets that count are hits, and how many count."""
    if ignore_index is None:
        return hits.sum(), targ.numel()
    counted = targ != ignore_index
    return (hits & counted).sum(), counted.sum()
