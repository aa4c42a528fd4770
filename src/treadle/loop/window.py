"""Gradients of several batches for one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from treadle.loop.nested import map_tensors


class Window:
    """The batches whose gradients the next step takes together, as if they were one large batch.

    The loss of a batch is the mean over its samples, so its gradient counts by their number: it is
    weighed by `samples / n_acc` when it is computed, and the sum of all by `n_acc / all samples`
    before the step. Nothing here waits for the device.

    Attributes:
        n_acc: how many samples make a step due.
        samples: how many are in it.
        closed: whether its gradients have been handed to a step; the next batch opens a new one.
    """

    def __init__(self, n_acc: int) -> None:
        self.n_acc = n_acc
        self.clear()

    def clear(self) -> None:
        """Open a new one."""
        self.samples, self.closed = 0, False
        self._loss: Any = 0.0

    def add(self, loss: Tensor, loss_grad: Tensor, n: int) -> Tensor:
        """Take a batch of `n` samples in; what is returned is to be differentiated."""
        if self.closed:
            self.clear()
        self.samples += n
        self._loss = self._loss + loss.detach() * n
        return loss_grad * (n / self.n_acc)

    def will_be_due(self, n: int, last: bool) -> bool:
        """Whether it is time to step once a batch of `n` samples is in."""
        return last or n + (0 if self.closed else self.samples) >= self.n_acc

    def is_due(self, last: bool) -> bool:
        """Whether it is time to step: there are samples enough, or they were the `last`."""
        enough = self.samples >= self.n_acc or (last and self.samples > 0)
        return enough and not self.closed

    @property
    def loss(self) -> Tensor:
        """The mean of the reported loss over all samples, 0-d."""
        loss: Tensor = self._loss / self.samples
        return loss

    def close(self, opt: Any) -> None:
        """Make the gathered gradients those of the mean over all samples: the step follows."""
        params = [p for group in opt.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        if grads and self.samples != self.n_acc:
            torch._foreach_mul_(grads, self.n_acc / self.samples)
        self.closed = True

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beside the gradients, which the parameters have."""
        return {"samples": self.samples, "closed": self.closed, "loss": self._loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave; its loss should be on the model's device."""
        self.samples, self.closed, self._loss = state["samples"], state["closed"], state["loss"]


def samples_in(batch: Any) -> int:
    """The length of the first tensor in a batch.

    >>> samples_in((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    sizes: list[int] = []
    map_tensors(lambda t: sizes.append(len(t) if t.ndim else 1), batch)
    return sizes[0]
