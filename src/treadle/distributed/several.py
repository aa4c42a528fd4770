"""Several processes that train one model: what is the same however the model lies in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from treadle.distributed.sync_batch_norm import synced_batch_norms
from treadle.interrupts import scoped
from treadle.loop.events import CANCELS, Callback, event
from treadle.loop.listeners import Listeners
from treadle.loop.parallel import Parallel
from treadle.loop.training import TrainingLoop
from treadle.loop.window import samples_in
from treadle.world import drawing_apart, world


class Several(Parallel):
    """What `DDP` and `FSDP` have in common.

    Each process takes its part of each batch. The gradients, the loss that callbacks see while
    training, and the metrics of a validation are those of the whole batch and of all data, alike in
    all processes. Dropout draws other numbers in each.

    Args:
        sync_bn: whether batch norms take their statistics over the whole batch, and not over this
            process's part of it. Without it the running statistics are those of rank 0's part.
    """

    def __init__(self, sync_bn: bool = False) -> None:
        self.sync_bn = sync_bn
        self.world = world()
        self._buffers: list[Tensor] = []
        self._sent: Any = None  # the loss on its way

    def settle(self, loop: TrainingLoop) -> None:
        if hasattr(loop.dls, "check_alike"):
            loop.dls.check_alike()
        self._buffers = [b for b in loop.model.buffers() if b.numel()]
        loop.agreed = frozenset().union(*self.world.all(_heard_by_users(loop.cbs)))

    @scoped
    def scope(self, loop: TrainingLoop) -> Iterator[None]:
        with ExitStack() as stack:
            if self.world.size > 1:
                stack.enter_context(drawing_apart())
                if self.sync_bn:
                    borrowed = partial(_is_borrowed, loop)
                    stack.enter_context(synced_batch_norms(loop.model, borrowed))
            stack.callback(setattr, loop, "agreed", loop.agreed)
            yield

    def batches(
        self, loop: TrainingLoop, batches: Iterable[Any], first: int
    ) -> Iterator[tuple[int, Any]]:
        for i, b in enumerate(batches, first):
            if loop.training or not _is_borrowed(loop):
                yield i, b
                continue
            # A sample that another process counts: only what they do together is done.
            with loop.silence():
                loop.one_batch(i, b)

    def joint(self, loop: TrainingLoop, loss: Any) -> Any:
        if loss is None or not loop.training:
            return loss
        mine, whole = self._share(loop)
        total = loss.detach() * (mine / whole) if mine else torch.zeros_like(loss)
        self._sent = dist.all_reduce(total, async_op=True)
        if loop.window is not None or loop.is_heard("after_loss", "before_backward"):
            self._sent.wait()  # else it arrives while the gradients are computed
        return _Joint.apply(loss, total)

    def samples(self, loop: TrainingLoop) -> int:
        return self._share(loop)[1]

    def backward(self, loop: TrainingLoop, loss: Tensor) -> None:
        mine, whole = self._share(loop)
        weight = mine * self.world.size / whole  # torch takes the mean over the processes
        super().backward(loop, loss if weight == 1 else loss * weight)
        self._sent.wait()
        self._send_buffers()

    def _share(self, loop: TrainingLoop) -> tuple[int, int]:
        """The samples of this process's part of the batch, and of the whole."""
        dl, n = loop.dl, samples_in(loop.yb or loop.xb)
        if _is_borrowed(loop):
            return 0, dl.total
        if loop.readers.size == 1:  # all read the same
            return n, n * self.world.size
        return len(dl.indices), dl.total

    def _send_buffers(self) -> None:
        """Give all processes the buffers of rank 0: what batch norms have seen of their parts."""
        if self._buffers:
            together: Any = vars(dist)["_broadcast_coalesced"]  # what torch's own DDP sends them by
            together(dist.group.WORLD, self._buffers, 1 << 28, 0)

    def agree(self, loop: Listeners, event: str) -> None:
        own: Exception | None = None
        try:
            loop(event, agree=False)
        except CANCELS as cancel:
            own = cancel
        code = 0 if own is None else 1 + CANCELS.index(type(own))
        most = torch.tensor(code)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.world.hosts)
        if most > code:  # what ends more goes before
            raise CANCELS[int(most) - 1]
        if own is not None:
            raise own

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sync_bn={self.sync_bn})"


class _Joint(torch.autograd.Function):
    """The value of the whole batch's loss, with the gradient of this process's."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, whole: Tensor) -> Tensor:
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def _is_borrowed(loop: TrainingLoop) -> bool:
    """Whether the batch at hand is a stand-in, for this process has no part of it."""
    return getattr(loop.dl, "borrowed", False)


def _heard_by_users(cbs: Iterable[Callback]) -> set[str]:
    """The events heard by callbacks that are not Treadle's: these may cancel on what only one
    process sees, where those of Treadle decide by what all see alike."""
    theirs = [cb for cb in cbs if type(cb) is Callback or not _is_ours(type(cb))]
    return {name for name in event.__members__ for cb in theirs if cb.hears(name)}


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "treadle"


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
