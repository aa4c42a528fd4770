"""Whatever measures, as a `Metric`: functions, and objects with update, compute and reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.metrics.base import AvgMetric, Metric, kind_of
from treadle.world import World


class ComputedMetric(Metric):
    """An object with `update(pred, *targets)`, `compute()` and `reset()`, as those of torchmetrics,
    as a metric.

    It goes to the device of the first prediction by its own `to`, if it has one. Its `compute`
    gives one number. Its checks of the arguments may read the batch, and so wait for the device:
    most classes of torchmetrics take `validate_args=False`. It cannot be merged; in several
    processes those of torchmetrics (with a `sync`) gather what they need when they compute.

    Args:
        metric: the object.
        name: the column in the table; by default the name of its class.
    """

    def __init__(self, metric: Any, name: str | None = None) -> None:
        self.metric = metric
        self.name = type(metric).__name__ if name is None else name
        self.batches = 0

    def reset(self) -> None:
        self.metric.reset()
        self.batches = 0

    def accumulate(self, learn: Any) -> None:
        if not self.batches and isinstance(learn.pred, Tensor) and hasattr(self.metric, "to"):
            self.metric.to(learn.pred.device)
        self.metric.update(learn.pred, *learn.yb)
        self.batches += 1

    def share(self, readers: World) -> None:
        if readers.size > 1:
            if not hasattr(self.metric, "sync"):
                super().share(readers)
            self.batches = sum(readers.all(self.batches))

    @property
    def value(self) -> float | None:
        if not self.batches:
            return None
        computed = self.metric.compute()
        several = isinstance(computed, Tensor) and computed.numel() != 1
        if several or not isinstance(computed, Tensor | int | float):
            raise UsageError(
                f"{self.name}.compute() gave {kind_of(computed)}; a column of the table needs one "
                "number: choose an average, or give the metrics of a collection one by one."
            )
        return float(computed)


def as_metric(metric: Metric | type[Metric] | Callable[..., Any] | Any) -> Metric:
    """A `Metric` as it is, a class of them made, an object with `update`, `compute` and `reset` as
    a `ComputedMetric`, and any other function of (pred, *targets) as its `AvgMetric`.

    Raises:
        UsageError: if it is none of these.

    >>> from treadle.metrics import accuracy
    >>> as_metric(accuracy).name
    'accuracy'
    """
    if isinstance(metric, type):
        metric = metric()
    if isinstance(metric, Metric):
        return metric
    if all(hasattr(metric, verb) for verb in ("update", "compute", "reset")):
        return ComputedMetric(metric)
    if callable(metric):
        return AvgMetric(metric)
    raise UsageError(
        f"{metric!r} is no metric; expected a function f(pred, *targets), a Metric, or an object "
        "with update, compute and reset."
    )
