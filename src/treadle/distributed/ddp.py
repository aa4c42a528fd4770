"""The whole model in every process."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from treadle.distributed.several import Several, trainable
from treadle.errors import UsageError
from treadle.loop.parallel import Parallel
from treadle.loop.training import TrainingLoop


class DDP(Several):
    """Every process has the whole model; the gradients are averaged while they are computed
    (torch's `DistributedDataParallel`, arXiv 2006.15704).

    `learn.model` stays the model itself: only the forward pass of training goes through torch's
    wrapper.

    Args:
        sync_bn: as for `Several`.
        find_unused: whether parameters may go without a gradient in some batch. Costs a walk
            through the graph of each batch.

    Raises:
        UsageError: after a backward pass that left parameters without a gradient, if they are not
            to be looked for.
    """

    name = "ddp"

    def __init__(self, sync_bn: bool = False, find_unused: bool = False) -> None:
        super().__init__(sync_bn)
        self.find_unused = find_unused
        self._ddp: DistributedDataParallel | None = None
        self._of: tuple[nn.Module | None, list[Tensor], list[bool]] = None, [], []
        self._unchecked = False  # no backward pass has shown yet which parameters get a gradient

    def alone(self) -> Parallel:
        return Parallel()

    def settle(self, loop: TrainingLoop) -> None:
        super().settle(loop)
        params = list(loop.model.parameters())
        if len(params) != len(self._of[1]) or not all(map(is_, params, self._of[1])):
            self._forget()

    def _forget(self) -> None:
        if self._ddp is not None:
            self._ddp, self._of = None, (None, [], [])
            gc.collect()  # its hooks on the parameters go with it

    def model(self, loop: TrainingLoop) -> Callable[..., Any]:
        if not loop.training:
            return loop.model
        model, params, trains = self._of
        if model is not loop.model or [p.requires_grad for p in params] != trains:
            self._wrap(loop.model)
        if self._ddp is None:
            return loop.model  # nothing in it is trained
        window, n = loop.window, self._share(loop)[1]
        last = loop.iter + 1 == loop.n_iter
        self._ddp.require_backward_grad_sync = window is None or window.will_be_due(n, last)
        return self._ddp

    def _wrap(self, model: nn.Module) -> None:
        self._forget()
        params: list[Tensor] = list(model.parameters())
        self._of = model, params, [p.requires_grad for p in params]
        if trainable(model):
            # Buffers are sent after the batch, so that all see the same. What says so was renamed.
            known = inspect.signature(DistributedDataParallel).parameters
            new = "forward_sync_buffers"
            options: dict[str, Any] = {new if new in known else "broadcast_buffers": False}
            self._ddp = DistributedDataParallel(
                model,
                find_unused_parameters=self.find_unused,
                gradient_as_bucket_view=True,
                **options,
            )
            self._unchecked = not self.find_unused

    def backward(self, loop: TrainingLoop, loss: Tensor) -> None:
        super().backward(loop, loss)
        if self._unchecked:
            self._unchecked = False
            unused = [name for name, p in trainable(loop.model) if p.grad is None]
            if unused:
                raise UsageError(
                    f"{len(unused)} parameters got no gradient from this batch "
                    f"({', '.join(unused[:3])}{', ...' * (len(unused) > 3)}), and the processes "
                    "wait for it; freeze them, or make the learner with "
                    "parallel=DDP(find_unused=True)."
                )

    def before_step(self, loop: TrainingLoop) -> None:
        """Where the batch that was to be the window's last was cancelled, its gradients were only
        gathered here."""
        if self._ddp is None or self._ddp.require_backward_grad_sync:
            return
        for _, p in trainable(loop.model):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= self.world.size
