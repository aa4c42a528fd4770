"""Keep what the model answered in a pass over the data."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors
from treadle.metrics import batch_size

_NOTHING = object()


class GatherPredsCallback(Callback):
    """Collects predictions, targets and, when asked, inputs and per-sample losses of a validation;
    of several processes each gets those of all.

    What is kept moves to the CPU a batch at a time, so a large set does not fill the device.
    """

    run_train = False

    def __init__(self, with_input: bool = False, with_loss: bool = False) -> None:
        self.with_input, self.with_loss = with_input, with_loss

    def before_validate(self) -> None:
        self.inputs: list[Any] = []
        self.preds: list[Any] = []
        self.targets: list[Any] = []
        self.losses: list[Tensor] = []

    def after_batch(self) -> None:
        if self.pred is None:  # of a batch that was cancelled
            return
        if self.with_input:
            self.inputs.append(map_tensors(_to_cpu, self.x))
        self.preds.append(map_tensors(_to_cpu, self.pred))
        self.targets.append(map_tensors(_to_cpu, self.y))
        if self.with_loss:
            n = batch_size(self.yb or self.xb)
            self.losses.append(by_sample(self.loss.detach(), n).cpu())

    def after_validate(self) -> None:
        for name in ("inputs", "preds", "targets", "losses"):
            mine = getattr(self, name)
            # batch by batch, as one process would have had them
            turns = zip_longest(*self.readers.all(mine), fillvalue=_NOTHING)
            setattr(self, name, [part for turn in turns for part in turn if part is not _NOTHING])


def by_sample(loss: Tensor, n: int) -> Tensor:
    """A loss that was not reduced as one number for each of `n` samples, (n,): the mean over the
    sample's outputs, if there are several, flattened or not. Raises `UsageError` if the loss has
    another number of them.

    >>> by_sample(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    tensor([2., 5.])
    """
    if n == 0 or loss.numel() % n or loss.numel() == 0:
        raise UsageError(
            f"the loss of a batch of {n} samples has the shape {tuple(loss.shape)}; with "
            'reduction="none" it must give one number a sample, or as many for each.'
        )
    return loss.reshape(n, -1).mean(1)


def _to_cpu(t: Tensor) -> Tensor:
    return t.detach().cpu()


def concat(parts: list[Any]) -> Any:
    """Batches as one: tensors along their first axis, tuples of tensors part by part."""
    if not parts or (isinstance(parts[0], tuple) and not parts[0]):
        return None
    if isinstance(parts[0], tuple):
        return tuple(concat(list(part)) for part in zip(*parts, strict=True))
    return torch.cat(parts)
