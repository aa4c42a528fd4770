"""Batch norms whose statistics are those of all processes together, on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as Fused
from torch.nn.modules.batchnorm import _BatchNorm

from treadle.errors import UsageError
from treadle.interrupts import scoped

_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@scoped
def synced_batch_norms(model: nn.Module, borrowed: Callable[[], bool] = bool) -> Iterator[None]:
    """In training, each batch norm of `model` takes mean and variance over the batches of all
    processes, every element counting alike, and keeps them in its running statistics. Gradients go
    through both. `borrowed` says whether this process's batch counts for nothing.

    Batch norms with a `forward` of their own are left alone. Nothing of the model is changed for
    longer than the block; what is copied or saved in it is of the model's own classes.

    Raises:
        UsageError: in the forward pass on the CPU, if a channel has one value in all processes.
    """
    swapped: list[tuple[nn.Module, Any]] = [
        (m, type(m)) for m in model.modules() if type(m).forward in _FORWARDS
    ]
    before, _Synced.borrowed = _Synced.borrowed, borrowed
    try:
        for module, own in swapped:
            module.__class__ = _synced(own)
        yield
    finally:
        _Synced.borrowed = before
        for module, own in swapped:
            module.__class__ = own


class _Synced(_BatchNorm):
    """What takes the place of the class of a batch norm, as a subclass of it."""

    own: ClassVar[type[nn.Module]]
    borrowed: ClassVar[Callable[[], bool]] = bool

    def forward(self, input: Tensor) -> Tensor:
        return self._together(input) if self.training else super().forward(input)

    def _together(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        if not _Synced.borrowed():
            return self._normalized(x)
        # It takes part with nothing, and goes on with zeros: what follows stays finite.
        return torch.cat([self._normalized(x[:0]), torch.zeros_like(x)])

    def _normalized(self, x: Tensor) -> Tensor:
        running_mean, running_var, factor = None, None, 0.0
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            running_mean, running_var, momentum = self.running_mean, self.running_var, self.momentum
            factor = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        if x.is_cuda:
            args = x, self.weight, self.bias, running_mean, running_var, self.eps, factor
            made: Tensor = Fused.apply(*args, dist.group.WORLD, dist.get_world_size())
            return made
        centred, count, mean, var = _centred(x)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.detach().to(running_mean), factor)
            running_var.lerp_((var.detach() * count / (count - 1)).to(running_var), factor)
        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shaped = centred * scale.to(centred).view(_like(x))
        return (shaped if self.bias is None else shaped + self.bias.view(_like(x))).to(x.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(1)  # from 2 on it would have to be of this class
        make, (_, *others), *state = reduced
        return make, (self.own, *others), *state


@functools.cache  # another class each time would have the model compiled anew
def _synced(own: Any) -> type[nn.Module]:
    names = {
        "own": own,
        "__module__": own.__module__,  # it shows itself in the words of its own class
        "__qualname__": own.__qualname__,
        "_together": torch.compiler.disable(_Synced._together),  # here: to import that is slow
    }
    return type(own.__name__, (_Synced, own), names)


def _centred(x: Tensor) -> tuple[Tensor, float, Tensor, Tensor]:
    """The input without the mean of each channel, how many values a channel has in all processes,
    and their mean and variance, the latter from a second pass: it does not cancel."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims, wide = [0, *range(2, x.dim())], torch.float64
    mine = x.new_tensor([x.numel() / x.shape[1]], dtype=wide)
    *_, count = sums = _Total.apply(torch.cat([x.sum(dims, dtype=wide), mine]))
    if count < 2:
        raise UsageError(
            "a batch norm found one value a channel in the batches of all processes; give larger "
            "batches, or leave a small last one out by drop_last=True."
        )
    mean = sums[:-1] / count.detach()
    centred = x - mean.to(x).view(_like(x))
    var = _Total.apply(centred.square().sum(dims, dtype=wide)) / count.detach()
    return centred, float(count.detach()), mean, var


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is that of each of them, summed."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Total.apply(grads[0])


def _like(x: Tensor) -> tuple[int, ...]:
    """The shape in which the numbers of channels go with `x`."""
    return (-1, *(1,) * (x.dim() - 2))
