"""What a metric is: totals that add up, so that no split of the data changes the value."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.world import World

P = ParamSpec("P")
Sums = tuple[Any, ...]
"""What adds up: tensors on the batch's device, numbers that the host knows, lists that grow."""


def batch_size(batch: Any) -> int:
    """How many samples a tensor, or the first tensor in nested tuples, lists or dicts, holds.

    >>> import torch
    >>> batch_size((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return int(batch.shape[0]) if batch.ndim else 1


def wide(t: Tensor) -> Tensor:
    """`t` in float64, in which sums over a long pass keep their digits; float32 where the device
    has no float64 (Apple's GPU)."""
    return t.float() if t.device.type == "mps" else t.double()


class Metric(ABC):
    """What is measured over a whole pass: `reset`, then `accumulate` a batch at a time.

    `learn` is anything with `pred`, `yb`, `xb` and `loss` of the current batch. For a metric of
    one's own, `SumMetric` leaves less to write.
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
        """The result so far; None where there is none, as before the first batch. Waits for the
        device."""

    def merge(self, other: Any) -> None:
        """Take in what another instance saw (another process, another part of the data): the value
        is then that of one instance which saw both.

        Raises:
            UsageError: if this metric does not say how.
        """
        raise UsageError(
            f"{type(self).__name__} cannot be merged: it has no merge(other). A SumMetric has one."
        )

    def share(self, readers: World) -> None:
        """Take in what the other processes saw, each in its part of the data; all call it, and all
        have the value of the whole then.

        Raises:
            UsageError: if this metric does not say how to merge.
        """
        if readers.size > 1:
            for rank, other in enumerate(readers.all(self)):
                if rank != readers.rank:
                    self.merge(other)


class SumMetric(Metric):
    """A metric that is a function of sums over the data.

    A subclass writes `sums(pred, *targs)`, those of one batch, as a tuple of tensors or numbers,
    without reading them, and `result(*totals)`. Totals stay on the device; when `value` is asked
    for, `result` gets them as float64 tensors on the CPU, lists as they are.

    >>> import torch
    >>> class Bias(SumMetric):
    ...     name = "bias"
    ...     def sums(self, pred, targ):
    ...         return (pred - targ).sum(), targ.numel()
    ...     def result(self, total, count):
    ...         return total / count
    >>> bias = Bias()
    >>> bias.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
    >>> bias.update(torch.tensor([4.0]), torch.tensor([0.0]))
    >>> bias.value
    2.0
    """

    totals: Sums = ()

    @abstractmethod
    def sums(self, *batch: Any) -> Sums:
        """What a batch adds to the totals; called with the prediction and the targets."""

    @abstractmethod
    def result(self, *totals: Any) -> Any:
        """The value that the totals make, or None."""

    def plus(self, mine: Sums, others: Sums) -> Sums:
        """Two totals as one: each number, tensor or list added to its like. Wide totals stay so."""
        return tuple([a + b for a, b in zip(mine, others, strict=True)])

    def reset(self) -> None:
        self.totals = ()

    def accumulate(self, learn: Any) -> None:
        self.update(learn.pred, *learn.yb)

    def update(self, *batch: Any) -> None:
        """Take in a batch without a learner: the prediction, then the targets."""
        with torch.no_grad():
            self._add(self.sums(*batch))

    def merge(self, other: Any) -> None:
        if type(other) is not type(self) or other.name != self.name:
            raise UsageError(
                f"{self.name} can take in what another {self.name} saw; it was given "
                f"{getattr(other, 'name', other)!r}."
            )
        if other.totals:
            self._add(tuple(map(_beside, other.totals, self.totals or other.totals)))

    def share(self, readers: World) -> None:
        if readers.size > 1:
            seen = [
                totals for totals in readers.all(tuple(map(_off_device, self.totals))) if totals
            ]
            self.totals = functools.reduce(self.plus, seen) if seen else ()

    def _add(self, sums: Sums) -> None:
        if not self.totals:
            self.totals = tuple(map(_widened, sums))
            return
        for mine, others in zip(self.totals, sums, strict=True):
            if isinstance(mine, Tensor) and mine.ndim and mine.shape != others.shape:
                raise UsageError(
                    f"{self.name} had counts of shape {tuple(mine.shape)} and now got a batch with "
                    f"counts of shape {tuple(others.shape)}; all batches need as many classes."
                )
        self.totals = self.plus(self.totals, sums)

    @property
    def value(self) -> float | None:
        if not self.totals:
            return None
        result = self.result(*map(_on_host, self.totals))  # waits for the device
        return None if result is None else float(result)


def _beside(theirs: Any, mine: Any) -> Any:
    """`theirs` on the device where `mine` is."""
    if isinstance(theirs, Tensor):
        return theirs.to(mine.device)
    if isinstance(theirs, list):
        return [_beside(part, mine[0]) for part in theirs]
    return theirs


def _off_device(part: Any) -> Any:
    if isinstance(part, list):
        return [_off_device(each) for each in part]
    return part.cpu() if isinstance(part, Tensor) else part


def _widened(part: Any) -> Any:
    return wide(part) if isinstance(part, Tensor) and part.is_floating_point() else part


def _full(mean: Any) -> Any:
    """A number in which a product keeps its digits: what is 16 bits wide becomes float32."""
    if not isinstance(mean, Tensor):
        return float(mean)
    mean = mean.reshape(()) if mean.ndim else mean
    return mean.float() if mean.itemsize < 4 else mean


def _on_host(part: Any) -> Any:
    """Numbers as float64 on the CPU: counts up to 2**53 are exact in it."""
    if isinstance(part, Tensor):
        return part.cpu().double()
    return torch.tensor(part, dtype=torch.float64) if isinstance(part, int | float) else part


def averaged(
    then: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Callable[P, tuple[Any, Any]]], Callable[P, Tensor]]:
    """Makes of a function that gives (sum, count) one that gives their ratio, 0-d.

    As a metric its sums and its counts are added over all batches before they are divided, so
    batches in which fewer elements count (padding, background) weigh less, as they should. `then`
    is applied to the ratio, in a metric to that of the whole pass.

    >>> import torch
    >>> @averaged(then=torch.sqrt)
    ... def rms_error(pred, targ):
    ...     return (pred - targ).square().sum(), targ.numel()
    >>> rms_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]))
    tensor(3.)
    """

    def decorate(sums: Callable[P, tuple[Any, Any]]) -> Callable[P, Tensor]:
        @functools.wraps(sums)
        def mean(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            total, count = sums(*args, **kwargs)
            ratio: Tensor = total / count
            return ratio if then is None else then(ratio)

        signature = inspect.signature(sums)
        shown = signature.replace(return_annotation="Tensor")
        vars(mean).update(_sums=sums, _then=then, __signature__=shown)
        return mean

    return decorate


class AvgMetric(SumMetric):
    """The mean over samples of a function of (pred, *targets) that gives batch means.

    A ragged last batch counts by its size, so the value does not depend on the batch size.
    Functions made by `averaged` count what they say they count.

    Args:
        func: the function, or a `partial` of it.
        name: the column in the table; by default the function's name.
    """

    def __init__(self, func: Callable[..., Any], name: str | None = None) -> None:
        self.func = func
        self.name = _name_of(func) if name is None else name
        self._counted = _sums_of(func)
        self._then = getattr(_innermost(func), "_then", None)

    def sums(self, pred: Any, *targs: Any) -> Sums:
        if self._counted is not None:
            return tuple(self._counted(*pred_and_target(self.name, (pred, *targs))))
        mean, n = self.func(pred, *targs), batch_size(targs)
        if isinstance(mean, Tensor) and mean.numel() != 1:
            raise UsageError(
                f"the metric {self.name} gave a tensor of shape {tuple(mean.shape)}; expected one "
                "number, the mean over the batch."
            )
        return _full(mean) * n, n

    def result(self, total: Tensor, count: Tensor) -> Tensor | None:
        if not count:
            return None
        mean = total / count
        return mean if self._then is None else self._then(mean)


class AvgLoss(AvgMetric):
    """The mean over samples of the loss."""

    def __init__(self) -> None:
        super().__init__(_the_loss, "loss")

    def accumulate(self, learn: Any) -> None:
        self.update(learn.loss, *learn.yb)


def _the_loss(loss: Tensor, *targs: Any) -> Tensor:
    return loss


def _innermost(func: Any) -> Any:
    return func.func if isinstance(func, partial) else func


def _sums_of(func: Any) -> Callable[..., Any] | None:
    """The (sum, count) form of a function made by `averaged`, also of a partial of one."""
    sums = getattr(_innermost(func), "_sums", None)
    if sums is not None and isinstance(func, partial):
        return partial(sums, *func.args, **func.keywords)
    return sums


def _name_of(func: Any) -> str:
    inner = _innermost(func)
    return str(getattr(inner, "__name__", type(inner).__name__))


def pred_and_target(who: str, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The two tensors that a metric compares.

    Raises:
        UsageError: if there are more than one of each, or one is no tensor.
    """
    if len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    kinds = ", ".join(kind_of(part) for part in batch[1:]) or "none"
    raise UsageError(
        f"{who} compares one tensor of predictions with one of targets; it was given as "
        f"predictions {kind_of(batch[0])}, as targets {kinds}. A function f(pred, *targets) that "
        "picks the right ones serves as a metric too."
    )


def kind_of(part: Any) -> str:
    """What a value is, in words."""
    if isinstance(part, Tensor):
        return f"a tensor of shape {tuple(part.shape)}"
    return f"a {type(part).__name__}"
