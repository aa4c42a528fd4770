"""Metrics: sums and counts, weighted by sample, mergeable.

A metric is a function `f(pred, target) -> 0-d tensor` (a batch mean) or a `Metric`. Sums stay on
the device; the host reads them once an epoch, when `value` is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor


def batch_size(batch: Any) -> int:
    """How many samples a tensor, or the first tensor in nested tuples, lists or dicts, holds.

    >>> import torch
    >>> batch_size((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return int(batch.shape[0]) if batch.ndim else 1


class Metric(ABC):
    """What is measured over a whole pass: `reset`, then `accumulate` a batch at a time.

    `learn` is anything with `pred`, `yb`, `xb` and `loss` of the current batch.
    """

    name: str = "metric"

    @abstractmethod
    def reset(self) -> None:
        """Forget what was seen."""

    @abstractmethod
    def accumulate(self, learn: Any) -> None:
        """Take in the current batch."""

    @property
    @abstractmethod
    def value(self) -> float | None:
        """The result so far; None before the first batch. Waits for the device."""


class AvgMetric(Metric):
    """The mean over samples of a function of (pred, *targets) that gives batch means.

    A ragged last batch counts by its size, so the result does not depend on the batch size.
    """

    def __init__(self, func: Callable[..., Tensor]) -> None:
        self.func = func
        self.name = str(getattr(func, "func", func).__name__)
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def accumulate(self, learn: Any) -> None:
        n = batch_size(learn.yb)
        self.total = self.total + self.measure(learn).detach() * n
        self.count += n

    def measure(self, learn: Any) -> Tensor:
        """The batch mean of what this metric measures, 0-d."""
        return self.func(learn.pred, *learn.yb)

    def merge(self, other: AvgMetric) -> None:
        """Take in what another instance saw (another process, another part of the data)."""
        self.total = self.total + other.total
        self.count += other.count

    @property
    def value(self) -> float | None:
        return float(self.total) / self.count if self.count else None  # waits for the device


class AvgLoss(AvgMetric):
    """The mean over samples of the loss."""

    def __init__(self) -> None:
        super().__init__(self.measure)
        self.name = "loss"

    def measure(self, learn: Any) -> Tensor:
        loss: Tensor = learn.loss
        return loss


def as_metric(metric: Metric | Callable[..., Tensor]) -> Metric:
    """A function becomes the `AvgMetric` of it; a `Metric` stays what it is."""
    return metric if isinstance(metric, Metric) else AvgMetric(metric)


def accuracy(inp: Tensor, targ: Tensor, axis: int = -1) -> Tensor:
    """The share of right answers: scores (N, ..., C) on `axis` against classes (N, ...).

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
    0.5
    """
    return (inp.argmax(dim=axis).reshape(-1) == targ.reshape(-1)).float().mean()


def error_rate(inp: Tensor, targ: Tensor, axis: int = -1) -> Tensor:
    """The share of wrong answers: `1 - accuracy`."""
    return 1 - accuracy(inp, targ, axis=axis)


def top_k_accuracy(inp: Tensor, targ: Tensor, k: int = 5, axis: int = -1) -> Tensor:
    """The share of samples whose class is among the `k` highest scores."""
    best = inp.topk(k=min(k, inp.shape[axis]), dim=axis).indices
    return (best == targ.unsqueeze(axis)).any(dim=axis).float().mean()


def mse(inp: Tensor, targ: Tensor) -> Tensor:
    """Mean squared error."""
    return (inp.reshape(-1) - targ.reshape(-1)).square().mean()


def mae(inp: Tensor, targ: Tensor) -> Tensor:
    """Mean absolute error."""
    return (inp.reshape(-1) - targ.reshape(-1)).abs().mean()
