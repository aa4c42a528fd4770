"""Batch norms whose statistics are those of all processes together, on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as Fused  # refuses what is not on a GPU
from torch.nn.modules.batchnorm import _BatchNorm

from treadle.errors import UsageError
from treadle.interrupts import scoped

_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@scoped
def synced_batch_norms(
    model: nn.Module, borrowed: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """In training, each batch norm of `model` takes mean and variance over the batches of all
    processes, weighted by their sizes, and keeps them in its running statistics. Gradients go
    through both. `borrowed` says whether this process's batch counts for nothing.

    Nothing of the model is changed for longer than the block; what is copied or saved in it is of
    the model's own classes.

    Raises:
        UsageError: in the forward pass, if all processes together have one value a channel.
    """
    before = _Synced.borrowed
    swapped = [(m, type(m)) for m in model.modules() if type(m).forward in _FORWARDS]
    try:
        _Synced.borrowed = staticmethod(borrowed)
        for module, own in swapped:
            module.__class__ = _synced(own)
        yield
    finally:
        _Synced.borrowed = staticmethod(before)
        for module, own in swapped:
            module.__class__ = own


class _Synced(_BatchNorm):
    """What takes the place of the class of a batch norm, as a subclass of it."""

    own: ClassVar[type[nn.Module]]
    borrowed: ClassVar[Callable[[], bool]]

    def forward(self, input: Tensor) -> Tensor:
        return self._together(input) if self.training else super().forward(input)

    @torch.compiler.disable
    def _together(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.borrowed():
            return self._normalized(x)
        # It takes part with nothing, and goes on with zeros: what follows stays finite.
        return torch.cat([self._normalized(x[:0]), torch.zeros_like(x)])

    def _normalized(self, x: Tensor) -> Tensor:
        mean, var, factor = None, None, 0.0
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            mean, var, momentum = self.running_mean, self.running_var, self.momentum
            factor = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        function: Any = Fused if x.is_cuda else _Normalized
        running, group = (mean, var, self.eps, factor), dist.group.WORLD
        args = x, self.weight, self.bias, *running, group, dist.get_world_size()
        normalized: Tensor = function.apply(*args)
        return normalized

    def __reduce_ex__(self, protocol: Any) -> Any:
        make, (_, *others), *state = super().__reduce_ex__(protocol)
        return make, (self.own, *others), *state


@functools.cache  # another class each time would have the model compiled anew
def _synced(own: type[nn.Module]) -> type[nn.Module]:
    # Under the name of its own class it shows itself in the same words.
    names = {"own": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (_Synced, own), names)


class _Normalized(torch.autograd.Function):
    """What torch's function for the GPU computes, with the arguments of that, on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        weight, bias, running_mean, running_var, eps, factor, group, size = args
        wide = _wide(x)
        count, mean, var = _statistics(wide, group, size)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean), factor)
            running_var.lerp_((var * (count / (count - 1))).to(running_var), factor)
        mean, var = mean.to(wide), var.to(wide)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        if not len(x):
            return x.clone()
        factors, shift = (None if t is None else t.to(wide) for t in (weight, bias))
        return F.batch_norm(wide, mean, var, factors, shift, eps=eps).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        dx, wide = torch.zeros_like(x), _wide(x)
        factors = torch.ones_like(mean) if weight is None else weight.to(mean)
        own = mean.new_zeros(2, len(mean))  # the gradients of weight and bias
        if len(x):  # at first as if mean and variance were given
            statistics = factors, mean, var, None, None, False, ctx.eps, [True] * 3
            backward = torch.ops.aten.native_batch_norm_backward
            dx, *sums = backward(grads[0].to(wide), wide, *statistics)
            own = torch.stack(sums)
        if ctx.needs_input_grad[0]:
            whole = own.clone()
            dist.all_reduce(whole, group=ctx.group)
            scale = (var + ctx.eps).rsqrt()
            slope, level, middle = (
                t.view(-1, *[1] * (x.dim() - 2))
                for t in (*whole * torch.stack([scale, scale**0]) * scale * factors / ctx.count, mean)
            )
            dx = dx - level - (wide - middle) * slope
        return dx.to(x), *(None if weight is None else own), *[None] * 6


def _statistics(x: Tensor, group: Any, size: int) -> tuple[float, Tensor, Tensor]:
    """How many values a channel has in all processes, their means and their variances."""
    mine = x.new_zeros(3, x.shape[1], dtype=torch.float64)
    if len(x):
        mine[0] = x.numel() / x.shape[1]
        mine[1], mine[2] = torch.batch_norm_update_stats(x, None, None, 0.0)
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine, group=group)
    counts, means, variances = torch.stack(parts, 1)
    count = float(counts[:, 0].sum())
    if count < 2:
        raise UsageError(
            "a batch norm found one value a channel in the batches of all processes; give batches "
            "of more samples, or leave a last small one out by drop_last=True."
        )
    mean = (counts * means).sum(0) / count
    # within the parts, and between them
    return count, mean, (counts * (variances + (means - mean).square())).sum(0) / count


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
